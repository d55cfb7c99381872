"""What a classifier is worth: accuracy, macro-F1, calibration, with intervals."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Integer, Num

from afterimage.errors import UserError
from afterimage.evaluation.checks import Array, check_labelled

_Z = 1.959963984540054  # the normal distribution's 97.5 % point


def wilson(successes: int, trials: int) -> dict[str, float]:
    """A share with its 95 % Wilson score interval: {"value", "low", "high"} in [0, 1].

    Centre (p + z²/2n) / (1 + z²/n), half-width z √(p(1-p)/n + z²/4n²) / (1 + z²/n).
    """
    p, shrink = successes / trials, 1 + _Z**2 / trials
    centre = (p + _Z**2 / (2 * trials)) / shrink
    half = _Z * np.sqrt(p * (1 - p) / trials + _Z**2 / (4 * trials**2)) / shrink
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    # At 0 and 1 the bound is the value itself, but for rounding.
    return {"value": p, "low": float(min(low, p)), "high": float(max(high, p))}


def probabilities(
    scores: Num[Array, "..."], kind: Literal["logits", "probabilities"]
) -> Float[np.ndarray, "n classes"]:
    """Class probabilities in float64; a single column is the second of two classes'.

    Raises UserError for values that are not finite and for "probabilities" outside
    [0, 1] or not summing to 1 (to 1e-3).
    """
    p = np.asarray(scores, np.float64)
    p = p[:, None] if p.ndim == 1 else p
    if p.ndim != 2 or p.shape[1] < 1:
        raise UserError(f"scores have shape {p.shape}; expected [n, classes] or [n].")
    if not np.isfinite(p).all():
        raise UserError(f"{(~np.isfinite(p)).sum()} of {p.size} scores are not finite.")
    if kind == "logits":
        p = np.concatenate([np.zeros_like(p), p], axis=1) if p.shape[1] == 1 else p
        p = np.exp(p - p.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)
    p = np.concatenate([1 - p, p], axis=1) if p.shape[1] == 1 else p
    if p.size and (p.min() < 0 or p.max() > 1 or np.abs(p.sum(1) - 1).max() > 1e-3):
        raise UserError(
            f"probabilities lie between {p.min():.4g} and {p.max():.4g}, rows sum to "
            f"{p.sum(1).min():.4g}-{p.sum(1).max():.4g}; expected [0, 1] and 1. "
            'Are they logits? Then say kind="logits".'
        )
    return p


def confusion_matrix(
    labels: Integer[Array, " _n"],
    predicted: Integer[Array, " n"],
    classes: int,
    weights: Float[np.ndarray, " n"] | None = None,
) -> Num[np.ndarray, "classes classes"]:
    """Counts, or sums of `weights`; the row is the true class, the column the predicted
    one."""
    cell = np.asarray(labels, np.int64) * classes + np.asarray(predicted)
    counts = np.bincount(cell, weights=weights, minlength=classes**2)
    return counts.reshape(classes, classes)


def class_scores(confusion: Num[np.ndarray, "c c"]) -> dict[str, np.ndarray]:
    """Precision, recall, F1 and support of each class; 0 where undefined."""
    hit = np.diag(confusion).astype(np.float64)
    support, named = confusion.sum(axis=1), confusion.sum(axis=0)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return part / np.where(whole > 0, whole, 1)

    return {
        "precision": share(hit, named),
        "recall": share(hit, support),
        "f1": share(2 * hit, support + named),
        "support": support,
    }


def macro_f1(confusion: Num[np.ndarray, "c c"]) -> float:
    """Mean F1 over the classes that occur in the labels.

    A class absent from the labels has no recall and is left out; predicting it still
    costs the class that it was taken from.
    """
    scores = class_scores(confusion)
    return float(scores["f1"][scores["support"] > 0].mean())


def _calibration_terms(p: np.ndarray, labels: np.ndarray, bins: int):
    confidence = p.max(axis=1)
    # Bins (i/bins, (i+1)/bins]; the first includes 0.
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return index, (p.argmax(axis=1) == labels) - confidence


def calibration_error(
    p: Float[np.ndarray, "n classes"], labels: Integer[Array, " _n"], *, bins: int = 15
) -> float:
    """Expected calibration error of the top class, in [0, 1].

    Σ_b (n_b / n) |accuracy_b - confidence_b| over `bins` equal-width bins of the
    confidence max_c p_c. Zero only if confidence equals accuracy in every bin.
    """
    index, gap = _calibration_terms(p, np.asarray(labels), bins)
    return float(np.abs(np.bincount(index, gap, minlength=bins)).sum() / len(gap))


def bootstrap(
    value: float, resampled: Callable[[np.random.Generator], float], *, draws, seed
) -> dict[str, float]:
    """95 % bootstrap interval of `value`, a measure in [0, 1].

    The 2.5 and 97.5 % points of the measure over resamples with replacement, shifted
    so that their mean is `value`: resampling repeats a measure's own bias (calibration
    error is biased upwards), and only its spread is wanted.
    """
    rng = np.random.default_rng(seed)
    found = np.array([resampled(rng) for _ in range(draws)])
    low, high = np.clip(np.percentile(found, [2.5, 97.5]) + value - found.mean(), 0, 1)
    return {
        "value": value,
        "low": float(min(low, value)),
        "high": float(max(high, value)),
    }


def classification_report(
    scores: Num[Array, "..."],
    labels: Integer[Array, " _n"],
    class_names: Sequence[str] | None = None,
    *,
    kind: Literal["logits", "probabilities"] = "logits",
    bins: int = 15,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """All measures of one labelled set, JSON-ready.

    `scores` is [n, classes], or [n] for the second of two classes. Accuracy has a 95 %
    Wilson interval, macro-F1 and expected calibration error a seeded 95 % bootstrap
    interval, each {"value", "low", "high"}. Also: "examples", "classes" (name,
    precision, recall, f1, support of each), "confusion" (rows true, columns predicted),
    "absent" (names of classes with no example here).

    Raises UserError for no examples, lengths that differ, labels outside the classes,
    and what `probabilities` refuses.
    """
    p = probabilities(scores, kind)
    truth = check_labelled("test", p, labels)
    names = list(class_names or [str(i) for i in range(p.shape[1])])
    if len(names) != p.shape[1] or truth.max() >= p.shape[1]:
        raise UserError(
            f"scores for {p.shape[1]} classes, {len(names)} class names, labels up to "
            f"{truth.max()}: the numbers must agree, labels counting from 0."
        )
    predicted = p.argmax(axis=1)
    counts = confusion_matrix(truth, predicted, len(names))
    each = class_scores(counts)
    return {
        "examples": len(truth),
        "accuracy": wilson(int(np.trace(counts)), len(truth)),
        "macro_f1": bootstrap(
            macro_f1(counts), _f1_of_resample(counts), draws=draws, seed=seed
        ),
        "calibration_error": bootstrap(
            calibration_error(p, truth, bins=bins),
            _calibration_of_resample(p, truth, bins),
            draws=draws,
            seed=seed,
        ),
        "calibration_bins": bins,
        "classes": [
            {"name": name, **{key: each[key][i].item() for key in each}}
            for i, name in enumerate(names)
        ],
        "confusion": counts.tolist(),
        "absent": [n for n, s in zip(names, each["support"]) if not s],
    }


def _f1_of_resample(counts: np.ndarray) -> Callable[[np.random.Generator], float]:
    # Resampling examples is a multinomial draw over the cells that occur: the cost
    # does not grow with the square of the classes.
    row, column = np.nonzero(counts)
    share = counts[row, column] / counts.sum()
    size, total, hit = len(counts), int(counts.sum()), row == column

    def resampled(rng: np.random.Generator) -> float:
        drawn = rng.multinomial(total, share)
        support = np.bincount(row, drawn, size)
        named = np.bincount(column, drawn, size)
        hits = np.bincount(row[hit], drawn[hit], size)
        here = support > 0
        return float((2 * hits[here] / (support + named)[here]).mean())

    return resampled


def _calibration_of_resample(
    p: np.ndarray, labels: np.ndarray, bins: int
) -> Callable[[np.random.Generator], float]:
    index, gap = _calibration_terms(p, labels, bins)

    def resampled(rng: np.random.Generator) -> float:
        i = rng.integers(len(gap), size=len(gap))
        sums = np.bincount(index[i], gap[i], minlength=bins)
        return float(np.abs(sums).sum() / len(gap))

    return resampled
