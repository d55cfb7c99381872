"""One wide convolution over whitened patches: a dictionary of image patches.

Coates, Lee & Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature
Learning" (2011): small patches are contrast-normalised and whitened, many filters are
applied at every pixel, and regions are averaged. A soft threshold replaces its
"triangle", as in Coates & Ng, "The Importance of Encoding Versus Training with Sparse
Coding and Vector Quantization" (2011).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Shaped

from afterimage.models import layers, ops
from afterimage.models.encoder import (
    EncoderNetwork,
    Maps,
    ModelConfig,
    Switches,
    make_feature_info,
)
from afterimage.models.layers import PassInfo
from afterimage.plugins import ENCODERS

# Added to a patch's variance, in standardised pixels: 10 on the scale of 0 to 255.
CONTRAST_FLOOR = 0.0025
WHITENING_FLOOR = 0.1
THRESHOLD = 0.25
# Number of batches after which the plain mean becomes a running mean.
_MEMORY = 100.0
# Pixels between the sampled patches: neighbours are redundant.
APART = 3


class WhitenedPatches(nnx.Module):
    """k x k patches around every pixel: contrast-normalised, whitened, filtered.

    p <- (p - mean p) / sqrt(var p + 0.0025); x = (C + 0.1 I)^(-1/2) (p - m), with mean
    m and covariance C of the patches seen in training; out = max(0, x . f - 0.25) for
    every filter f of unit length, averaged over squares of `stride` pixels. A patch
    that is not wholly inside the image gives 0.

    m and C are statistics: they are updated only if `context.train`, from patches whose
    pixels are all visible.
    """

    def __init__(self, i: int, o: int, k: int, stride: int, *, rngs: nnx.Rngs):
        self.k, self.stride = k, stride
        d = k * k * i
        self.kernel = nnx.Param(layers.he_normal(rngs, (d, o), d))
        self.mean = nnx.BatchStat(layers.constant(0.0, d))
        eye = layers.identity(d, like=self.kernel[...])
        self.covariance = nnx.BatchStat(eye)
        self.whitening = nnx.BatchStat(eye)
        self.batches = nnx.BatchStat(layers.constant(0.0))

    def __call__(
        self, x: Float[Array, "b h w i"], context: PassInfo
    ) -> Float[Array, "b H W o"]:
        x = context.hide(x)
        if context.train:
            self.follow(x, context)
        kernel = self.whitening[...] @ self.filters
        shift = -(self.mean[...][None] @ kernel) - THRESHOLD
        # Subtract the patch mean here, once, instead of from every patch.
        kernel = kernel - kernel.mean(0, keepdims=True)
        respond = functools.partial(
            self._respond, kernel=kernel.astype(x.dtype), shift=shift.astype(x.dtype)
        )
        # On CPU one image at a time stays within the caches, which is faster
        # (tests/test_models_patches.py guards it). So does recomputing what the
        # gradient needs.
        one = jax.checkpoint(lambda image: respond(image[None])[0])
        return ops.by_platform(functools.partial(lax.map, one), respond, x)

    @property
    def filters(self) -> Float[Array, "d o"]:
        """The unit-length filters for whitened patches."""
        kernel = self.kernel[...]
        return kernel * lax.rsqrt(jnp.square(kernel).sum(0, keepdims=True) + 1e-12)

    def _respond(self, x: Array, kernel: Array, shift: Array) -> Array:
        rows, scale = patch_rows(x, self.k), inverse_contrast(x, self.k).astype(x.dtype)
        b, h, w, d = rows.shape
        found = (rows.reshape(-1, d) @ kernel) * scale.reshape(-1, 1) + shift
        found = jax.nn.relu(found).reshape(b, h, w, -1)
        # Back to one value per pixel.
        pad = ((self.k - 1) // 2, self.k // 2)
        found = jnp.pad(found, ((0, 0), pad, pad, (0, 0)))
        return _block_means(found, self.stride)

    def follow(self, x: Float[Array, "b h w i"], context: PassInfo) -> None:
        """Update the running moments with some patches of these images."""
        some = (slice(None), slice(None, None, APART), slice(None, None, APART))
        x = lax.stop_gradient(x).astype(jnp.float32)
        rows = patch_rows(x, self.k)[some]
        rows = (rows - rows.mean(-1, keepdims=True)) * inverse_contrast(x, self.k)[some]
        visible = context.visible(x)
        if visible is None:
            shown = jnp.ones((*rows.shape[:3], 1), jnp.float32)
        else:
            shown = patch_rows(visible.astype(jnp.float32), self.k)[some]
            shown = shown.min(-1, keepdims=True)
        rows, shown = rows.reshape(-1, rows.shape[-1]), shown.reshape(-1, 1)
        count = jnp.maximum(shown.sum(), 1)
        mean = (shown * rows).sum(0) / count
        rows = shown * (rows - mean[None])
        covariance = rows.T @ rows / count
        # An image with no wholly visible patch contributes nothing.
        one = jnp.minimum(shown.sum(), 1)
        batches = jnp.minimum(self.batches[...] + one, _MEMORY)
        share = one / jnp.maximum(batches, 1)
        self.batches[...] = batches
        self.mean[...] += share * (mean - self.mean[...])
        self.covariance[...] += share * (covariance - self.covariance[...])
        energy, basis = jnp.linalg.eigh(self.covariance[...])
        scale = lax.rsqrt(jnp.maximum(energy, 0) + WHITENING_FLOOR)
        self.whitening[...] = (basis * scale[None]) @ basis.T


def patch_rows(x: Shaped[Array, "b h w c"], k: int) -> Shaped[Array, "b _h _w d"]:
    """All k x k patches inside the image: [b, h - k + 1, w - k + 1, k k c]."""
    h, w = x.shape[1] - k + 1, x.shape[2] - k + 1
    # Along rows first: XLA:CPU copies few long pieces faster than many short ones.
    x = jnp.concatenate([x[:, :, n : n + w] for n in range(k)], -1)
    x = ops.by_platform(lax.optimization_barrier, lambda x: x, x)
    return jnp.concatenate([x[:, n : n + h] for n in range(k)], -1)


def inverse_contrast(x: Float[Array, "b h w c"], k: int) -> Float[Array, "b _h _w 1"]:
    """1 / sqrt(variance + floor) of each k x k patch, in float32."""
    x = x.astype(jnp.float32)
    # Subtracting the image mean first reduces cancellation in E x^2 - (E x)^2.
    x = x - x.mean((1, 2, 3), keepdims=True)
    h, w = x.shape[1] - k + 1, x.shape[2] - k + 1
    powers = [x.mean(-1, keepdims=True), jnp.square(x).mean(-1, keepdims=True)]
    sums = jnp.concatenate(powers, -1)
    sums = _sum([sums[:, :, n : n + w] for n in range(k)])
    means = _sum([sums[:, n : n + h] for n in range(k)]) / k**2
    variance = jnp.maximum(means[..., 1:] - jnp.square(means[..., :1]), 0)
    return lax.rsqrt(variance + CONTRAST_FLOOR)


def _block_means(x: Float[Array, "b h w c"], r: int) -> Float[Array, "b H W c"]:
    """Means of r x r squares; squares cut off at the edge average what they have."""
    b, h, w, c = x.shape
    x = ops.pad_to_multiple(x, r)
    rows, columns = -(-h // r), -(-w // r)
    # Add slices one by one: XLA:CPU takes twice as long to reduce over such axes.
    x = x.reshape(b, rows, r, columns * r, c)
    x = _sum([x[:, :, n] for n in range(r)]).reshape(b, rows, columns, r, c)
    total = _sum([x[:, :, :, n] for n in range(r)])
    tall = np.minimum(h - r * np.arange(rows), r)
    wide = np.minimum(w - r * np.arange(columns), r)
    counts = jnp.asarray(tall[:, None] * wide[None], x.dtype)
    return total / counts[None, :, :, None]


def _sum(parts: list[Array]) -> Array:
    return functools.reduce(jnp.add, parts)


# Coates, Lee & Ng use 1,600 filters; 512 keep a probe on a 2x2 grid fast.
@ENCODERS.add("conv-patches")
class PatchEncoder(EncoderNetwork):
    """one wide convolution over whitened 6x6 patches; strong when frozen"""

    widths, depths, stems = (512,), (0,), (4, 4)
    side = 6
    default_norm = "none"

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        (width,), stride = config.widths, config.stem_stride
        stage = WhitenedPatches(config.channels, width, self.side, stride, rngs=rngs)
        self.stages = nnx.List([stage])
        self.feature_info = make_feature_info(config, config.stem_stride, config.widths)

    def encode(self, images: Array, context: PassInfo) -> tuple[Maps, Switches]:
        return [context.hide(self.stages[0](images, context))], []
