"""Classifier metrics with intervals: accuracy, macro-F1, calibration."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Integer, Num

from afterimage.errors import UserError
from afterimage.evaluation.probes import Array, check_labelled, wilson


def probabilities(
    scores: Num[Array, "..."], kind: Literal["logits", "probabilities"]
) -> Float[np.ndarray, "n classes"]:
    """Class probabilities in float64; a single column is the second of two classes.

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
            f"probabilities range from {p.min():.4g} to {p.max():.4g}, rows sum to "
            f"{p.sum(1).min():.4g}-{p.sum(1).max():.4g}; expected [0, 1] and 1. For "
            "logits, set kind='logits'."
        )
    return p


def macro_f1(
    labels: Integer[Array, " _n"],
    predicted: Integer[Array, " n"],
    weights: Float[np.ndarray, " n"] | None = None,
) -> float:
    """Mean F1 over the classes that occur in the labels.

    A class absent from the labels has no recall and is left out; predicting it still
    lowers the recall of the true class.
    """
    from sklearn.metrics import f1_score

    labels = np.asarray(labels)
    return float(
        f1_score(
            labels,
            np.asarray(predicted),
            labels=np.unique(labels if weights is None else labels[weights > 0]),
            average="macro",
            sample_weight=weights,
            zero_division=0.0,  # pyright: ignore[reportArgumentType]
        )
    )


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


def calibration_bins(
    p: Float[np.ndarray, "n classes"], labels: Integer[Array, " _n"], *, bins: int = 15
) -> list[dict[str, float | int]]:
    """The bins of `calibration_error` that are not empty, for a reliability diagram.

    Each has "count" and, in [0, 1], the means "confidence" and "accuracy" of its
    images; Σ count |accuracy - confidence| / n is the error.
    """
    index, gap = _calibration_terms(p, np.asarray(labels), bins)
    count = np.bincount(index, minlength=bins)
    sure = np.bincount(index, p.max(axis=1), minlength=bins)
    right = sure + np.bincount(index, gap, minlength=bins)
    return [
        {
            "count": int(count[b]),
            "confidence": float(sure[b] / count[b]),
            "accuracy": float(right[b] / count[b]),
        }
        for b in np.flatnonzero(count)
    ]


def measures(
    logits: Float[np.ndarray, "n classes"],
    labels: Integer[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"] | None = None,
) -> dict[str, float]:
    """Accuracy, macro-F1 and cross-entropy (nats) of labelled examples.

    With `weights`, means are Σ w v / Σ w, and sums of weights replace counts.
    """
    logits = logits.astype(np.float64)
    top = logits.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a diverged run's logits: the loss shows it
        log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    right = logits[np.arange(len(labels)), labels]
    predicted = logits.argmax(axis=1)
    return {
        "accuracy": float(np.average(predicted == labels, weights=weights)),
        "macro_f1": macro_f1(labels, predicted, weights),
        "loss": float(np.average(log_sum - right, weights=weights)),
    }


def bootstrap(
    value: float,
    resampled: Callable[[np.random.Generator], float],
    *,
    draws,
    seed,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> dict[str, float]:
    """95 % bootstrap interval of `value`, a metric within `bounds`.

    The 2.5 and 97.5 % quantiles of the metric over resamples with replacement, shifted
    so that the resamples' mean is `value`: resampling repeats a metric's own bias
    (calibration error is biased upwards), and only its spread is needed.
    """
    rng = np.random.default_rng(seed)
    found = np.array([resampled(rng) for _ in range(draws)])
    quantiles = np.percentile(found, [2.5, 97.5]) + value - found.mean()
    low, high = np.clip(quantiles, *bounds)
    low, high = float(min(low, value)), float(max(high, value))
    return {"value": value, "low": low, "high": high}


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
    """All metrics of one labelled set, JSON-ready.

    `scores` is [n, classes], or [n] for the second of two classes. Accuracy has a 95 %
    Wilson interval, macro-F1 and expected calibration error a seeded 95 % bootstrap
    interval, each {"value", "low", "high"}. Also: "examples", "classes" (name,
    precision, recall, f1, support of each), "confusion" (rows true, columns predicted),
    "calibration" (`calibration_bins`), "absent" (names of classes with no example
    here).

    Raises UserError for no examples, different lengths, labels outside the classes, and
    scores that `probabilities` rejects.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    p = probabilities(scores, kind)
    truth = check_labelled("test", p, labels)
    names = list(class_names or [str(i) for i in range(p.shape[1])])
    if len(names) != p.shape[1] or truth.max() >= p.shape[1]:
        raise UserError(
            f"scores for {p.shape[1]} classes, {len(names)} class names, labels up to "
            f"{truth.max()}: the three must match, with labels counted from 0."
        )
    predicted = p.argmax(axis=1)
    classes = np.arange(len(names))
    counts = confusion_matrix(truth, predicted, labels=classes)
    keys = ("precision", "recall", "f1", "support")
    no_division: Any = {"zero_division": 0.0}
    each = precision_recall_fscore_support(
        truth, predicted, labels=classes, **no_division
    )
    f1, calibration = macro_f1(truth, predicted), calibration_error(p, truth, bins=bins)
    f1_again = _f1_of_resample(counts)
    calibration_again = _calibration_of_resample(p, truth, bins)
    return {
        "examples": len(truth),
        "accuracy": wilson(int(np.trace(counts)), len(truth)),
        "macro_f1": bootstrap(f1, f1_again, draws=draws, seed=seed),
        "calibration_error": bootstrap(
            calibration, calibration_again, draws=draws, seed=seed
        ),
        "calibration_bins": bins,
        "calibration": calibration_bins(p, truth, bins=bins),
        "classes": [
            {"name": name, **{k: v.item() for k, v in zip(keys, scores)}}
            for name, *scores in zip(names, *map(np.asarray, each))
        ],
        "confusion": counts.tolist(),
        "absent": [n for n, s in zip(names, counts.sum(axis=1)) if not s],
    }


def _f1_of_resample(counts: np.ndarray) -> Callable[[np.random.Generator], float]:
    # Resampling examples is a multinomial draw over the non-zero cells, so the cost
    # does not grow with the square of the number of classes.
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


def auroc(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """The area under the receiver's curve: how well scores tell positives.

    The probability that a positive has a higher score than a negative, ties counted
    half (Mann & Whitney 1947); 0.5 is chance. Both kinds are needed.
    """
    positive = np.asarray(positive, bool)
    ranks = scipy.stats.rankdata(scores)
    count, rest = int(positive.sum()), int((~positive).sum())
    return float(ranks[positive].sum() - count * (count + 1) / 2) / (count * rest)
