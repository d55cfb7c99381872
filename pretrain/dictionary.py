"""A dictionary of patches: each whitened patch by the one filter nearest to it.

Coates & Ng, "The Importance of Encoding Versus Training with Sparse Coding and Vector
Quantization" (2011), section 3.1: orthogonal matching pursuit with one filter, which is
k-means of directions ("Learning Feature Representations with K-means" (2012), section
2). There every filter is set to what it was nearest to; here the same error is
descended by the optimiser of the program.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from afterimage.models import ModelConfig, Network, build_encoder
from afterimage.models.layers import Context
from afterimage.models.patches import (
    APART,
    PatchEncoder,
    inverse_contrast,
    patch_rows,
)
from afterimage.pretrain.plain import Pass, Plain, Tree

_UNREAD = {
    "decoder": None,
    "bottleneck": None,
    "loss": "mse",
    "target": "data",
    "gradient_weight": 0.0,
    "laplacian_weight": 0.0,
    "ssim_weight": 0.0,
}
"""Settings of a decoder and of its loss, of which there is none, and their defaults."""


class PatchDictionary(nnx.Module):
    """An encoder of one layer of whitened patches; the filters rebuild them."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.encoder = build_encoder(config, rngs=rngs)

    def rebuilt(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Array, Array, Array]:
        """(images from the rebuilt patches, error [b], use of each filter [b, o]).

        A whitened patch x becomes (x . f) f, for the filter f of the largest |x . f|;
        the error is Σ |x - (x . f) f|^2 / Σ |x|^2 over patches of the image, 0 to 1.
        Patches overlap, and what several say of a pixel is averaged.
        """
        assert isinstance(self.encoder, PatchEncoder)
        layer = self.encoder.stages[0]
        images = images.astype(jnp.float32)
        if train:
            layer.follow(images, Context(train=True))
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
    """Where the patches along a side begin; the last one ends with the image."""
    return np.unique([*range(0, n - k + 1, APART), n - k])


def _laid_out(patches, down, across, shape, k: int) -> Float[Array, "b h w c"]:
    """The mean, at each pixel, of the patches that are laid over it."""
    b, h, w, c = shape
    patches = patches.reshape(b, len(down), len(across), k, k, c)
    total, count = jnp.zeros(shape), np.zeros((1, h, w, 1), np.float32)
    for i in range(k):
        for j in range(k):
            rows, columns = down[:, None] + i, across[None] + j
            total = total.at[:, rows, columns].add(patches[:, :, :, i, j])
            count[:, rows, columns] += 1
    return total / count


class Dictionary(Plain):
    """The error of the rebuilt patches is all that trains; images are only looked at.

    The loss of the images (`reconstruction`) has no gradient: in it slow changes of
    brightness would count for most, from which the whitening frees the patches.
    """

    def mistakes(self) -> list[str]:
        found = [
            f"{name}={value!r} is of a decoder, and objective='dictionary' has none"
            for name, usual in _UNREAD.items()
            if (value := getattr(self.config, name)) != usual
        ]
        if self.model.preset.family != "patches":
            found.append(
                f"model={self.model.name!r}: objective='dictionary' needs "
                "model='conv-patches', whose filters it learns"
            )
        return found

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return PatchDictionary(self.model, rngs=rngs)

    def forward(
        self,
        network: Network,
        params: Tree,
        stats: Tree,
        inputs: Float[Array, "b h w c"],
        key: Array,
        step: Array | None,
    ) -> Pass:
        """One pass; mean and covariance of the patches move in training only."""
        del key
        (output, error, use), stats = network.apply(
            params, stats, inputs, train=step is not None, method="rebuilt"
        )
        measures = {"patch_error": error, "use": use}
        return Pass(output, stats, penalty=error, measures=measures)

    def summarise(self, means: Tree) -> dict[str, Any]:
        """The error, and how many filters no patch was nearest to."""
        dead = (means["use"] == 0).sum()
        return {"patch_error": means["patch_error"], "dead_filters": dead}
