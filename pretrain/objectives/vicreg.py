"""VICReg: alike embeddings of two views, kept from collapse by their moments.

loss = 25 invariance + 25 variance + 1 covariance, for embeddings z and z' of b images,
d numbers each: invariance = mean (z - z')²; variance = mean over numbers j of max(0, 1
- sqrt(Var z_j + 1e-4)), averaged over both views; covariance = Σ_{i≠j} Cov(z_i, z_j)² /
d, summed over both views; moments are unbiased, over the batch. Bardes, Ponce and
LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
Learning" (2022), section 4.1, with the factors of the authors' code.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.fields import at_least_0
from afterimage.models import ModelConfig
from afterimage.models.layers import mean_of
from afterimage.plugins import OBJECTIVES
from afterimage.pretrain.embedding import (
    Counted,
    Embedded,
    Embeddings,
    JointEmbedding,
    product,
)
from afterimage.pretrain.objective import Forward

SPREAD = 1.0
"""Standard deviation of an embedding's numbers below which they are pulled apart."""
_EPSILON = 1e-4


def variance_and_covariance(
    z: Float[Array, "b d"], counted: Counted = None
) -> tuple[Array, Array]:
    """(how far deviations are below 1, the squared covariances' sum / d); scalars."""
    count = jnp.ones(len(z), bool) if counted is None else counted
    n = count.sum()
    z = z - mean_of(z, (0,), count[:, None], keepdims=True)
    z = jnp.where(count[:, None], z, 0)
    covariance = product(z.T, z.T) / jnp.maximum(n - 1, 1)
    variances = jnp.diagonal(covariance)
    lacking = jnp.maximum(0, SPREAD - jnp.sqrt(variances + _EPSILON))
    crossed = jnp.square(covariance).sum() - jnp.square(variances).sum()
    return lacking.mean(), crossed / z.shape[1]


@OBJECTIVES.add("vicreg")
@dataclasses.dataclass(frozen=True, kw_only=True)
class VICReg(JointEmbedding):
    """Make an image's augmented views alike, and embeddings varied and uncorrelated."""

    invariance: float = 25.0
    """Weight of the squared distance between the embeddings of an image's views."""

    variance: float = 25.0
    """Weight of deviations below 1."""

    covariance: float = 1.0
    """Weight of the squared covariances between an embedding's numbers."""

    def problems(self, config: Any, model: ModelConfig) -> list[str]:
        own = at_least_0(self, "invariance", "variance", "covariance")
        return super().problems(config, model) + own

    def embed(self, forward: Forward, views: Float[Array, "b 2 h w c"]) -> Embedded:
        (z, output), stats = self.passed(forward, views)
        return Embedded(z, self.losses(z, forward.counted), stats, output)

    def losses(self, z: Embeddings, counted: Counted = None) -> Float[Array, " b"]:
        """The loss of each image: its own invariance, and what the batch shares."""
        apart = jnp.square(z[:, 0] - z[:, 1]).mean(-1)
        each = [variance_and_covariance(z[:, view], counted) for view in (0, 1)]
        (lacking, crossed), (other_lacking, other_crossed) = each
        shared = self.variance * (lacking + other_lacking) / 2
        shared = shared + self.covariance * (crossed + other_crossed)
        return self.invariance * apart + shared
