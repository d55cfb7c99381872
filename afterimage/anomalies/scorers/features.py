"""What an autoencoder of frozen features, fitted to normal images, cannot reconstruct.

Ndiour et al., "FRE: A Fast Method For Anomaly Detection And Segmentation" (2022): the
features of a layer are projected onto the principal components of those of normal
images and back, the best linear autoencoder; the error's norm is the score, and its
size at each place the map.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from afterimage.anomalies.scorer import (
    Fitted,
    HeatOf,
    Scorer,
    each_batch,
    local_mean,
    middle,
)
from afterimage.encoder import Encoder
from afterimage.evaluation.probes import principal
from afterimage.plugins import SCORERS

_SIDE = 8
"""Most places a side of the features: larger maps are reduced to it."""


@SCORERS.add("features")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Features(Scorer):
    """What the principal components of normal features leave out (FRE)."""

    top: float = 0.3
    """Share of an image's places, those with the highest heat, whose mean is its score:
    near 0 the highest alone, for small defects; 1 all, for images that are different as
    a whole."""

    keep: float = 0.95
    """Share of the normal features' variance that the principal components keep."""

    level: int | None = None
    """Number of the feature map used, from 1, the finest. Default: the coarsest with at
    least 6 places a side."""

    def problems(self) -> list[str]:
        found = super().problems()
        if not 0 < self.keep < 1:
            found.append(f"keep={self.keep}: must be a share in (0, 1)")
        return found

    def fit(self, run: str, encoder: Encoder, normal: np.ndarray, seed: int) -> Fitted:
        del run, seed
        parts = each_batch(encoder, normal, self._grid(encoder))
        x = np.concatenate([part.reshape(len(part), -1) for part in parts])
        mean = x.mean(0)
        energy, _, basis = principal((x - mean).astype(np.float64))
        order = np.argsort(-energy)
        shares = np.cumsum(energy[order]) / max(energy.sum(), 1e-12)
        count = min(1 + int((shares < self.keep).sum()), len(order))
        basis = basis[:, order[:count]].astype(np.float32)
        return {"mean": mean, "basis": basis}

    def heat_of(self, encoder: Encoder) -> HeatOf:
        grid = self._grid(encoder)

        def heat(params: Mapping[str, Any], fitted: Fitted, images: Array) -> Array:
            maps = grid(params, images)
            x = maps.reshape(len(maps), -1) - fitted["mean"][None]
            rest = x - (x @ fitted["basis"]) @ fitted["basis"].T
            return jnp.square(rest).reshape(maps.shape).mean(-1)

        return heat

    def _grid(self, encoder: Encoder):
        """(params, images) -> the features [b, h, w, c], of at most 8 x 8 places."""
        info, size = encoder.feature_info, encoder.preprocessing.image_size
        level = middle(info, size) if self.level is None else self.level - 1
        level = min(level, len(info) - 1)

        def grid(params: Mapping[str, Any], images: Array) -> Array:
            maps = local_mean(encoder.apply_maps(params, images)[level])
            b, h, w, c = maps.shape
            shape = (b, min(h, _SIDE), min(w, _SIDE), c)
            # Antialiased: means over the pixels of a place.
            return jax.image.resize(maps, shape, "bilinear")

        return grid
