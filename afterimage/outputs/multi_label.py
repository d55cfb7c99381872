"""Several labels an image: a sigmoid each, mean average precision and F1."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Float
from scipy.special import expit

from afterimage.errors import UserError
from afterimage.evaluation.classification import bootstrap
from afterimage.evaluation.text import percent, table
from afterimage.outputs import Activation, Outputs
from afterimage.reading import NumberReading

SEPARATOR = "|"
_DRAWS = 200
_MAP = "mean average precision"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabel(Outputs):
    """Any number of labels; those whose probability reaches the threshold are set."""

    kind: ClassVar[str] = "multi-label"
    activation: ClassVar[Activation] = "sigmoid"
    loss: ClassVar = ("Binary cross-entropy", "binary_cross_entropy")
    curves: ClassVar = {
        "Mean average precision": "mean_average_precision",
        "Micro-F1": "micro_f1",
    }

    threshold: float = 0.5
    empty: Any = "unlabelled"

    def entry(self):
        return {
            "kind": self.kind,
            "threshold": self.threshold,
            "columns_read": list(self.columns_read),
            "empty": self.empty,
        }

    @property
    def reading(self):
        return NumberReading(
            kind="multi-label",
            columns=self.columns_read,
            empty=self.empty,
            names=self.names,
        )

    def traced(self, logits):
        return jax.nn.sigmoid(logits)

    def values(self, logits):
        return expit(logits.astype(np.float64))

    def predicted(self, logits):
        return (self.values(logits) >= self.threshold).astype(int)

    def measures(self, logits, truth):
        known = ~np.isnan(truth)
        precision = _mean(average_precisions(logits, truth))
        logits = logits.astype(np.float64)
        each = np.logaddexp(0, logits) - np.where(known, truth, 0) * logits
        ones = known.astype(np.float64)
        return {
            # 0 without a positive example: a measure that is not finite ends the run.
            "mean_average_precision": float(np.nan_to_num(precision)),
            **f1_scores(self.predicted(logits), truth, ones),
            "loss": float(each[known].mean()),
        }

    def report(self, logits, truth, *, seed=0):
        if truth.shape != logits.shape or not np.isfinite(logits).all():
            raise UserError(
                f"logits {logits.shape}, labels {truth.shape}: must have one shape, "
                "and finite logits"
            )
        known, predicted = ~np.isnan(truth), self.predicted(logits)
        precisions = average_precisions(logits, truth)
        scores = f1_scores(predicted, truth, known.astype(np.float64))

        def resample(figure: Callable[[np.ndarray], float]) -> Any:
            def resampled(rng: np.random.Generator) -> float:
                draw = rng.multinomial(len(truth), np.full(len(truth), 1 / len(truth)))
                return figure(draw.astype(np.float64)[:, None])

            return resampled

        def f1(name: str) -> Callable[[np.ndarray], float]:
            return lambda w: f1_scores(predicted, truth, w * known)[name]

        value = _mean(precisions)
        how: Any = {"draws": _DRAWS, "seed": seed}
        again = resample(lambda w: _mean(average_precisions(logits, truth, w)))
        interval = bootstrap(value, again, **how) if np.isfinite(value) else _UNKNOWN
        return {
            "kind": self.kind,
            "examples": len(truth),
            "threshold": self.threshold,
            "mean_average_precision": interval,
            **{k: bootstrap(v, resample(f1(k)), **how) for k, v in scores.items()},
            "labels": self._each(predicted, truth, precisions),
            "absent": [n for n, p in zip(self.names, precisions) if np.isnan(p)],
        }

    def _each(self, predicted, truth, precisions) -> list[dict[str, Any]]:
        """The figures of each label."""
        found = []
        for name, guess, true, ap in zip(self.names, predicted.T, truth.T, precisions):
            hits = int(((guess == 1) & (true == 1)).sum())
            said = int(((guess == 1) & ~np.isnan(true)).sum())
            support = int((true == 1).sum())
            found.append(
                {
                    "name": name,
                    "average_precision": None if np.isnan(ap) else float(ap),
                    "precision": hits / said if said else 0.0,
                    "recall": hits / support if support else 0.0,
                    "f1": 2 * hits / (said + support) if said + support else 0.0,
                    "support": support,
                }
            )
        return found

    @staticmethod
    def text(report):
        figures = MultiLabel.figures(report)
        header = [f"{report['examples']} examples", "value (95 % interval)"]
        parts = [table(header, list(figures.items()))]
        header, rows = MultiLabel.grids(report)["Labels"]
        shown = [
            [f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row]
            for row in rows
        ]
        parts.append(table(header, shown))
        if report["absent"]:
            parts.append(
                f"{len(report['absent'])} labels have no positive example and are not "
                f"part of the means over labels: {', '.join(report['absent'][:20])}"
            )
        return "\n\n".join(parts) + "\n"

    @staticmethod
    def figures(report):
        at = f"at {report['threshold']:g}"
        return {
            _MAP: percent(report["mean_average_precision"]),
            f"micro-F1 {at}": percent(report["micro_f1"]),
            f"macro-F1 {at}": percent(report["macro_f1"]),
        }

    @staticmethod
    def shares(report):
        keys = ("mean_average_precision", "micro_f1", "macro_f1")
        return {key.replace("_", " "): report[key] for key in keys}

    @staticmethod
    def grids(report):
        keys = ("average_precision", "precision", "recall", "f1", "support")
        header = ["label", *(key.replace("_", " ") for key in keys)]
        rows = [[one["name"], *(one[key] for key in keys)] for one in report["labels"]]
        shown = [["none" if cell is None else cell for cell in row] for row in rows]
        return {"Labels": (header, shown)}

    def columns(self, values, top):
        shown = [n for n, p in zip(self.names, values) if p >= self.threshold]
        each = zip(self.names, values.tolist())
        return {
            "labels": SEPARATOR.join(shown) or SEPARATOR,
            **{f"probability_{name}": round(p, 6) for name, p in each},
        }

    def counted(self, row):
        return [name for name in row["labels"].split(SEPARATOR) if name] or ["(none)"]


_UNKNOWN = {"value": None, "low": None, "high": None}


def _mean(values: np.ndarray) -> float:
    """The mean of those that are defined; NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def average_precisions(
    scores: Float[np.ndarray, "n k"],
    truth: Float[np.ndarray, "n k"],
    weights: Float[np.ndarray, "n 1"] | None = None,
) -> Float[np.ndarray, " k"]:
    """Σ_t (R_t − R_{t−1}) P_t of each label over the thresholds t; NaN if it is absent.

    P and R are precision and recall of the examples with a known label, as in
    scikit-learn's `average_precision_score`.
    """
    found = np.full(truth.shape[1], np.nan)
    for column in range(truth.shape[1]):
        known = ~np.isnan(truth[:, column])
        score, true = scores[known, column], truth[known, column]
        w = np.ones(len(true)) if weights is None else weights[known, 0]
        order = np.argsort(-score, kind="stable")
        score, hits = score[order], (w * true)[order]
        last = np.append(np.diff(score) != 0, True)  # one threshold for equal scores
        right, said = np.cumsum(hits)[last], np.cumsum(w[order])[last]
        if len(right) and right[-1] > 0:
            precision = right / np.maximum(said, 1e-12)
            gain = np.diff(right, prepend=0.0) / right[-1]
            found[column] = (gain * precision).sum()
    return found


def f1_scores(
    predicted: np.ndarray, truth: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
    """Micro-F1, and macro-F1 over the labels with a positive example.

    `weights` are those of each image and label, 0 where the label is unknown.
    """
    true = np.where(np.isnan(truth), 0, truth)
    hits = (weights * predicted * true).sum(0)
    both = (weights * (predicted + true)).sum(0)
    each = 2 * hits / np.maximum(both, 1e-12)
    here = (weights * true).sum(0) > 0
    return {
        "micro_f1": float(2 * hits.sum() / max(both.sum(), 1e-12)),
        "macro_f1": float(each[here].mean()) if here.any() else 0.0,
    }
