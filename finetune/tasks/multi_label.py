"""Multi-label: any number of labels an image, each yes or no by itself."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from afterimage.errors import DataError, UserError
from afterimage.finetune.tasks import TASKS, NumberTask, numbers_of
from afterimage.models.classifier import HEAD
from afterimage.outputs.multi_label import MultiLabel as Outputs
from afterimage.reading import NumberReading
from afterimage.training.stage import Term, TermResult, View

_FEWEST = 5  # images with the same labels that make a stratum of their own


@TASKS.add("multi-label")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabel(NumberTask):
    """Any number of labels an image, each yes or no."""

    columns: tuple[str, ...] = ()
    """Columns with 0 or 1, one for each label. Default: the column `label`, with cells
    such as a|b (several), a (one) or | (none of the labels)."""

    empty: Literal["unlabelled", "none"] = "unlabelled"
    """What an empty cell means. unlabelled: nothing is known, the image is left out;
    none: the image has none of the labels."""

    threshold: float = 0.5
    """Probability from which a label is predicted; kept with the classifier."""

    positive_weights: str = "none"
    """How much more an image with a label counts than one without it. none: 1;
    balanced: the number without divided by the number with it, for rare labels; or one
    number per label, in the order of the names: 1,4,2.5."""

    best: Literal["mean_average_precision", "micro_f1", "macro_f1", "loss"] = (
        "mean_average_precision"
    )
    """The validation measure by which the step is chosen."""

    def problems(self, config):
        found = super().problems(config)
        if not 0 < self.threshold < 1:
            found.append(f"threshold={self.threshold}: must be in (0, 1)")
        if self.positive_weights not in ("none", "balanced"):
            try:
                weights = [float(w) for w in self.positive_weights.split(",")]
            except ValueError:
                weights = [0.0]
            if not all(0 < w < float("inf") for w in weights):
                found.append(
                    f"positive_weights={self.positive_weights!r}: must be none, "
                    "balanced, or one number above 0 per label, separated by commas"
                )
        return found

    @property
    def reading(self):
        return NumberReading(kind="multi-label", columns=self.columns, empty=self.empty)

    def check(self, splits):
        super().check(splits)
        names = numbers_of(splits.train).names
        here = _positives(splits.train) > 0
        always = ~(numbers_of(splits.train).values == 0).any(axis=0)
        if not names or always.any():
            which = [name for name, all_have in zip(names, always) if all_have]
            raise DataError(
                f"{splits.train.name} has "
                + (
                    f"no training image without {', '.join(which)}, so this label is "
                    "nothing to learn; if images have one class each, use task "
                    "classification"
                    if names
                    else "no label in any image"
                )
            )
        for other in (splits.train, splits.validation, splits.test):
            if other is None or other.numbers is None:
                continue
            used = _positives(other) > 0 if other is not splits.train else ~here
            lacking = [n for n, use, has in zip(names, used, here) if use and not has]
            if lacking:
                raise DataError(
                    f"{other.name} has labels without a training image: "
                    f"{', '.join(lacking)}; add training images with these labels, or "
                    "remove the labels"
                )

    def strata(self, images):
        """Images with the same labels; those with rare combinations are together."""
        known = np.nan_to_num(numbers_of(images).values, nan=-1)
        _, which, counts = np.unique(
            known, axis=0, return_inverse=True, return_counts=True
        )
        which = which.reshape(-1)
        return np.where(counts[which] < _FEWEST, len(counts), which)

    def outputs(self, labels):
        return Outputs(
            names=labels.class_names,
            threshold=self.threshold,
            columns_read=self.columns,
            empty=self.empty,
        )

    def measure(self, config):
        return self.best

    def loss(self, setup):
        train = setup.data.labels.train
        weights = self._weights(train, setup.outputs.names)
        return binary_cross_entropy(weights, self.threshold)

    def _weights(self, images, names) -> Sequence[float]:
        if self.positive_weights == "none":
            return [1.0] * len(names)
        if self.positive_weights == "balanced":
            with_it = _positives(images)
            without = np.nansum(numbers_of(images).values == 0, axis=0)
            if not with_it.all() or not without.all():
                raise UserError(
                    "positive_weights='balanced' needs training images with and "
                    "without every label"
                )
            return (without / with_it).tolist()
        weights = [float(w) for w in self.positive_weights.split(",")]
        if len(weights) != len(names):
            raise UserError(
                f"positive_weights has {len(weights)} numbers for {len(names)} labels; "
                f"give one per label, in the order {', '.join(names)}"
            )
        return weights

    def describe(self, images):
        names = numbers_of(images).names
        counts = [f"{n} {c:,}" for n, c in zip(names, _positives(images).tolist())]
        none = int((numbers_of(images).values == 0).all(axis=1).sum())
        more = [f"and {len(counts) - 50:,} more"] if len(counts) > 50 else []
        text = f"labels: {', '.join([*counts[:50], *more])}; none of them {none:,}"
        return f"{len(names)} labels", text


def _positives(images) -> np.ndarray:
    """How many images have each label."""
    return (numbers_of(images).values == 1).sum(axis=0)


def binary_cross_entropy(
    positive_weights: Sequence[float],
    threshold: float = 0.5,
    *,
    stream: str = "train",
    head: str = HEAD,
) -> Term:
    """The mean over known labels of −w y log σ(z) − (1 − y) log(1 − σ(z)).

    An unknown label (NaN) costs nothing; the mean over a batch is that over its known
    labels. The metric `micro_f1` is that of the batch.
    """
    logits_name, label_name = f"{stream}/logits/{head}", f"{stream}/label"
    weights = np.asarray(positive_weights, np.float32)[None]
    least = float(np.log(threshold) - np.log1p(-threshold))

    def fn(view: View) -> TermResult:
        logits, truth = view[logits_name], view[label_name]
        known = ~jnp.isnan(truth)
        y = jnp.where(known, truth, 0.0)
        logits = logits.astype(jnp.float32)
        each = weights * y * jax.nn.softplus(-logits)
        each += (1 - y) * jax.nn.softplus(logits)
        count = jnp.maximum(known.sum(), 1)
        each = jnp.where(known, each, 0.0).sum(1) * (len(truth) / count)
        guess = known & (logits >= least)
        hits, both = (guess * y).sum(), (guess + y).sum()
        return each, {"micro_f1": 2 * hits / jnp.maximum(both, 1)}

    return Term(
        name="binary_cross_entropy", fn=fn, reads=(logits_name, label_name), task=head
    )
