"""Layers: parameters in float32, arithmetic in the dtype of their input.

A layer owns `kernel`, `bias` or `scale` and calls `ops`. Kernels are HWIO. A layer
that mixes sites is told the `Context` and hides masked sites before it mixes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Bool, Float
from scipy.special import ndtr, ndtri

from afterimage.models import ops


@dataclasses.dataclass(frozen=True)
class Context:
    """What a forward pass tells every block; never a property of the model.

    `train` lets batch statistics move. `mask` is true at the pixels that the encoder
    must not see. A site of a map stands for a square of pixels, and is masked where all
    of them are: no visible pixel is lost, whatever the size of the masked patches, and
    since masked pixels are hidden before the first layer, none is seen.
    """

    train: bool = False
    mask: Bool[Array, "b h w"] | None = None

    def visible(self, x: Float[Array, "b h w c"]) -> Bool[Array, "b h w 1"] | None:
        """True at the sites of the map `x` that see a pixel; None where all may."""
        if self.mask is None:
            return None
        size, sides = x.shape[1:3], self.mask.shape[1:]
        # Sides of one site are alike for several strides, and so is their answer.
        stride = next(
            2**n for n in range(32) if size == tuple(-(-k >> n) for k in sides)
        )
        shown = ops.pad_to_multiple(~self.mask[..., None], stride)
        blocks = shown.reshape(-1, size[0], stride, size[1], stride)
        return blocks.any((2, 4))[..., None]

    def hide(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Zeros at masked sites, whatever stood there (NaN as well)."""
        visible = self.visible(x)
        return x if visible is None else jnp.where(visible, x, 0)


def mean_of(
    x: Float[Array, "..."],
    axes: tuple[int, ...],
    visible: Bool[Array, "..."] | None,
    *,
    keepdims: bool = False,
) -> Float[Array, "..."]:
    """Mean over these axes, of visible sites alone; 0 where no site is visible.

    `visible` has as many axes as `x`, and length 1 where all are alike.
    """
    if visible is None:
        return x.mean(axes, keepdims=keepdims)
    total = jnp.where(visible, x, 0).sum(axes, keepdims=keepdims)
    count = jnp.broadcast_to(visible, x.shape).sum(axes, keepdims=keepdims)
    return total / jnp.maximum(count, 1)


DENSE = Context()
"""What a layer is told where nothing is masked and no statistic moves."""


def _generator(rngs: nnx.Rngs) -> np.random.Generator | None:
    """NumPy draws the initial values: JAX would compile a program for every shape.

    None while tracing, when only shapes are asked for: a stored model of any size can
    then be compared with its weights without taking memory.
    """
    key = rngs.params()
    if isinstance(key, Tracer):
        return None
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def he_normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
    """Normal with variance 2 / fan_in (He et al. 2015)."""
    if (generator := _generator(rngs)) is None:
        return jnp.zeros(shape, jnp.float32)
    drawn = generator.standard_normal(shape, np.float32)
    return jnp.asarray(drawn * np.float32(math.sqrt(2 / fan_in)))


def trunc_normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
    """Normal with deviation 0.02, cut at two deviations, as ConvNeXt starts."""
    del fan_in
    if (generator := _generator(rngs)) is None:
        return jnp.zeros(shape, jnp.float32)
    low, high = ndtr(-2.0), ndtr(2.0)
    drawn = ndtri(low + (high - low) * generator.random(shape))
    return jnp.asarray(0.02 * drawn, jnp.float32)


def constant(value: float, *shape: int) -> Array:
    """Biases and scales; `jnp.full` would compile a program for every shape."""
    return jnp.asarray(np.full(shape, value, np.float32))


def identity(size: int, *, like: Array) -> Array:
    """The identity matrix; only its shape where `like` is traced."""
    if isinstance(like, Tracer):
        return jnp.eye(size, dtype=jnp.float32)
    return jnp.asarray(np.eye(size, dtype=np.float32))


class Conv(nnx.Module):
    """k x k convolution, padded by k // 2."""

    def __init__(
        self,
        i: int,
        o: int,
        k: int = 3,
        *,
        stride: int = 1,
        bias: bool = True,
        init=he_normal,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.kernel = nnx.Param(init(rngs, (k, k, i, o), k * k * i))
        self.bias = nnx.Param(constant(0.0, o)) if bias else None

    def __call__(
        self, x: Float[Array, "b h w i"], context: Context = DENSE
    ) -> Float[Array, "b H W o"]:
        kernel = self.kernel[...].astype(x.dtype)
        if kernel.shape[0] > 1 or self.stride > 1:
            x = context.hide(x)
        if kernel.shape[0] == 1:
            x = ops.matmul(x[:, :: self.stride, :: self.stride], kernel[0, 0])
        else:
            x = ops.conv2d(x, kernel, self.stride)
        return _add_bias(x, self.bias)


class Patchify(nnx.Module):
    """r x r convolution with stride r."""

    def __init__(self, i: int, o: int, r: int, *, init=he_normal, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init(rngs, (r, r, i, o), r * r * i))
        self.bias = nnx.Param(constant(0.0, o))

    def __call__(
        self, x: Float[Array, "b h w i"], context: Context = DENSE
    ) -> Float[Array, "b H W o"]:
        y = ops.patchify(context.hide(x), self.kernel[...].astype(x.dtype))
        return _add_bias(y, self.bias)


class PatchTranspose(nnx.Module):
    """r x r transposed convolution with stride r."""

    def __init__(self, i: int, o: int, r: int, *, init=he_normal, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init(rngs, (r, r, i, o), i))
        self.bias = nnx.Param(constant(0.0, o))

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b H W o"]:
        y = ops.conv_transpose_patch(x, self.kernel[...].astype(x.dtype))
        return _add_bias(y, self.bias)


class ConvTranspose(nnx.Module):
    """4 x 4 transposed convolution with stride 2."""

    def __init__(self, i: int, o: int, *, init=he_normal, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init(rngs, (4, 4, i, o), 4 * i))
        self.bias = nnx.Param(constant(0.0, o))

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b H W o"]:
        y = ops.conv_transpose_4x4(x, self.kernel[...].astype(x.dtype))
        return _add_bias(y, self.bias)


class DepthwiseConv(nnx.Module):
    """k x k depthwise convolution."""

    def __init__(self, c: int, k: int = 7, *, init=trunc_normal, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init(rngs, (k, k, 1, c), k * k))
        self.bias = nnx.Param(constant(0.0, c))

    def __call__(
        self, x: Float[Array, "b h w c"], context: Context = DENSE
    ) -> Float[Array, "b h w c"]:
        y = ops.depthwise_conv(context.hide(x), self.kernel[...].astype(x.dtype))
        return _add_bias(y, self.bias)


class Dense(nnx.Module):
    """Linear map of the last axis."""

    def __init__(self, i: int, o: int, *, init=he_normal, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init(rngs, (i, o), i))
        self.bias = nnx.Param(constant(0.0, o))

    def __call__(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        y = ops.matmul(x, self.kernel[...].astype(x.dtype))
        return _add_bias(y, self.bias)


def _add_bias(x: Array, bias: nnx.Param | None) -> Array:
    if bias is None:
        return x
    return x + ops.per_channel(bias[...].astype(x.dtype), x)
