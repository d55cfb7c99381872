"""JMMD: a kernel distance between features and predictions of both domains together.

As MMD with k = k_features · k_probabilities (Long et al. 2017, "Deep transfer learning
with joint adaptation networks"): unlike MMD it detects swapped classes.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.finetune.method import METHODS
from afterimage.finetune.methods._alignment import FEATURES, LOGITS, Alignment
from afterimage.finetune.methods._discrepancy import (
    gaussians,
    square_distances,
    statistic,
)
from afterimage.training.stage import Term, TermResult, View

JOINT_SIGMA = 0.92


@METHODS.add("jmmd", group="target")
@dataclasses.dataclass(frozen=True, kw_only=True)
class JMMD(Alignment):
    """A kernel distance between features and predictions together (JMMD)."""

    def terms(self, setup, phase=0):
        return [jmmd_term(self.weight)]


def jmmd_term(weight: float = 1.0) -> Term:
    """`jmmd` between the head's features and predictions of both domains."""

    def fn(view: View) -> TermResult:
        source, target = (
            (view[name], jax.nn.softmax(view[scores]))
            for name, scores in zip(FEATURES, LOGITS)
        )
        return jmmd(source, target), {}

    reads = (*FEATURES, *LOGITS)
    return Term(name="jmmd", fn=fn, reads=reads, weight=weight, encoder_only=True)


def jmmd(
    source: Sequence[Float[Array, "n _d"]], target: Sequence[Float[Array, "m _d"]]
) -> Float[Array, ""]:
    """JMMD² of the joint distribution of (features, class probabilities).

    As `mmd` with k = k_features · k_probabilities (Long et al. 2017, "Deep transfer
    learning with joint adaptation networks"): Gaussians by the rule of `gaussians` on
    the features, one with σ = 0.92 on the probabilities.
    """
    features, probabilities = (jnp.concatenate(p) for p in zip(source, target))
    square = square_distances(probabilities, probabilities)
    kernel = gaussians(square_distances(features, features))
    kernel = kernel * jnp.exp(-square / (2 * JOINT_SIGMA**2))
    return statistic(kernel, len(source[0]))
