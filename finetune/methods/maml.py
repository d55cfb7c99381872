"""MAML: initial weights from which a few steps on a few images learn new classes.

The gradient of a training step is the mean over a batch's episodes of

    ∇_θ L(φ(θ); Q)                       MAML (Finn et al. 2017)
    ∇_φ L(φ; Q) at φ = φ(θ)              `first_order` (the same)
    as MAML; only the head moves to φ    `only_head`: ANIL (Raghu et al. 2020)

With `tied_head` an episode starts with the same head weights for every class, their
mean (`one_for_all`; Ye & Chao 2022, "How to Train Your MAML to Excel in Few-Shot
Classification", §5). The first step then changes only the head: the gradients it sends
back to the encoder sum to zero.
"""

import dataclasses

import jax.numpy as jnp

from afterimage.finetune.method import METHODS
from afterimage.finetune.methods._episodes import (
    LAST,
    Adaptation,
    InnerSteps,
    Leaves,
    adapted_gradient,
)


@METHODS.add("maml", group="episodes")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MAML(InnerSteps):
    """Initial weights from which a few steps learn new classes (MAML, ANIL)."""

    first_order: bool = False
    """Ignore second derivatives (first-order MAML)."""

    only_head: bool = False
    """Only the head learns within an episode (ANIL)."""

    tied_head: bool = False
    """Start every episode with the same head weights for all classes, their mean (Ye &
    Chao 2022). Finn's MAML has separate weights."""

    def adaptation(self, setup):
        tied = self.tied_head
        return Adaptation(
            steps=self.inner_steps,
            lr=self.inner_lr,
            first_order=self.first_order,
            only="heads/" if self.only_head else "",
            start=(lambda leaves, *_: one_for_all(leaves, LAST)) if tied else None,
        )

    def gradient(self, setup):
        return adapted_gradient(setup.plan.shape, self.adaptation(setup))


def one_for_all(leaves: Leaves, layer: str) -> Leaves:
    """The leaves with `kernel` and `bias` below `layer` averaged over the classes.

    Through differentiation, the mean is what learns.
    """
    own = {name: leaves[f"{layer}/{name}"] for name in ("kernel", "bias")}
    means = {
        f"{layer}/{name}": jnp.broadcast_to(x.mean(-1, keepdims=True), x.shape)
        for name, x in own.items()
    }
    return {**leaves, **means}
