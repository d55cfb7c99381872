"""Layers: parameters in float32, arithmetic in the dtype of their input.

A layer owns `kernel`, `bias` or `scale` and calls `ops`. Kernels are HWIO.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float
from scipy.special import ndtr, ndtri

from afterimage.models import ops


@dataclasses.dataclass(frozen=True)
class Context:
    """What a forward pass tells every block; never a property of the model.

    `train` lets batch statistics move. Whatever a later pass must say (a mask, say)
    becomes a field here, so that no block keeps it.
    """

    train: bool = False


def _generator(rngs: nnx.Rngs) -> np.random.Generator:
    """NumPy draws the initial values: JAX would compile a program for every shape."""
    key = rngs.params()
    if isinstance(key, Tracer):  # only shapes are asked for
        return np.random.default_rng(0)
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def he_normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
    """Normal with variance 2 / fan_in (He et al. 2015)."""
    drawn = _generator(rngs).standard_normal(shape, np.float32)
    return jnp.asarray(drawn * np.float32(math.sqrt(2 / fan_in)))


def trunc_normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
    """Normal with deviation 0.02, cut at two deviations, as ConvNeXt starts."""
    del fan_in
    low, high = ndtr(-2.0), ndtr(2.0)
    drawn = ndtri(low + (high - low) * _generator(rngs).random(shape))
    return jnp.asarray(0.02 * drawn, jnp.float32)


def constant(value: float, *shape: int) -> Array:
    """Biases and scales; `jnp.full` would compile a program for every shape."""
    return jnp.asarray(np.full(shape, value, np.float32))


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

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b H W o"]:
        kernel = self.kernel[...].astype(x.dtype)
        if kernel.shape[0] == 1:
            x = x[:, :: self.stride, :: self.stride] @ kernel[0, 0]
        else:
            x = ops.conv2d(x, kernel, self.stride)
        return _add_bias(x, self.bias)


class Patchify(nnx.Module):
    """r x r convolution with stride r."""

    def __init__(self, i: int, o: int, r: int, *, init=he_normal, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init(rngs, (r, r, i, o), r * r * i))
        self.bias = nnx.Param(constant(0.0, o))

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b H W o"]:
        return _add_bias(ops.patchify(x, self.kernel[...].astype(x.dtype)), self.bias)


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

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = ops.depthwise_conv(x, self.kernel[...].astype(x.dtype))
        return _add_bias(y, self.bias)


class Dense(nnx.Module):
    """Linear map of the last axis."""

    def __init__(self, i: int, o: int, *, init=he_normal, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init(rngs, (i, o), i))
        self.bias = nnx.Param(constant(0.0, o))

    def __call__(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        return _add_bias(x @ self.kernel[...].astype(x.dtype), self.bias)


def _add_bias(x: Array, bias: nnx.Param | None) -> Array:
    if bias is None:
        return x
    return x + ops.per_channel(bias[...].astype(x.dtype), x)
