"""Reptile: moves the initial weights towards the result of each episode's steps.

The gradient of a training step is the mean over a batch's episodes of θ − φ(θ), with φ
from support and queries together (Nichol et al. 2018, "On first-order meta-learning
algorithms").
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from afterimage.finetune.method import METHODS
from afterimage.finetune.methods._episodes import (
    Adaptation,
    InnerSteps,
    Loss,
    over_episodes,
)
from afterimage.finetune.tasks._sampler import Shape
from afterimage.training.step import Estimator


@METHODS.add("reptile", group="episodes")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reptile(InnerSteps):
    """Moves the weights towards the result of each episode's steps (Reptile)."""

    def adaptation(self, setup):
        return dataclasses.replace(super().adaptation(setup), first_order=True)

    def gradient(self, setup):
        return reptile_gradient(setup.plan.shape, self.adaptation(setup))


def reptile_gradient(
    shape: Shape, adaptation: Adaptation, *, vectorised: bool | None = None
) -> Estimator:
    """θ − φ(θ), φ adapted to all images of the episode; the value is L(φ; all)."""

    def estimator(loss: Loss) -> Callable[..., Any]:
        def one(leaves, stats, episode, key):
            adapted = adaptation(loss, leaves, stats, episode, key)
            value, (metrics, _) = loss(adapted, stats, episode, key)
            back = jax.tree.map(jnp.subtract, leaves, adapted)
            return (value, (metrics, stats)), back

        return over_episodes(one, shape, vectorised)

    return estimator
