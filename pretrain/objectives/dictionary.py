"""A dictionary of patches: represents each whitened patch by its nearest filter.

Coates & Ng, "The Importance of Encoding Versus Training with Sparse Coding and Vector
Quantization" (2011), section 3.1: orthogonal matching pursuit with one filter, which is
k-means of directions ("Learning Feature Representations with K-means" (2012), section
2). There each filter is set from the patches it was nearest to; here the optimiser
minimises the same error.

The error of the rebuilt patches is the whole training signal. The loss of the images
(`reconstruction`) has no gradient: slow changes of brightness, which the whitening
removes from the patches, would dominate it.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from afterimage.models import ModelConfig, build_encoder
from afterimage.models.encoders.patches import (
    APART,
    PatchEncoder,
    inverse_contrast,
    patch_rows,
)
from afterimage.models.layers import PassInfo
from afterimage.plugins import OBJECTIVES
from afterimage.pretrain.objective import Forward, Pass, Reconstruction, Tree


class PatchDictionary(nnx.Module):
    """A one-layer encoder of whitened patches; its filters rebuild them."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.encoder = build_encoder(config, rngs=rngs)

    def rebuilt(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Array, Array, Array]:
        """(images from the rebuilt patches, error [b], use of each filter [b, o]).

        A whitened patch x becomes (x . f) f, for the filter f of the largest |x . f|;
        the error is Σ |x - (x . f) f|^2 / Σ |x|^2 over patches of the image, 0 to 1.
        Patches overlap; their values at a pixel are averaged.
        """
        assert isinstance(self.encoder, PatchEncoder)
        layer = self.encoder.stages[0]
        images = images.astype(jnp.float32)
        if train:
            layer.follow(images, PassInfo(train=True))
        k, filters = layer.k, layer.filters
        down, across = (_starts(n, k) for n in images.shape[1:3])
        rows = patch_rows(images, k)[:, down][:, :, across]
        contrast = inverse_contrast(images, k)[:, down][:, :, across]
        level, mean = rows.mean(-1, keepdims=True), layer.mean[...][None, None, None]
        white = (rows - level) * contrast - mean
        white = white @ layer.whitening[...]
        answers = white @ filters
        chosen = jnp.argmax(jnp.abs(answers), -1)
        size = jnp.take_along_axis(answers, chosen[..., None], -1)
        found = size * filters.T[chosen]
        sites = (1, 2, 3)
        energy = jnp.square(white).sum(sites)
        error = jnp.square(white - found).sum(sites) / (energy + 1e-6)
        use = jax.nn.one_hot(chosen, filters.shape[1]).mean((1, 2))
        found = jax.lax.stop_gradient(found)
        patches = found @ jnp.linalg.inv(layer.whitening[...])
        patches = (patches + mean) / contrast + level
        return _laid_out(patches, down, across, images.shape, k), error, use


def _starts(n: int, k: int) -> np.ndarray:
    """Start positions of the patches along a side; the last one ends with the image."""
    return np.unique([*range(0, n - k + 1, APART), n - k])


def _laid_out(patches, down, across, shape, k: int) -> Float[Array, "b h w c"]:
    """The mean, at each pixel, of the patches that cover it."""
    b, h, w, c = shape
    patches = patches.reshape(b, len(down), len(across), k, k, c)
    total, count = jnp.zeros(shape), np.zeros((1, h, w, 1), np.float32)
    for i in range(k):
        for j in range(k):
            rows, columns = down[:, None] + i, across[None] + j
            total = total.at[:, rows, columns].add(patches[:, :, :, i, j])
            count[:, rows, columns] += 1
    return total / count


@OBJECTIVES.add("dictionary")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dictionary(Reconstruction):
    """Rebuild each whitened patch by one filter; for model conv-patches."""

    default_vector: ClassVar[tuple[str, str]] = ("grid", "standardise")
    joins_patches: ClassVar[bool] = False  # its features are of patches already

    def problems(self, config: Any, model: ModelConfig) -> list[str]:
        found = super().problems(config, model)
        settings = {"decoder": config.decoder, "bottleneck": config.bottleneck}
        found += [
            f"{name}={value!r}: has no effect, as there is no decoder"
            for name, value in settings.items()
            if value is not None
        ]
        if not issubclass(model.encoder, PatchEncoder):
            found.append(
                f"model={model.name!r}: must be 'conv-patches', whose filters this "
                "objective learns"
            )
        return found

    def build(self, model: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        return PatchDictionary(model, rngs=rngs)

    def forward(self, forward: Forward, inputs: Float[Array, "b h w c"]) -> Pass:
        """Mean and covariance of the patches are updated in training only."""
        (output, error, use), stats = forward(inputs, method="rebuilt")
        measures = {"patch_error": error, "use": use}
        return Pass(output, stats, penalty=error, measures=measures)

    def diagnose(self, means: Tree) -> dict[str, Any]:
        """The error, and how many filters no patch was nearest to."""
        dead = (means["use"] == 0).sum()
        return {"patch_error": means["patch_error"], "dead_filters": dead}
