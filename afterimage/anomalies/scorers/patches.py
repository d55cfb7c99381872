"""Distance to a memory of patch features of normal images.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (2022, PatchCore),
section 3: locally averaged maps of two levels (3.1), a coreset by greedy k-centres
after a random projection (3.2, algorithm 1), the distance to the nearest member of the
memory (3.3). Not used: the weight of a score by the member's neighbours (equation 7).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from afterimage.anomalies.scorer import (
    Fitted,
    HeatOf,
    Scorer,
    each_batch,
    local_mean,
    middle,
)
from afterimage.console import ProgressBar
from afterimage.encoder import Encoder
from afterimage.fields import at_least_1
from afterimage.plugins import SCORERS

_CANDIDATES = 20_000
"""Most patches of normal images that the memory is chosen from."""
_AT_ONCE = 8
"""Images whose distances to the memory are in memory together."""
_PROJECTED = 32
"""Numbers of a patch while the memory is chosen."""


@SCORERS.add("patches")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Patches(Scorer):
    """Distance to the nearest patch of normal images (PatchCore)."""

    top: float = 0.1
    """Share of an image's places, those with the highest heat, whose mean is its score:
    near 0 the highest alone, for small defects; 1 all, for images that are different as
    a whole."""

    memory: int = 2000
    """Patches kept of the normal images; more are more exact and slower."""

    level: int | None = None
    """Number of the finer of the two feature maps used, from 1, the finest. Default:
    the coarsest with at least 6 places a side."""

    def problems(self) -> list[str]:
        return super().problems() + at_least_1(self, "memory")

    def fit(self, run: str, encoder: Encoder, normal: np.ndarray, seed: int) -> Fitted:
        del run
        rng = np.random.default_rng(seed)
        parts, embed = [], self._embed(encoder)
        for patches in each_batch(encoder, normal, embed):
            rows = patches.reshape(-1, patches.shape[-1])
            most = max(1, _CANDIDATES * len(patches) // len(normal))
            kept = rng.permutation(len(rows))[:most]
            parts.append(rows[np.sort(kept)])
        candidates = np.concatenate(parts)
        kept = coreset(candidates, self.memory, rng)
        return {"memory": candidates[kept]}

    def heat_of(self, encoder: Encoder) -> HeatOf:
        embed = self._embed(encoder)

        def heat(params: Mapping[str, Any], fitted: Fitted, images: Array) -> Array:
            memory = fitted["memory"]
            own = jnp.sum(memory**2, 1)[None, None]

            def one(patches: Float[Array, "h w c"]) -> Float[Array, "h w"]:
                # |x - m|^2, by one product for all places.
                nearest = (own - 2 * (patches @ memory.T)).min(-1)
                return jnp.sqrt(jnp.maximum(nearest + jnp.sum(patches**2, -1), 0))

            # A few at once: large maps have many distances.
            return lax.map(one, embed(params, images), batch_size=_AT_ONCE)

        return heat

    def _embed(self, encoder: Encoder):
        """(params, images) -> the patch features [b, h, w, c] of both levels."""
        info, size = encoder.feature_info, encoder.preprocessing.image_size
        finer = middle(info, size) if self.level is None else self.level - 1
        finer = max(0, min(finer, len(info) - 2))
        levels = range(len(info))[finer : finer + 2]

        def embed(params: Mapping[str, Any], images: Array) -> Array:
            maps = encoder.apply_maps(params, images)
            chosen = [local_mean(maps[level]) for level in levels]
            shape = chosen[0].shape[:3]
            chosen = [
                jax.image.resize(one, (*shape, one.shape[-1]), "bilinear")
                for one in chosen
            ]
            return jnp.concatenate(chosen, -1)

        return embed


def coreset(
    vectors: Float[np.ndarray, "n c"], size: int, rng: np.random.Generator
) -> Int[np.ndarray, " m"]:
    """Rows that cover all others: greedy k-centres, m = min(size, n).

    The next row is always the one farthest from those chosen so far, in a random
    projection to few numbers.
    """
    size = min(size, len(vectors))
    if size == len(vectors):
        return np.arange(size)
    projection = rng.standard_normal((vectors.shape[1], _PROJECTED), np.float32)
    points = vectors @ projection if vectors.shape[1] > _PROJECTED else vectors
    norms = (points**2).sum(1)
    chosen = np.empty(size, np.int64)
    chosen[0] = rng.integers(len(points))
    nearest = np.full(len(points), np.inf, np.float32)
    with ProgressBar(size, "choosing patches") as progress:
        for place in range(size):
            if place:
                chosen[place] = nearest.argmax()
            centre = points[chosen[place]]
            found = norms - 2 * (points @ centre) + centre @ centre
            np.minimum(nearest, found, out=nearest)
            nearest[chosen[place]] = -np.inf
            progress.add(1)
    return np.sort(chosen)
