"""Normalisation layers. Statistics are float32 whatever the input's dtype.

`rms`, `layer` and `group` keep no state: an image's result does not depend on its
batch, and nothing moves when frozen. `batch` is for imported weights and references.
`rms` and `layer` do not mix sites; `group` and `batch` do, and leave masked ones out.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from afterimage.models import ops
from afterimage.models.layers import Context, constant, mean_of

EPSILON = 1e-6


class RMSNorm(nnx.Module):
    """x / sqrt(mean_c x^2 + eps) * scale + bias, per pixel (Zhang & Sennrich 2019).

    With a bias, since the convolutions before it have none.
    """

    def __init__(self, c: int, *, scale: float = 1.0):
        self.scale = nnx.Param(constant(scale, c))
        self.bias = nnx.Param(constant(0.0, c))

    def __call__(
        self, x: Float[Array, "*n c"], context: Context
    ) -> Float[Array, "*n c"]:
        wide = x.astype(jnp.float32)
        power = jnp.square(wide).mean(-1, keepdims=True)
        wide = wide * lax.rsqrt(power + EPSILON)
        return (
            wide * ops.per_channel(self.scale[...], x)
            + ops.per_channel(self.bias[...], x)
        ).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean_c) / sqrt(var_c + eps) * scale + bias, per pixel."""

    def __init__(self, c: int, *, scale: float = 1.0):
        self.scale = nnx.Param(constant(scale, c))
        self.bias = nnx.Param(constant(0.0, c))

    def __call__(
        self, x: Float[Array, "*n c"], context: Context
    ) -> Float[Array, "*n c"]:
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(-1, keepdims=True)
        wide = wide * lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + EPSILON)
        return (
            wide * ops.per_channel(self.scale[...], x)
            + ops.per_channel(self.bias[...], x)
        ).astype(x.dtype)


class GroupNorm(nnx.Module):
    """Mean and variance over an image's pixels and a group of channels (8 groups).

    Where 8 does not divide the channels, the greatest common divisor is taken.
    """

    def __init__(self, c: int, *, scale: float = 1.0):
        self.groups = math.gcd(8, c)
        self.scale = nnx.Param(constant(scale, c))
        self.bias = nnx.Param(constant(0.0, c))

    def __call__(
        self, x: Float[Array, "b h w c"], context: Context
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        visible = context.visible(x)
        if visible is not None:
            visible = visible.reshape(b, h * w, 1, 1)
        wide = x.astype(jnp.float32).reshape(b, h * w, self.groups, c // self.groups)
        wide = wide - mean_of(wide, (1, 3), visible, keepdims=True)
        power = mean_of(jnp.square(wide), (1, 3), visible, keepdims=True)
        wide = wide * lax.rsqrt(power + EPSILON)
        wide = wide.reshape(x.shape)
        return (
            wide * ops.per_channel(self.scale[...], x)
            + ops.per_channel(self.bias[...], x)
        ).astype(x.dtype)


class BatchNorm(nnx.Module):
    """Moments of the batch in training, running moments otherwise (Ioffe & Szegedy).

    running <- 0.9 running + 0.1 batch, with the unbiased variance, as PyTorch does.
    Only `context.train` moves them.
    """

    def __init__(self, c: int, *, scale: float = 1.0):
        self.scale = nnx.Param(constant(scale, c))
        self.bias = nnx.Param(constant(0.0, c))
        self.mean = nnx.BatchStat(constant(0.0, c))
        self.var = nnx.BatchStat(constant(1.0, c))

    def __call__(
        self, x: Float[Array, "*n c"], context: Context
    ) -> Float[Array, "*n c"]:
        mean, var = self.mean[...], self.var[...]
        if context.train:
            wide, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
            # Vectors have no sites to mask.
            visible = context.visible(x) if x.ndim == 4 else None
            mean = mean_of(wide, axes, visible)
            square = mean_of(jnp.square(wide), axes, visible)
            var = jnp.maximum(square - jnp.square(mean), 0)
            if visible is None:
                n = x.size // x.shape[-1]
                correction = n / max(n - 1, 1)
            else:
                n = visible.sum()
                correction = n / jnp.maximum(n - 1, 1)
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * lax.stop_gradient(mean)
            unbiased = lax.stop_gradient(var) * correction
            self.var[...] = 0.9 * self.var[...] + 0.1 * unbiased
        factor = self.scale[...] * lax.rsqrt(var + 1e-5)
        shift = self.bias[...] - mean * factor
        y = x.astype(jnp.float32) * ops.per_channel(factor, x) + ops.per_channel(
            shift, x
        )
        return y.astype(x.dtype)


class FrozenBatchNorm(nnx.Module):
    """y = scale (x - mean) / sqrt(var + 1e-5) + bias, all four constants.

    As torchvision's FrozenBatchNorm2d: nothing learns and nothing moves, in training
    too. For imported weights; freshly made it is the identity.
    """

    def __init__(self, c: int, *, scale: float = 1.0):
        # A constant zero could never be learned away from, so `scale` is not heeded.
        del scale
        self.scale = nnx.BatchStat(constant(1.0, c))
        self.bias = nnx.BatchStat(constant(0.0, c))
        self.mean = nnx.BatchStat(constant(0.0, c))
        self.var = nnx.BatchStat(constant(1.0, c))

    def __call__(
        self, x: Float[Array, "*n c"], context: Context
    ) -> Float[Array, "*n c"]:
        del context
        factor = self.scale[...] * lax.rsqrt(self.var[...] + 1e-5)
        shift = self.bias[...] - self.mean[...] * factor
        y = x.astype(jnp.float32) * ops.per_channel(factor, x) + ops.per_channel(
            shift, x
        )
        return y.astype(x.dtype)


class NoNorm(nnx.Module):
    """The identity: VGG as first published."""

    def __init__(self, c: int, *, scale: float = 1.0):
        del c, scale

    def __call__(self, x: Array, context: Context) -> Array:
        del context
        return x


KINDS = {
    "rms": RMSNorm,
    "layer": LayerNorm,
    "group": GroupNorm,
    "batch": BatchNorm,
    "frozen": FrozenBatchNorm,
    "none": NoNorm,
}


def make_norm(kind: str, c: int, *, scale: float = 1.0) -> nnx.Module:
    """The layer a config's `norm` names; `scale=0` starts a residual branch at zero."""
    return KINDS[kind](c, scale=scale)
