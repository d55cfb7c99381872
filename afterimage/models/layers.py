"""Layers: parameters in float32, arithmetic in the dtype of their input.

A layer owns `kernel`, `bias` or `scale` and calls `ops`. Kernels are HWIO. A layer that
mixes sites takes the `PassInfo` and hides masked sites first.

Norms: statistics are float32 whatever the input's dtype. `rms`, `layer` and `group`
keep no state: an image's result does not depend on its batch, and freezing needs no
special care. `batch` does: it is the choice for joint embedding and imported weights.
`rms` and `layer` do not mix sites; `group` and `batch` do, and exclude masked ones.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from afterimage.models import ops


@dataclasses.dataclass(frozen=True)
class StochasticDepth:
    """Skips residual branches of single images, deeper ones more often.

    Branch l of L is left out with probability r·l/L, and otherwise divided by the
    probability that it is kept, so that its mean stays the same (Huang et al. 2016,
    "Deep Networks with Stochastic Depth", section 3, equation 4).
    """

    rate: float
    """r, of the last block."""
    key: Array
    blocks: int = 1
    """L."""
    done: int = 0
    """Blocks before this one."""

    def __call__(self, branch: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        kept = 1 - self.rate * (self.done + 1) / self.blocks
        key = jax.random.fold_in(self.key, self.done)
        keep = jax.random.bernoulli(key, kept, (len(branch), 1, 1, 1))
        return jnp.where(keep, branch / kept, 0).astype(branch.dtype)


@dataclasses.dataclass(frozen=True)
class PassInfo:
    """What a forward pass passes to every block; never a property of the model.

    `train` lets batch statistics update. `mask` is true at the pixels that the encoder
    must not see. A site of a map represents a square of pixels and is masked if all of
    them are, so no visible pixel is lost, whatever the size of the masked patches.
    Masked pixels are hidden before the first layer, so none is seen. `depth` skips
    residual branches at random.
    """

    train: bool = False
    mask: Bool[Array, "b h w"] | None = None
    depth: StochasticDepth | None = None

    def branch(self, y: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The residual branch of a block, without that of skipped images."""
        return y if self.depth is None else self.depth(y)

    def after(self, blocks: int) -> "PassInfo":
        """The same pass, this number of blocks later."""
        if self.depth is None:
            return self
        depth = dataclasses.replace(self.depth, done=self.depth.done + blocks)
        return dataclasses.replace(self, depth=depth)

    def visible(self, x: Float[Array, "b h w c"]) -> Bool[Array, "b h w 1"] | None:
        """True at the sites of map `x` with a visible pixel; None without a mask."""
        if self.mask is None:
            return None
        (h, w), sides = x.shape[1:3], self.mask.shape[1:]
        grids = {2**n: [-(-k >> n) for k in sides] for n in range(32)}
        # The coarsest grid that the map fits into; of equal ones any gives the same. A
        # map of layers without padding is smaller, and lies in its middle.
        fits = {s: (a, b) for s, (a, b) in grids.items() if a >= h and b >= w}
        stride = min(fits, key=lambda s: math.prod(fits[s]))
        rows, columns = fits[stride]
        shown = ops.pad_to_multiple(~self.mask[..., None], stride)
        blocks = shown.reshape(-1, rows, stride, columns, stride).any((2, 4))
        top, left = (rows - h) // 2, (columns - w) // 2
        return blocks[:, top : top + h, left : left + w, None]

    def hide(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Zeros at masked sites, whatever the values there (even NaN)."""
        visible = self.visible(x)
        return x if visible is None else jnp.where(visible, x, 0)


def mean_of(
    x: Float[Array, "..."],
    axes: tuple[int, ...],
    visible: Bool[Array, "..."] | None,
    *,
    keepdims: bool = False,
) -> Float[Array, "..."]:
    """Mean over these axes of the visible sites only; 0 if no site is visible.

    `visible` has as many axes as `x`, of length 1 where it is broadcast.
    """
    if visible is None:
        return x.mean(axes, keepdims=keepdims)
    total = jnp.where(visible, x, 0).sum(axes, keepdims=keepdims)
    count = jnp.broadcast_to(visible, x.shape).sum(axes, keepdims=keepdims)
    return total / jnp.maximum(count, 1)


DENSE = PassInfo()
"""For a pass with nothing masked and no statistics updated."""


def _generator(rngs: nnx.Rngs) -> np.random.Generator | None:
    """NumPy draws the initial values: JAX would compile a program for every shape.

    None while tracing, when only shapes are needed: a stored model of any size can then
    be compared with its weights without using memory.
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
    """Normal with deviation 0.02, truncated at two deviations, as in ConvNeXt."""
    del fan_in
    if (generator := _generator(rngs)) is None:
        return jnp.zeros(shape, jnp.float32)
    from scipy.special import ndtr, ndtri

    low, high = ndtr(-2.0), ndtr(2.0)
    drawn = ndtri(low + (high - low) * generator.random(shape))
    return jnp.asarray(0.02 * drawn, jnp.float32)


def constant(value: float, *shape: int) -> Array:
    """Biases and scales; `jnp.full` would compile a program for every shape."""
    return jnp.asarray(np.full(shape, value, np.float32))


def identity(size: int, *, like: Array) -> Array:
    """The identity matrix; only its shape if `like` is traced."""
    if isinstance(like, Tracer):
        return jnp.eye(size, dtype=jnp.float32)
    return jnp.asarray(np.eye(size, dtype=np.float32))


class Conv(nnx.Module):
    """k x k convolution, padded by k // 2; with `same` as TensorFlow pads.

    `k` may be (rows, columns). Not `padded`, sides of n give (n - k) // stride + 1.
    """

    def __init__(
        self,
        i: int,
        o: int,
        k: int | tuple[int, int] = 3,
        *,
        stride: int = 1,
        same: bool = False,
        padded: bool = True,
        bias: bool = True,
        init=he_normal,
        rngs: nnx.Rngs,
    ):
        self.stride, self.same, self.padded = stride, same, padded
        kh, kw = (k, k) if isinstance(k, int) else k
        self.kernel = nnx.Param(init(rngs, (kh, kw, i, o), kh * kw * i))
        self.bias = nnx.Param(constant(0.0, o)) if bias else None

    def __call__(
        self, x: Float[Array, "b h w i"], context: PassInfo = DENSE
    ) -> Float[Array, "b H W o"]:
        kernel = self.kernel[...].astype(x.dtype)
        side = max(kernel.shape[:2])
        if side > 1 or self.stride > 1:
            x = context.hide(x)
        if side == 1:
            x = ops.matmul(x[:, :: self.stride, :: self.stride], kernel[0, 0])
        else:
            pads = None if self.padded else ((0, 0), (0, 0))
            if self.same and self.stride > 1:
                pads = ops.same_padding(x, side, self.stride)
            x = ops.conv2d(x, kernel, self.stride, pads)
        return _add_bias(x, self.bias)


class Patchify(nnx.Module):
    """r x r convolution with stride r."""

    def __init__(self, i: int, o: int, r: int, *, init=he_normal, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init(rngs, (r, r, i, o), r * r * i))
        self.bias = nnx.Param(constant(0.0, o))

    def __call__(
        self, x: Float[Array, "b h w i"], context: PassInfo = DENSE
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
    """k x k depthwise convolution, k odd, padded like `Conv`."""

    def __init__(
        self,
        c: int,
        k: int = 7,
        *,
        stride: int = 1,
        same: bool = False,
        bias: bool = True,
        init=trunc_normal,
        rngs: nnx.Rngs,
    ):
        self.stride, self.same = stride, same
        self.kernel = nnx.Param(init(rngs, (k, k, 1, c), k * k))
        self.bias = nnx.Param(constant(0.0, c)) if bias else None

    def __call__(
        self, x: Float[Array, "b h w c"], context: PassInfo = DENSE
    ) -> Float[Array, "b H W c"]:
        x, kernel = context.hide(x), self.kernel[...].astype(x.dtype)
        if self.stride == 1:
            y = ops.depthwise_conv(x, kernel)
        else:
            y = ops.depthwise_conv_strided(x, kernel, self.stride, self.same)
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


EPSILON = 1e-6
BATCH_EPSILON = 1e-5


def _affine(x: Array, scale: Array, bias: Array) -> Array:
    return x * ops.per_channel(scale, x) + ops.per_channel(bias, x)


class RMSNorm(nnx.Module):
    """x / sqrt(mean_c x^2 + eps) * scale + bias, per pixel (Zhang & Sennrich 2019).

    It has a bias because the convolutions before it have none.
    """

    def __init__(self, c: int, *, scale: float = 1.0):
        self.scale = nnx.Param(constant(scale, c))
        self.bias = nnx.Param(constant(0.0, c))

    def __call__(
        self, x: Float[Array, "*n c"], context: PassInfo
    ) -> Float[Array, "*n c"]:
        wide = x.astype(jnp.float32)
        power = jnp.square(wide).mean(-1, keepdims=True)
        wide = wide * lax.rsqrt(power + EPSILON)
        return _affine(wide, self.scale[...], self.bias[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean_c) / sqrt(var_c + eps) * scale + bias, per pixel."""

    def __init__(self, c: int, *, scale: float = 1.0):
        self.scale = nnx.Param(constant(scale, c))
        self.bias = nnx.Param(constant(0.0, c))

    def __call__(
        self, x: Float[Array, "*n c"], context: PassInfo
    ) -> Float[Array, "*n c"]:
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(-1, keepdims=True)
        wide = wide * lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + EPSILON)
        return _affine(wide, self.scale[...], self.bias[...]).astype(x.dtype)


class GroupNorm(nnx.Module):
    """Mean and variance over an image's pixels and a group of channels (8 groups).

    If 8 does not divide the channels, their greatest common divisor is used.
    """

    def __init__(self, c: int, *, scale: float = 1.0):
        self.groups = math.gcd(8, c)
        self.scale = nnx.Param(constant(scale, c))
        self.bias = nnx.Param(constant(0.0, c))

    def __call__(
        self, x: Float[Array, "b h w c"], context: PassInfo
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
        return _affine(wide, self.scale[...], self.bias[...]).astype(x.dtype)


class BatchNorm(nnx.Module):
    """Batch moments in training, running moments otherwise (Ioffe & Szegedy).

    running <- 0.9 running + 0.1 batch, with the unbiased variance, as PyTorch does.
    They are updated only if `context.train`.
    """

    def __init__(self, c: int, *, scale: float = 1.0, epsilon: float = BATCH_EPSILON):
        self.epsilon = epsilon
        self.scale = nnx.Param(constant(scale, c))
        self.bias = nnx.Param(constant(0.0, c))
        self.mean = nnx.BatchStat(constant(0.0, c))
        self.var = nnx.BatchStat(constant(1.0, c))

    def __call__(
        self, x: Float[Array, "*n c"], context: PassInfo
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
        factor = self.scale[...] * lax.rsqrt(var + self.epsilon)
        shift = self.bias[...] - mean * factor
        return _affine(x.astype(jnp.float32), factor, shift).astype(x.dtype)


class FrozenBatchNorm(nnx.Module):
    """y = scale (x - mean) / sqrt(var + epsilon) + bias, all four constants.

    Like torchvision's FrozenBatchNorm2d: nothing is learned or updated, even in
    training. For imported weights; newly created, it is the identity.
    """

    def __init__(self, c: int, *, scale: float = 1.0, epsilon: float = BATCH_EPSILON):
        self.epsilon = epsilon
        # A constant scale of zero could never be unlearned, so `scale` is ignored.
        del scale
        self.scale = nnx.BatchStat(constant(1.0, c))
        self.bias = nnx.BatchStat(constant(0.0, c))
        self.mean = nnx.BatchStat(constant(0.0, c))
        self.var = nnx.BatchStat(constant(1.0, c))

    def __call__(
        self, x: Float[Array, "*n c"], context: PassInfo
    ) -> Float[Array, "*n c"]:
        del context
        factor = self.scale[...] * lax.rsqrt(self.var[...] + self.epsilon)
        shift = self.bias[...] - self.mean[...] * factor
        return _affine(x.astype(jnp.float32), factor, shift).astype(x.dtype)


class NoNorm(nnx.Module):
    """The identity, for VGG as first published."""

    def __init__(self, c: int, *, scale: float = 1.0):
        del c, scale

    def __call__(self, x: Array, context: PassInfo) -> Array:
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


def make_norm(
    kind: str, c: int, *, scale: float = 1.0, epsilon: float = BATCH_EPSILON
) -> nnx.Module:
    """The layer a config's `norm` names; `scale=0` starts a residual branch at zero.

    `epsilon` is that of `batch` and `frozen`.
    """
    if kind in ("batch", "frozen"):
        return KINDS[kind](c, scale=scale, epsilon=epsilon)
    return KINDS[kind](c, scale=scale)
