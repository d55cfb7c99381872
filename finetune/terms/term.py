"""A term: one summand of what a phase minimises, over a shared context.

A phase's loss is Σ_t w_t(s) · mean_i ω_i ℓ_t(i), with s the steps since the phase began
and ω the weights of examples where a term has them. Terms give one value per example
and leave the mean to the phase, so that a weighting of examples composes with any of
them; a loss of pairs of examples (a domain distance) gives a scalar.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from afterimage.finetune.context import Context, View

TermResult = tuple[Array, dict[str, Array]]


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand of a phase's loss.

    `fn(view)` gives float32 [B] (one value per example) or a scalar (a loss of the
    batch as a whole), and metrics; it reads the names in `reads` and no others.
    `weight` is a number or a function of the steps since the phase began.
    """

    name: str
    fn: Callable[[View], TermResult]
    reads: tuple[str, ...]
    weight: float | Callable[[Array], Array] = 1.0
    examples: str | None = None
    """The name of the weights of examples, ω [B], e.g. `train/weight`."""
    params: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Its own parameters, initial values: `terms/NAME/…` in the tree. What lies under
    `fixed/` does not learn."""
    adversary_of: str | None = None
    """The stream whose features it learns to tell apart; one adversary a stream."""
    penalises: str | None = None
    """Paths (a regular expression) that it pulls somewhere by a quadratic penalty:
    weight decay must not pull the same leaves elsewhere."""
    task: str | None = None
    """The task it teaches: the tasks' gradients may be weighed against each other."""
    encoder_only: bool = False
    """It acts through the encoder alone: left out of phases in which that is frozen."""

    def value(self, context: Context, step: Array) -> TermResult:
        """(w(s) · mean ω ℓ, metrics); the unweighted mean is the metric `NAME`."""
        each, metrics = self.fn(context.only(self.reads, self.name))
        metrics = {self.name: jnp.mean(each), **metrics}
        if self.examples is not None:
            each = each * context[self.examples]
        weight = self.weight(step) if callable(self.weight) else self.weight
        return weight * jnp.mean(each), metrics
