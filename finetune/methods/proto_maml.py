"""Proto-MAML: MAML with a head that starts as the nearest-class-mean classifier.

The head is computed from the class means of the support, as a function of the encoder,
and is differentiated through (Triantafillou et al. 2020, "Meta-Dataset", §3).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.checkpoints.trees import unflatten
from afterimage.finetune.method import METHODS
from afterimage.finetune.methods._episodes import (
    LAST,
    Adaptation,
    InnerSteps,
    Leaves,
    adapted_gradient,
)
from afterimage.finetune.methods.prototypes import class_means
from afterimage.finetune.tasks._sampler import Shape
from afterimage.models.classifier import HEAD


@METHODS.add("proto-maml", group="episodes")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtoMAML(InnerSteps):
    """As maml, starting from each episode's nearest class mean (Proto-MAML)."""

    def problems(self, config):
        found = super().problems(config)
        if config.head != "linear":
            found.append(
                f"head={config.head!r}: must be linear, as the head starts as a "
                "nearest-class-mean classifier"
            )
        return found

    def adaptation(self, setup):
        read, shape = setup.classifier, setup.plan.shape

        def start(leaves: Leaves, stats: Any, support: Any) -> Leaves:
            """The head from the class means of this support, before augmentation."""
            params = unflatten(leaves)
            images = read.preprocessing.normalise(support["image"])
            maps, _ = read.maps(params, stats, images)
            features = read.head_features(params, stats, maps, HEAD)
            kernel, bias = nearest_mean(features, shape)
            return {**leaves, f"{LAST}/kernel": kernel, f"{LAST}/bias": bias}

        return Adaptation(steps=self.inner_steps, lr=self.inner_lr, start=start)

    def gradient(self, setup):
        return adapted_gradient(setup.plan.shape, self.adaptation(setup))


def nearest_mean(
    support: Float[Array, "s d"], shape: Shape
) -> tuple[Float[Array, "d ways"], Float[Array, " ways"]]:
    """(2 c_k / d, −‖c_k‖² / d): the linear layer that predicts the nearest c_k.

    Its softmax is that of −‖f(x) − c_k‖² / d, as ‖f(x)‖² is the same for all classes
    (Triantafillou et al. 2020, "Meta-Dataset", §3, without the d). Proto-MAML starts
    from it in each episode. Without the division, distances of d standardised features
    are of order d, and a step at a rate that suits a head destroys the encoder.
    """
    prototypes = class_means(support, shape)
    width = prototypes.shape[-1]
    return 2 * prototypes.T / width, -jnp.square(prototypes).sum(-1) / width
