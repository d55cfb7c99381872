"""SimCLR: find the other view of the same image among the views of all images.

NT-Xent: for unit embeddings u of the 2b views of a batch, and u' the other view of the
same image, loss(u) = -log(e^(u·u'/τ) / Σ_v e^(u·v/τ)) over all v except u itself. Chen
et al., "A Simple Framework for Contrastive Learning of Visual Representations" (2020),
equation 1. A loss of log(2b - 1) means that no view is recognised.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.models import ModelConfig
from afterimage.plugins import OBJECTIVES
from afterimage.pretrain.embedding import (
    Counted,
    Embedded,
    Embeddings,
    JointEmbedding,
    product,
    unit,
)
from afterimage.pretrain.objective import Forward


def nt_xent(
    z: Embeddings, temperature: float, counted: Counted = None
) -> Float[Array, " b"]:
    """The mean loss of the two views of each image, in nats.

    Images that do not count are no candidates for others.
    """
    u = unit(z)
    positive = jnp.sum(u[:, 0] * u[:, 1], axis=-1) / temperature
    rows = u.reshape(-1, u.shape[-1])
    scores = product(rows, rows) / temperature
    wrong = jnp.eye(len(rows), dtype=bool)
    if counted is not None:
        wrong = wrong | ~jnp.repeat(counted, 2)[None]
    total = jax.nn.logsumexp(jnp.where(wrong, -jnp.inf, scores), axis=-1)
    return total.reshape(-1, 2).mean(-1) - positive


@OBJECTIVES.add("simclr")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SimCLR(JointEmbedding):
    """Tell each image's augmented views apart from those of other images."""

    temperature: float = 0.2
    """Divides the cosine similarities. Lower values weigh the most similar other images
    more; the paper's best are 0.1 to 0.5, depending on the length of training."""

    def problems(self, config: Any, model: ModelConfig) -> list[str]:
        found = super().problems(config, model)
        if not self.temperature > 0:
            found.append(f"temperature={self.temperature}: must be above 0")
        return found

    def embed(self, forward: Forward, views: Float[Array, "b 2 h w c"]) -> Embedded:
        (z, output), stats = self.passed(forward, views)
        losses = nt_xent(z, self.temperature, forward.counted)
        return Embedded(z, losses, stats, output)
