"""Adversaries: a discriminator learns to tell two domains apart; the encoder learns, by
a reversed gradient, to prevent it.

The discriminator has two classes, source 0 and target 1, with two logits under one
softmax. (A single unit under a softmax is always 1, so it would learn nothing.)
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afterimage.models import layers
from afterimage.training.stage import Term, TermResult, View

HIDDEN = 128


@jax.custom_jvp
def reverse_gradient(x: Array, scale: Array) -> Array:
    """x, with the derivative −scale · dx (Ganin et al. 2016, gradient reversal)."""
    del scale
    return x


@reverse_gradient.defjvp
def _reversed(primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, scale = primals
    # Linear in the tangent, so that it transposes: grad, jvp and vmap all work.
    return x, -scale * tangents[0]


def ramp(progress: Array) -> Array:
    """λ = 2 / (1 + e^(−10p)) − 1 in [0, 1), p in [0, 1] (Ganin et al. 2016).

    The factor on the reversed gradient; the discriminator learns at full rate.
    """
    return 2.0 / (1.0 + jnp.exp(-10.0 * progress)) - 1.0


class Discriminator(nnx.Module):
    """Two hidden layers, two logits: source 0, target 1. Its loss starts at log 2."""

    def __init__(self, width: int, hidden: int = HIDDEN, *, rngs: nnx.Rngs):
        self.first = layers.Dense(width, hidden, rngs=rngs)
        self.second = layers.Dense(hidden, hidden, rngs=rngs)
        self.last = layers.Dense(hidden, 2, init=layers.trunc_normal, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b d"], *, train: bool = False
    ) -> Float[Array, "b 2"]:
        """Logits."""
        del train
        return self.last(jax.nn.relu(self.second(jax.nn.relu(self.first(x)))))


def against(logits: Array, target: bool) -> Array:
    """Cross-entropy [B] of the domain."""
    return -jax.nn.log_softmax(logits)[:, int(target)]


def told_apart(source: Array, target: Array) -> Array:
    """Share of examples whose domain the discriminator recognises; 0.5 is chance."""
    right = (source.argmax(-1) == 0).mean() + (target.argmax(-1) == 1).mean()
    return right / 2


def adversary(
    name: str,
    fn: Callable[[View], TermResult],
    reads: Iterable[str],
    params: Mapping[str, Any],
    *,
    weight: float = 1.0,
) -> Term:
    """A term that tells target images from labelled ones, with λ from `ramp`."""
    return Term(
        name=name,
        fn=fn,
        reads=tuple(dict.fromkeys(("params", "progress", *reads))),
        weight=weight,
        params=params,
        adversary_of="target",
        encoder_only=True,
    )
