"""Residual blocks, each `block(x, context) -> x`, and how a stage runs them."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afterimage.models import layers, ops
from afterimage.models.layers import PassInfo, constant, make_norm


class Residual(nnx.Module):
    """A block that adds `context.branch` of something to its input."""


class BasicBlock(Residual):
    """relu(x + norm(conv(relu(norm(conv(x)))))), 3x3 both (He et al. 2015, Figure 2).

    The last norm's scale starts at zero, so the block starts as the identity.
    """

    def __init__(self, i: int, o: int, norm: str, *, stride=1, rngs: nnx.Rngs):
        self.conv1 = layers.Conv(i, o, 3, stride=stride, bias=False, rngs=rngs)
        self.norm1 = make_norm(norm, o)
        self.conv2 = layers.Conv(o, o, 3, bias=False, rngs=rngs)
        self.norm2 = make_norm(norm, o, scale=0.0)
        self.shortcut = Shortcut.where_needed(i, o, norm, stride, rngs)

    def __call__(self, x: Float[Array, "b h w i"], context: PassInfo) -> Array:
        y = jax.nn.relu(self.norm1(self.conv1(x, context), context))
        y = self.norm2(self.conv2(y, context), context)
        return jax.nn.relu(context.branch(y) + _skip(self.shortcut, x, context))


class BottleneckBlock(Residual):
    """1x1 to o / 4 channels, 3x3 with the stride (as in torchvision), 1x1 to o.

    The last norm's scale starts at zero.
    """

    def __init__(self, i: int, o: int, norm: str, *, stride=1, rngs: nnx.Rngs):
        m = o // 4
        self.conv1 = layers.Conv(i, m, 1, bias=False, rngs=rngs)
        self.norm1 = make_norm(norm, m)
        self.conv2 = layers.Conv(m, m, 3, stride=stride, bias=False, rngs=rngs)
        self.norm2 = make_norm(norm, m)
        self.conv3 = layers.Conv(m, o, 1, bias=False, rngs=rngs)
        self.norm3 = make_norm(norm, o, scale=0.0)
        self.shortcut = Shortcut.where_needed(i, o, norm, stride, rngs)

    def __call__(self, x: Float[Array, "b h w i"], context: PassInfo) -> Array:
        y = jax.nn.relu(self.norm1(self.conv1(x, context), context))
        y = jax.nn.relu(self.norm2(self.conv2(y, context), context))
        y = self.norm3(self.conv3(y, context), context)
        return jax.nn.relu(context.branch(y) + _skip(self.shortcut, x, context))


class Shortcut(nnx.Module):
    """norm(1x1 convolution) where a block changes stride or channels."""

    def __init__(self, i: int, o: int, norm: str, stride: int, rngs: nnx.Rngs):
        self.conv = layers.Conv(i, o, 1, stride=stride, bias=False, rngs=rngs)
        self.norm = make_norm(norm, o)

    @classmethod
    def where_needed(cls, i, o, norm, stride, rngs) -> "Shortcut | None":
        """A shortcut, or None where the identity works."""
        return None if i == o and stride == 1 else cls(i, o, norm, stride, rngs)

    def __call__(self, x: Array, context: PassInfo) -> Array:
        return self.norm(self.conv(x, context), context)


def _skip(shortcut: Shortcut | None, x: Array, context: PassInfo) -> Array:
    return x if shortcut is None else shortcut(x, context)


class GlobalResponseNorm(nnx.Module):
    """x + scale * x * G / mean_c G + bias, G = L2 norm of a channel over the pixels.

    Woo et al. 2023 (ConvNeXt V2), Algorithm 1; scale and bias start at zero.
    """

    def __init__(self, c: int):
        self.scale = nnx.Param(constant(0.0, c))
        self.bias = nnx.Param(constant(0.0, c))

    def __call__(
        self, x: Float[Array, "b h w c"], context: PassInfo
    ) -> Float[Array, "b h w c"]:
        # The tiny term keeps the square root's gradient finite for dead channels.
        seen = context.hide(x).astype(jnp.float32)
        square = jnp.square(seen).sum((1, 2), keepdims=True)
        energy = jnp.sqrt(square + 1e-12)
        response = energy / (energy.mean(-1, keepdims=True) + 1e-6)
        factor = 1 + self.scale[...].reshape(1, 1, 1, -1) * response
        bias = ops.per_channel(self.bias[...].astype(x.dtype), x)
        return x * factor.astype(x.dtype) + bias


class ConvNeXtBlock(Residual):
    """x + project(GRN(gelu(expand(norm(depthwise(x)))))) (ConvNeXt V2, Figure 5).

    With `layer_scale` as in V1 (Liu et al. 2022): no GRN, and what is added to x is
    multiplied by a learned number a channel, 1e-6 at the start.
    """

    def __init__(self, c: int, norm: str, *, layer_scale: bool = False, rngs: nnx.Rngs):
        init = layers.trunc_normal
        self.depthwise = layers.DepthwiseConv(c, 7, rngs=rngs)
        self.norm = make_norm(norm, c)
        self.expand = layers.Dense(c, 4 * c, init=init, rngs=rngs)
        self.response = None if layer_scale else GlobalResponseNorm(4 * c)
        self.project = layers.Dense(4 * c, c, init=init, rngs=rngs)
        self.scale = nnx.Param(constant(1e-6, c)) if layer_scale else None

    def __call__(self, x: Float[Array, "b h w c"], context: PassInfo) -> Array:
        y = self.norm(self.depthwise(x, context), context)
        y = jax.nn.gelu(self.expand(y), approximate=False)
        if self.response is not None:
            y = self.response(y, context)
        y = self.project(y)
        if self.scale is not None:
            y = y * ops.per_channel(self.scale[...].astype(y.dtype), y)
        return x + context.branch(y)


class BlockStage(nnx.Module):
    """Residual blocks, preceded by a `down` layer in ConvNeXt."""

    def __init__(self, blocks: list, down: nnx.Module | None = None):
        self.down = down
        self.blocks = nnx.List(blocks)

    def __call__(self, x: Array, context: PassInfo, remat: bool) -> Array:
        if self.down is not None:
            x = self.down(x, context)
        return run_blocks(self.blocks, x, context, remat)


def run_blocks(
    blocks: Iterable[nnx.Module], x: Array, context: PassInfo, remat: bool
) -> Array:
    """Run the blocks in order; with `remat` each is recomputed in the backward pass."""
    for number, block in enumerate(blocks):
        here = context.after(number)
        x = _rematerialise(block, x, here) if remat else block(x, here)
    return x


def _rematerialise(block: nnx.Module, x: Array, context: PassInfo) -> Array:
    graph, params, stats = nnx.split(block, nnx.Param, nnx.BatchStat)

    @jax.checkpoint
    def run(params, stats, x):
        inner = nnx.merge(graph, params, stats)
        y = inner(x, context)
        return y, nnx.state(inner, nnx.BatchStat)

    y, stats = run(params, stats, x)
    nnx.update(block, stats)
    return y
