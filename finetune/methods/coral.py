"""CORAL: aligns the covariances of the features of both domains.

‖C_s − C_t‖²_F / 4d², C the covariance with n − 1 of d features (Sun & Saenko 2016,
"Deep CORAL: correlation alignment for deep domain adaptation"). It compares whole
batches: the loss is a scalar.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.finetune.method import METHODS
from afterimage.finetune.methods._alignment import FEATURES, Alignment
from afterimage.training.stage import Term, TermResult, View


@METHODS.add("coral", group="target")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CORAL(Alignment):
    """Aligns the covariances of the features of both domains (CORAL)."""

    weight: float = 10.0
    """Weight relative to the loss of the labels."""

    def terms(self, setup, phase=0):
        return [coral_term(self.weight)]


def coral_term(weight: float = 1.0) -> Term:
    """`coral` between the head's features of both domains."""

    def fn(view: View) -> TermResult:
        return coral(view[FEATURES[0]], view[FEATURES[1]]), {}

    return Term(name="coral", fn=fn, reads=FEATURES, weight=weight, encoder_only=True)


def coral(source: Float[Array, "n d"], target: Float[Array, "m d"]) -> Float[Array, ""]:
    """‖C_s − C_t‖²_F / 4d², C the covariance with n − 1 (Sun & Saenko 2016)."""

    def covariance(x: Array) -> Array:
        x = x - x.mean(0, keepdims=True)
        return x.T @ x / max(len(x) - 1, 1)

    difference = covariance(source) - covariance(target)
    return jnp.sum(jnp.square(difference)) / (4 * source.shape[1] ** 2)
