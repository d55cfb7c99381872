"""Dropout before the head.

Each feature is set to zero with probability p in training, and otherwise divided by
1 - p (Srivastava et al. 2014, "Dropout", section 10: inverted). Features are
standardised first, so zero is the mean of a feature.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.finetune.method import METHODS, Method
from afterimage.training.stage import Context


@METHODS.add("dropout")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropout(Method):
    """Sets features to zero at random before the head."""

    needs_classes: ClassVar[bool] = False

    rate: float = 0.2
    """Probability that a feature of a training image is set to zero."""

    def problems(self, config):
        if not 0 < self.rate < 1:
            return [f"rate={self.rate}: must be between 0 and 1"]
        return []

    def providers(self, setup, known, now):
        def logits(number: int, head: str) -> Callable[[Context], Any]:
            network, own = setup.classifier.heads[head][1], now.params["heads"][head]
            key = jax.random.fold_in(now.key_of(self), number)

            def rule(ctx: Context) -> Array:
                features = dropped(key, ctx[f"train/features/{head}"], self.rate)
                return network.apply(own, {}, features)[0]

            return rule

        heads = enumerate(setup.heads)
        return {f"train/logits/{head}": logits(n, head) for n, head in heads}


def dropped(
    key: Array, features: Float[Array, "b d"], rate: float
) -> Float[Array, "b d"]:
    """Zero with probability `rate`, else x / (1 - rate)."""
    keep = jax.random.bernoulli(key, 1 - rate, features.shape)
    return jnp.where(keep, features / (1 - rate), 0)
