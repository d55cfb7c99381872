"""Regression: one or several numbers an image."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from afterimage.errors import DataError
from afterimage.fields import above_0
from afterimage.finetune.tasks import TASKS, NumberTask, numbers_of
from afterimage.models.classifier import HEAD
from afterimage.outputs.regression import Regression as Outputs
from afterimage.reading import NumberReading
from afterimage.training.stage import Term, TermResult, View


@TASKS.add("regression")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(NumberTask):
    """One or several numbers an image, such as an age or two sizes."""

    columns: tuple[str, ...] = ()
    """Columns with the numbers. Default: the column `label`. An empty cell is a number
    that is not known."""

    error: Literal["squared", "huber"] = "squared"
    """The loss on standardised labels. squared: e²; huber: e² / 2 for small errors,
    proportional to |e| beyond delta, so that outliers pull less."""

    delta: float = 1.0
    """huber: where it becomes linear, in standard deviations of the training labels."""

    best: Literal["loss", "r2"] = "loss"
    """The validation measure by which the step is chosen: the mean squared error on
    standardised labels, or the mean R² of the numbers."""

    def problems(self, config):
        found = super().problems(config) + above_0(self, "delta")
        if self.error != "huber" and self.delta != type(self).delta:
            found.append(f"delta={self.delta}: applies only to error='huber'")
        return found

    @property
    def reading(self):
        return NumberReading(kind="regression", columns=self.columns)

    def check(self, splits):
        super().check(splits)
        numbers = numbers_of(splits.train)
        for name, values in zip(numbers.names, numbers.values.T):
            known = values[~np.isnan(values)]
            if not len(known) or known.min() == known.max():
                raise DataError(
                    f"{splits.train.name}: the training labels {name} "
                    + ("are all empty" if not len(known) else f"are all {known[0]:g}")
                    + ", so there is nothing to learn"
                )

    def strata(self, images):
        return None  # by rows

    def outputs(self, labels):
        values = numbers_of(labels.train).values.astype(np.float64)
        empty = np.isnan(values).all(axis=0)
        if empty.any():
            names = [n for n, none in zip(labels.class_names, empty) if none]
            raise DataError(
                f"{labels.train.name}: none of the {len(values)} images to learn from "
                f"has a label {', '.join(names)}; use more labels"
            )
        std = np.nanstd(values, axis=0)
        return Outputs(
            names=labels.class_names,
            mean=tuple(np.nanmean(values, axis=0).tolist()),
            std=tuple(np.where(std > 0, std, 1.0).tolist()),
            columns_read=self.columns,
        )

    def measure(self, config):
        return self.best

    def loss(self, setup):
        outputs: Any = setup.outputs
        delta = self.delta if self.error == "huber" else None
        return regression_loss(outputs.mean, outputs.std, delta)

    def describe(self, images):
        parts = [
            f"{name} {np.nanmin(v):.4g} to {np.nanmax(v):.4g}, mean {np.nanmean(v):.4g}"
            for name, v in zip(numbers_of(images).names, numbers_of(images).values.T)
        ]
        count = len(numbers_of(images).names)
        what = "1 number" if count == 1 else f"{count} numbers"
        return what, f"numbers: {'; '.join(parts)}"


def regression_loss(
    mean: Sequence[float],
    std: Sequence[float],
    delta: float | None = None,
    *,
    stream: str = "train",
    head: str = HEAD,
) -> Term:
    """The mean over known numbers of ρ(e), e = z − (y − m) / s.

    ρ(e) = e², or with `delta` d Huber's ½ e² for |e| ≤ d and d (|e| − ½ d) beyond
    (Huber 1964). An unknown number (NaN) costs nothing.
    """
    logits_name, label_name = f"{stream}/logits/{head}", f"{stream}/label"
    m, s = np.asarray(mean, np.float32), np.asarray(std, np.float32)

    def fn(view: View) -> TermResult:
        z, truth = view[logits_name].astype(jnp.float32), view[label_name]
        known = ~jnp.isnan(truth)
        error = jnp.where(known, z - (truth - m[None]) / s[None], 0.0)
        each = jnp.square(error)
        if delta is not None:
            size = jnp.abs(error)
            each = jnp.where(size <= delta, each / 2, delta * (size - delta / 2))
        count = jnp.maximum(known.sum(), 1)
        return each.sum(1) * (len(truth) / count), {}

    return Term(
        name="regression_loss", fn=fn, reads=(logits_name, label_name), task=head
    )
