"""What a head predicts: one class, several labels or numbers; one file for each kind.

A head gives logits; its outputs turn them into probabilities or numbers, compare them
with the truth, and write them as text and as columns. They are stored with the head.
"""

import dataclasses
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Array, Float

from afterimage.reading import NumberReading

Activation = Literal["softmax", "sigmoid", "identity"]
_KINDS = {
    "classes": ("classes", "Classes"),
    "multi-label": ("multi_label", "MultiLabel"),
    "regression": ("regression", "Regression"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the numbers of one head mean.

    `truth` below is class indices [n], or numbers [n, k] with NaN where unknown.
    """

    kind: ClassVar[str]
    activation: ClassVar[Activation]
    """How logits become probabilities; `identity` for numbers."""
    values_name: ClassVar[str] = "probabilities"
    """What `values` are called."""
    loss: ClassVar[tuple[str, str]]
    """(heading of the loss in a report, name of the loss's term)."""
    curves: ClassVar[Mapping[str, str]]
    """{heading: evaluation metric}, further curves of a report."""

    names: tuple[str, ...]
    """The classes, labels or numbers, in the order of the logits."""
    columns_read: tuple[str, ...] = ()
    """The columns that held the labels; empty for the column `label`."""

    def entry(self) -> dict[str, Any] | None:
        """Plain values for a manifest, beside the names; None for classes."""
        return None

    @property
    def reading(self) -> NumberReading | None:
        """How further labelled data are read; None for classes."""
        return None

    def traced(self, logits: Array) -> Array:
        """`values` as a JAX function, for exported programs."""
        raise NotImplementedError

    def values(self, logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Probabilities, or numbers in the units of the training labels; float64."""
        raise NotImplementedError

    def predicted(self, logits: Float[np.ndarray, "n k"]) -> np.ndarray:
        """The prediction for each image: see `Classifier.predict`."""
        raise NotImplementedError

    def measures(
        self, logits: Float[np.ndarray, "n k"], truth: np.ndarray
    ) -> dict[str, float]:
        """The figures of an evaluation during training."""
        raise NotImplementedError

    def report(
        self, logits: Float[np.ndarray, "n k"], truth: np.ndarray, *, seed: int = 0
    ) -> dict[str, Any]:
        """All figures of one labelled set, JSON-ready, with 95 % intervals."""
        raise NotImplementedError

    @staticmethod
    def text(report: Mapping[str, Any]) -> str:
        """A report as Markdown."""
        raise NotImplementedError

    @staticmethod
    def figures(report: Mapping[str, Any]) -> dict[str, str]:
        """{name: value} of the most important figures of a report."""
        raise NotImplementedError

    @staticmethod
    def shares(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """{name: value with its interval} of the same figures, to compare runs."""
        raise NotImplementedError

    @staticmethod
    def grids(report: Mapping[str, Any]) -> dict[str, Any]:
        """{heading: (header, rows)} for report.html."""
        raise NotImplementedError

    def columns(self, values: Float[np.ndarray, " k"], top: int) -> dict[str, Any]:
        """What a file of predictions says of one image; `top` classes at most."""
        raise NotImplementedError

    def counted(self, row: Mapping[str, Any]) -> Iterable[str]:
        """The names that a row of such a file counts for, in its summary."""
        return ()

    def measured(self, row: Mapping[str, Any]) -> Mapping[str, float]:
        """The predicted numbers in such a row, for their range in the summary."""
        return {}


def outputs_of(entry: Mapping[str, Any] | None, names: Sequence[str]) -> Outputs:
    """The outputs that a manifest describes by `Outputs.entry`."""
    entry = dict(entry or {"kind": "classes"})
    for name in ("mean", "std", "columns_read"):
        if name in entry:
            entry[name] = tuple(entry[name])
    return _class(entry.pop("kind"))(names=tuple(names), **entry)


def outputs_of_report(report: Mapping[str, Any]) -> type[Outputs]:
    """The kind that made this report; for its text and figures."""
    return _class(report.get("kind", "classes"))


def _class(kind: str) -> type[Any]:
    module, name = _KINDS[kind]
    return getattr(importlib.import_module(f"afterimage.outputs.{module}"), name)
