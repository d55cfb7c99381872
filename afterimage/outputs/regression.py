"""Numbers: predicted in the units of the training labels; MAE, RMSE and R²."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from afterimage.errors import UserError
from afterimage.evaluation.classification import bootstrap
from afterimage.evaluation.text import table
from afterimage.outputs import Activation, Outputs
from afterimage.reading import NumberReading

_DRAWS = 1000
_MOST_POINTS = 400
_BOUNDS = {"mae": (0.0, np.inf), "rmse": (0.0, np.inf), "r2": (-np.inf, 1.0)}
_LABELS = {"mae": "MAE", "rmse": "RMSE", "r2": "R²"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(Outputs):
    """Numbers. The head's outputs z are standardised: the prediction is m + s z."""

    kind: ClassVar[str] = "regression"
    activation: ClassVar[Activation] = "identity"
    values_name: ClassVar[str] = "values"
    loss: ClassVar = ("Loss on standardised labels", "regression_loss")
    curves: ClassVar = {"R²": "r2"}

    mean: tuple[float, ...]
    """m: the means of the training labels."""
    std: tuple[float, ...]
    """s: their standard deviations."""

    def entry(self):
        return {
            "kind": self.kind,
            "mean": list(self.mean),
            "std": list(self.std),
            "columns_read": list(self.columns_read),
        }

    @property
    def reading(self):
        return NumberReading(
            kind="regression", columns=self.columns_read, names=self.names
        )

    def traced(self, logits):
        std, mean = (np.asarray(v, np.float32)[None] for v in (self.std, self.mean))
        return logits * std + mean

    def values(self, logits):
        scale, shift = np.array(self.std)[None], np.array(self.mean)[None]
        return logits.astype(np.float64) * scale + shift

    def predicted(self, logits):
        values = self.values(logits)
        return values[:, 0] if values.shape[1] == 1 else values

    def measures(self, logits, truth):
        values = self.values(logits)
        error = (values - truth) / np.array(self.std)[None]
        each = [_figures(*known) for known in _known(values, truth)]
        # 0 where R² is undefined: a measure that is not finite ends the run.
        found = {"r2": float(np.mean(np.nan_to_num([one["r2"] for one in each])))}
        if len(each) == 1:
            found |= {"mae": each[0]["mae"], "rmse": each[0]["rmse"]}
        return {**found, "loss": float(np.nanmean(np.square(error)))}

    def report(self, logits, truth, *, seed=0):
        if truth.shape != logits.shape or not np.isfinite(logits).all():
            raise UserError(
                f"predictions {logits.shape}, labels {truth.shape}: must have one "
                "shape, and finite predictions"
            )
        each = []
        for name, (guess, true) in zip(self.names, _known(self.values(logits), truth)):
            figures = _figures(guess, true)
            shares = {key: _interval(key, guess, true, seed) for key in figures}
            spread = float(true.std()) if len(true) else None
            more = {"examples": len(true), "deviation": spread}
            points = {"points": _points(guess, true)}
            each.append({"name": name, **more, **shares, **points})
        known = [one["r2"]["value"] for one in each if one["r2"]["value"] is not None]
        return {
            "kind": self.kind,
            "examples": len(truth),
            "mean_r2": float(np.mean(known)) if known else None,
            "outputs": each,
        }

    @staticmethod
    def text(report):
        header, rows = Regression.grids(report)["Numbers"]
        several = len(report["outputs"]) > 1 and report["mean_r2"] is not None
        parts = [table([f"{report['examples']} examples", *header[1:]], rows)]
        if several:
            parts.append(f"mean R²: {report['mean_r2']:.3f}")
        parts.append("Figures with 95 % intervals; MAE and RMSE in the labels' units.")
        return "\n\n".join(parts) + "\n"

    @staticmethod
    def figures(report):
        each = report["outputs"]
        if len(each) == 1:
            one = each[0]
            return {label: shown(key, one[key]) for key, label in _LABELS.items()}
        return {f"R² of {one['name']}": shown("r2", one["r2"]) for one in each}

    @staticmethod
    def shares(report):
        several = len(report["outputs"]) > 1
        return {
            f"{key} of {one['name']}" if several else key: one[key]
            for one in report["outputs"]
            for key in _LABELS
        }

    @staticmethod
    def grids(report):
        header = ["number", *_LABELS.values(), "deviation", "examples"]
        rows = [
            [
                one["name"],
                *(shown(key, one[key]) for key in _LABELS),
                "none" if one["deviation"] is None else f"{one['deviation']:.4g}",
                one["examples"],
            ]
            for one in report["outputs"]
        ]
        return {"Numbers": (header, rows)}

    def columns(self, values, top):
        each = zip(self.names, values.tolist())
        return {f"predicted_{name}": float(f"{value:.7g}") for name, value in each}

    def measured(self, row):
        return {name: row[name] for name in (f"predicted_{n}" for n in self.names)}


def _known(
    values: Float[np.ndarray, "n k"], truth: Float[np.ndarray, "n k"]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(predicted, true) of each number, where it is known."""
    truth = truth.astype(np.float64)
    pairs = zip(values.T, truth.T)
    return [(guess[~np.isnan(true)], true[~np.isnan(true)]) for guess, true in pairs]


def _points(guess: np.ndarray, true: np.ndarray) -> list[list[float]]:
    """[true, predicted] of up to 400 examples, evenly from lowest to highest."""
    order = np.argsort(true, kind="stable")
    count = min(len(order), _MOST_POINTS)
    chosen = order[np.linspace(0, len(order) - 1, count).round().astype(int)]
    return [[float(true[i]), float(guess[i])] for i in chosen]


def _figures(guess: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Mean absolute error, root mean square error, 1 − Σ(y − ŷ)² / Σ(y − ȳ)²."""
    nothing = dict.fromkeys(_BOUNDS, float("nan"))
    if not len(true):
        return nothing
    error = guess - true
    total = np.square(true - true.mean()).sum()
    r2 = 1 - np.square(error).sum() / total if total > 0 else float("nan")
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "r2": float(r2),
    }


def _interval(
    key: str, guess: np.ndarray, true: np.ndarray, seed: int
) -> dict[str, Any]:
    value = _figures(guess, true)[key]
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None}

    def resampled(rng: np.random.Generator) -> float:
        rows = rng.integers(len(true), size=len(true))
        found = _figures(guess[rows], true[rows])[key]
        return found if np.isfinite(found) else value

    draws = _DRAWS if len(true) <= 10_000 else _DRAWS // 5
    return bootstrap(value, resampled, draws=draws, seed=seed, bounds=_BOUNDS[key])


def shown(key: str, share: Mapping[str, Any]) -> str:
    """`0.531 (0.498-0.560)`: a value with its interval; `none` if it has none."""
    if share["value"] is None:
        return "none"
    digits = ".3f" if key == "r2" else ".4g"
    value, low, high = (f"{share[name]:{digits}}" for name in ("value", "low", "high"))
    between = f"{low} to {high}" if low.startswith("-") else f"{low}-{high}"
    return f"{value} ({between})"
