"""The plain forms of `afterimage.models`' operations: what Flax's own layers call."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from afterimage.models import ops

NHWC = ("NHWC", "HWIO", "NHWC")


def conv(x: Any, kernel: Any, stride: int = 1, padding: Any = None) -> Any:
    """`lax.conv_general_dilated`, padded by k // 2."""
    if padding is None:
        padding = [(k // 2, k // 2) for k in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=NHWC
    )


def matmul(x: Any, kernel: Any) -> Any:
    """`@`."""
    return x @ kernel


def patchify(x: Any, kernel: Any) -> Any:
    """A strided convolution over whole patches."""
    r = kernel.shape[0]
    pads = [(0, -n % r) for n in x.shape[1:3]]
    return conv(x, kernel, r, pads)


def conv_transpose(x: Any, kernel: Any) -> Any:
    """`lax.conv_transpose`, whose stride is the kernel's side, or 2 for a side of 4."""
    r = kernel.shape[0]
    return _transposed(x, kernel, r)


def conv_transpose_4x4(x: Any, kernel: Any) -> Any:
    """`lax.conv_transpose`, kernel 4, stride 2."""
    return _transposed(x, kernel, 2)


def _transposed(x: Any, kernel: Any, stride: int) -> Any:
    return lax.conv_transpose(
        x, kernel, (stride, stride), "SAME", dimension_numbers=NHWC
    )


def depthwise_conv(x: Any, kernel: Any) -> Any:
    """A grouped convolution with one group per channel."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=NHWC,
        feature_group_count=x.shape[-1],
    )


# Flax documents (low, high) pairs of padding; its type is inferred from the default, a
# string.
def max_pool(x: Any) -> Any:
    """`reduce_window`, 2 x 2, short windows at odd sides."""
    pads = [(0, n % 2) for n in x.shape[1:3]]
    return nn.max_pool(x, (2, 2), (2, 2), pads)  # pyright: ignore[reportArgumentType]


def max_pool_3x3(x: Any) -> Any:
    """`reduce_window`, 3 x 3, stride 2, padded by one."""
    pads = [(1, 1), (1, 1)]
    return nn.max_pool(x, (3, 3), (2, 2), pads)  # pyright: ignore[reportArgumentType]


def mean_pool(x: Any) -> Any:
    """`reduce_window` over the sum, divided by the number of real pixels."""
    pads = [(0, n % 2) for n in x.shape[1:3]]
    pooled = nn.avg_pool(
        x,
        (2, 2),
        (2, 2),
        pads,  # pyright: ignore[reportArgumentType]
        count_include_pad=False,
    )
    return pooled.astype(x.dtype)  # its count is always float32


def upsample_nearest(x: Any, r: int) -> Any:
    """`jax.image.resize`."""
    b, h, w, c = x.shape
    return jax.image.resize(x, (b, r * h, r * w, c), "nearest")


def max_pool_with_switches(x: Any) -> tuple[Any, Any]:
    """`reduce_window`, and an argmax over the window's four pixels."""
    h, w = (-(-n // 2) for n in x.shape[1:3])
    pads = ((0, 0), (0, 2 * h - x.shape[1]), (0, 2 * w - x.shape[2]), (0, 0))
    full = jnp.pad(x, pads, constant_values=-jnp.inf)
    pixels = [full[:, i::2, j::2] for i in range(2) for j in range(2)]
    return max_pool(x), jnp.argmax(jnp.stack(pixels), 0).astype(jnp.uint8)


def max_unpool(y: Any, switches: Any, size: tuple[int, int]) -> Any:
    """A scatter, as in the classic form."""
    b, h, w, c = y.shape
    at = jnp.meshgrid(*(jnp.arange(n) for n in y.shape), indexing="ij")
    where = (at[0], 2 * at[1] + switches // 2, 2 * at[2] + switches % 2, at[3])
    out = jnp.zeros((b, 2 * h, 2 * w, c), y.dtype).at[where].set(y)
    return out[:, : size[0], : size[1]]


def per_channel(v: Any, x: Any) -> Any:
    """Broadcasting."""
    return jnp.broadcast_to(v.reshape((1,) * (x.ndim - 1) + (-1,)), x.shape)


_PRODUCTS = {
    "conv2d": conv,
    "matmul": matmul,
    "patchify": patchify,
    "conv_transpose_patch": conv_transpose,
    "conv_transpose_4x4": conv_transpose_4x4,
    "depthwise_conv": depthwise_conv,
    "per_channel": per_channel,
}
_POOLING = {
    "max_pool": max_pool,
    "max_pool_3x3": max_pool_3x3,
    "mean_pool": mean_pool,
    "max_pool_with_switches": max_pool_with_switches,
    "max_unpool": max_unpool,
    "upsample_nearest": upsample_nearest,
}


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Within this context, newly traced models use the plain forms."""
    with mock.patch.multiple(ops, **_PRODUCTS, **_POOLING):
        yield
