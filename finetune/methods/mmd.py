"""MMD: a kernel distance between the features of both domains.

MMD² = E k(s, s') + E k(t, t') − 2 E k(s, t), k a sum of Gaussians (Gretton et al. 2012,
"A kernel two-sample test"; as a loss Long et al. 2015, "Learning transferable features
with deep adaptation networks"). It compares pairs: the loss is one scalar per batch.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.finetune.method import METHODS
from afterimage.finetune.methods._alignment import FEATURES, Alignment
from afterimage.finetune.methods._discrepancy import (
    ALPHAS,
    gaussians,
    square_distances,
    statistic,
)
from afterimage.training.stage import Term, TermResult, View


@METHODS.add("mmd", group="target")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MMD(Alignment):
    """A kernel distance between the features of both domains (MMD)."""

    def terms(self, setup, phase=0):
        return [mmd_term(self.weight)]


def mmd_term(weight: float = 1.0) -> Term:
    """`mmd` between the head's features of both domains."""

    def fn(view: View) -> TermResult:
        return mmd(view[FEATURES[0]], view[FEATURES[1]]), {}

    return Term(name="mmd", fn=fn, reads=FEATURES, weight=weight, encoder_only=True)


def mmd(
    source: Float[Array, "n d"],
    target: Float[Array, "m d"],
    alphas: Sequence[float] = ALPHAS,
) -> Float[Array, ""]:
    """MMD² = E k(s, s') + E k(t, t') − 2 E k(s, t), k a sum of Gaussians.

    The V-statistic (Gretton et al. 2012): means over all pairs, including i = j, so it
    is a squared norm and never negative.
    """
    both = jnp.concatenate([source, target])
    return statistic(gaussians(square_distances(both, both), alphas), len(source))
