"""Pooling and its inverses, each equal to its plain form by test.

`reduce_window` and the scatter of its gradient run on one thread of XLA:CPU; the forms
here are reshapes, slices and comparisons (`tests/test_pooling.py` guards each ratio).
Images are NHWC.
"""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped, UInt8


def _windows(x: Array, fill: float) -> Array:
    """[b, h, w, c] -> [b, ceil(h/2), 2, ceil(w/2), 2, c], short windows filled up."""
    _, h, w, _ = x.shape
    if h % 2 or w % 2:
        pads = ((0, 0), (0, h % 2), (0, w % 2), (0, 0))
        x = jnp.pad(x, pads, constant_values=fill)
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
    """Maximum over 2 x 2 windows; an odd side ends in a short window (ceil mode).

    Equal to `flax.linen.max_pool(x, (2, 2), (2, 2), 'SAME')` at even sizes; its
    `reduce_window` and the scatter of its gradient run on one thread (measured 15x).
    The gradient is shared equally among equal maxima.
    """
    return _windows(x, -math.inf).max((2, 4))


def mean_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
    """Mean over 2 x 2 windows; at an odd side the mean of the pixels that are there."""
    _, h, w, _ = x.shape
    total = _windows(x, 0.0).sum((2, 4))
    rows = jnp.full(-(-h // 2), 2, x.dtype).at[-1].add(-(h % 2))
    cols = jnp.full(-(-w // 2), 2, x.dtype).at[-1].add(-(w % 2))
    return total / (rows[:, None] * cols[None])[None, :, :, None]


def max_pool_with_switches(
    x: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b H W c"], UInt8[Array, "b H W c"]]:
    """`max_pool`, and where in its window each maximum stood: 0-3, rows first.

    Of equal maxima the first counts, for the switch and for the gradient.
    """
    switches = lax.stop_gradient(_argmax(_windows(x, -math.inf)))
    windows = _windows(x, 0.0)
    return (windows * _one_hot(switches, x.dtype)).sum((2, 4)), switches


def _argmax(windows: Array) -> Array:
    flat = windows.transpose(0, 1, 3, 5, 2, 4).reshape(
        *windows.shape[:2], windows.shape[3], windows.shape[5], 4
    )
    return jnp.argmax(flat, -1).astype(jnp.uint8)


def _one_hot(switches: Array, dtype: jnp.dtype) -> Array:
    place = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    return (switches[:, :, None, :, None] == place).astype(dtype)


def max_unpool(
    y: Float[Array, "b h w c"],
    switches: UInt8[Array, "b h w c"],
    size: tuple[int, int],
) -> Float[Array, "b H W c"]:
    """Each value back to the pixel its maximum came from, zeros elsewhere.

    The classic unpooling, partner of `max_pool_with_switches`; `size` is the size
    before pooling. No scatter: a comparison with the window's places.
    """
    b, h, w, c = y.shape
    spread = y[:, :, None, :, None] * _one_hot(switches, y.dtype)
    return spread.reshape(b, 2 * h, 2 * w, c)[:, : size[0], : size[1]]


def max_pool_3x3(x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
    """Maximum over 3 x 3 windows, stride 2, padded by one: the stem pool of ResNet.

    Rows, then columns, as the maximum of three strided slices; avoids `reduce_window`.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        pads = [(0, 0)] * 4
        pads[axis] = (1, 1 + n % 2)
        padded = jnp.pad(x, pads, constant_values=-math.inf)
        out = -(-n // 2)
        taps = [
            lax.slice_in_dim(padded, t, t + 2 * out - 1, stride=2, axis=axis)
            for t in range(3)
        ]
        x = jnp.maximum(jnp.maximum(taps[0], taps[1]), taps[2])
    return x


def upsample_nearest(x: Shaped[Array, "b h w c"], r: int) -> Shaped[Array, "b H W c"]:
    """Each pixel r x r times: `jax.image.resize(.., 'nearest')` without its gather."""
    b, h, w, c = x.shape
    y = jnp.broadcast_to(x[:, :, None, :, None], (b, h, r, w, r, c))
    return y.reshape(b, h * r, w * r, c)
