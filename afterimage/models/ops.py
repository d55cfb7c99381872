"""Operations that are fast on CPU, GPU and TPU, each tested against its plain form.

The plain forms named below are slow on XLA:CPU (two Zen-4 cores, batch 256, float32,
jaxlib 0.10.2; `tests/test_ops.py` and `tests/test_pooling.py` guard each ratio). Images
are NHWC, kernels HWIO.
"""

import contextlib
import contextvars
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Shaped, UInt8

_NHWC = ("NHWC", "HWIO", "NHWC")


_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Within it, what is traced has the plain forms only.

    For programs that other compilers run, from what JAX traces: ONNX.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def by_platform(cpu: Callable[..., Any], other: Callable[..., Any], *args: Any) -> Any:
    """`cpu(*args)` where the program runs on CPU, else `other(*args)`.

    The platform is that which the program is lowered for, not that of this process.
    JAX traces both, and caches by the identity of the functions: give it global ones.
    """
    if _plain.get():
        return other(*args)
    return lax.platform_dependent(*args, cpu=cpu, default=other)


def _bilinear(
    product: Callable[[Array, Array, Any], Array],
    to_x: Callable[[Array, Array, Any], Array],
    to_kernel: Callable[[Array, Array, Any], Array],
) -> Callable[[Array, Array, Any], Array]:
    """`product(x, kernel, setting)`, linear in x and in the kernel, with custom
    gradients: dX = `to_x(kernel, g, setting)` and dK = `to_kernel(x, g, setting)`.

    Unlike with `custom_vjp`, forward mode works too: the tangent is written as the
    transpose of these two, so that reverse mode, which transposes the tangent, recovers
    exactly these. An input without a tangent costs nothing.
    """
    run = jax.custom_jvp(product, nondiff_argnums=(2,))

    def rule(setting: Any, primals: Any, tangents: Any) -> tuple[Array, Any]:
        x, kernel = primals
        y = run(x, kernel, setting)
        g = jax.ShapeDtypeStruct(y.shape, y.dtype)
        backward = (
            lambda g: to_x(kernel, g, setting),
            lambda g: to_kernel(x, g, setting),
        )
        parts = [
            jax.linear_transpose(back, g)(tangent)[0]
            for back, tangent in zip(backward, tangents, strict=True)
            if not isinstance(tangent, SymbolicZero)
        ]
        # Compute g once for both.
        return y, lax.optimization_barrier(functools.reduce(jnp.add, parts))

    run.defjvp(rule, symbolic_zeros=True)
    return run


def pad_to_multiple(x: Shaped[Array, "b h w c"], r: int) -> Shaped[Array, "b H W c"]:
    """Pad with zeros at the bottom and right until r divides both sides."""
    h, w = x.shape[1:3]
    if h % r == 0 and w % r == 0:
        return x
    return jnp.pad(x, ((0, 0), (0, -h % r), (0, -w % r), (0, 0)))


def reduced(images: Float[Array, "b h w c"], side: int) -> Float[Array, "b _h _w c"]:
    """Images whose shorter side is at most `side`; smaller ones as they are.

    Linear with antialiasing, like `jax.image.resize`, by products: ONNX has no resize
    of batches of any size.
    """
    size = images.shape[1:3]
    if min(size) <= side:
        return images
    down, across = map(_shrink, size, reduced_size(size, side))
    return jnp.einsum("bhwc,mh,nw->bmnc", images, down, across)


def reduced_size(size: tuple[int, ...], side: int) -> tuple[int, ...]:
    """The height and width that `reduced` gives."""
    shorter = min(size)
    return size if shorter <= side else tuple(round(n * side / shorter) for n in size)


def _shrink(n: int, m: int) -> Float[np.ndarray, "m n"]:
    """Weights of n pixels in each of m: a triangle as wide as two of the m."""
    centre = (np.arange(m)[:, None] + 0.5) * n / m - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(n)[None] - centre) * m / n)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def pad_around(
    x: Shaped[Array, "b h w c"], size: tuple[int, int]
) -> Shaped[Array, "b H W c"]:
    """Zeros around a map, which then is in the middle of one of this size."""
    if x.shape[1:3] == size:
        return x
    lacks = [after - before for before, after in zip(x.shape[1:3], size, strict=True)]
    pads = [(n // 2, n - n // 2) for n in lacks]
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def space_to_depth(x: Shaped[Array, "b h w c"], r: int) -> Shaped[Array, "b H W C"]:
    """Blocks of r x r pixels become r*r*c channels, rows first; r divides the sides."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // r, r, w // r, r, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // r, w // r, r * r * c)


def depth_to_space(x: Shaped[Array, "b h w c"], r: int) -> Shaped[Array, "b H W C"]:
    """The inverse of `space_to_depth`: r*r*c channels become r x r pixels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, r, r, c // (r * r)).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * r, w * r, c // (r * r))


def matmul(
    x: Float[Array, "*n i"], kernel: Float[Array, "i o"]
) -> Float[Array, "*n o"]:
    """x @ kernel, whose gradients read each array once, in its own layout.

    dX = g K^T, dK = x^T g. Where the cotangent passes through a transpose (as up- and
    downsampling do), XLA:CPU would compute it separately for each of the two, once more
    transposed; behind a barrier it is computed once (docs/design/speed.md).
    """
    return by_platform(_matmul_rows, jnp.matmul, x, kernel)


def _matmul_rows(x: Array, kernel: Array) -> Array:
    rows = _matmul(x.reshape(-1, x.shape[-1]), kernel, None)
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])


_matmul = _bilinear(
    lambda x, kernel, _: x @ kernel,
    lambda kernel, g, _: g @ kernel.T,
    # Both sum over rows.
    lambda x, g, _: lax.dot_general(
        lax.optimization_barrier(x), g, (((0,), (0,)), ((), ()))
    ),
)


def patchify(
    x: Float[Array, "b h w i"], kernel: Float[Array, "r r i o"]
) -> Float[Array, "b H W o"]:
    """Convolution with kernel r x r and stride r, padded to whole patches.

    y[h, w] = sum_ab x[r h + a, r w + b] K[a, b]. One matmul on CPU, which avoids the
    gradient of a strided convolution, a dilated one. Elsewhere a strided convolution,
    which does not write the rearranged map.
    """
    return by_platform(_patchify_matmul, _patchify_lax, x, kernel)


def _patchify_matmul(x: Array, kernel: Array) -> Array:
    r, _, i, o = kernel.shape
    x = pad_to_multiple(x, r)
    return matmul(space_to_depth(x, r), kernel.reshape(r * r * i, o))


def _patchify_lax(x: Array, kernel: Array) -> Array:
    r = kernel.shape[0]
    return _lax_conv(x, kernel, ((0, -x.shape[1] % r), (0, -x.shape[2] % r)), r)


def conv_transpose_patch(
    x: Float[Array, "b h w i"], kernel: Float[Array, "r r i o"]
) -> Float[Array, "b H W o"]:
    """Transposed convolution with kernel r x r and stride r.

    y[r h + a, r w + b] = x[h, w] K[r-1-a, r-1-b]: `lax.conv_transpose(x, K, (r, r),
    'SAME')`. On CPU one matmul, then pixels, which avoids its dilated convolution and
    that convolution's gradients.
    """
    return by_platform(_transpose_matmul, _transpose_lax, x, kernel)


def _transpose_lax(x: Array, kernel: Array) -> Array:
    strides = (kernel.shape[0], kernel.shape[0])
    return lax.conv_transpose(x, kernel, strides, "SAME", dimension_numbers=_NHWC)


def _transpose_matmul(x: Array, kernel: Array) -> Array:
    r, _, i, o = kernel.shape
    flipped = jnp.flip(kernel, (0, 1)).transpose(2, 0, 1, 3)
    return depth_to_space(matmul(x, flipped.reshape(i, r * r * o)), r)


def conv_transpose_4x4(
    x: Float[Array, "b h w i"], kernel: Float[Array, "4 4 i o"]
) -> Float[Array, "b H W o"]:
    """Transposed convolution with kernel 4 x 4 and stride 2.

    Output pixel (2h + a, 2w + b) sees only the taps K[a::2, b::2]: on CPU four 2 x 2
    convolutions, interleaved. Equal to `lax.conv_transpose(x, K, (2, 2), 'SAME')`,
    which multiplies mostly zeros there (measured 2.5x).
    """
    return by_platform(_transpose_phases, _transpose_lax_4x4, x, kernel)


def _transpose_lax_4x4(x: Array, kernel: Array) -> Array:
    return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=_NHWC)


def _transpose_phases(x: Array, kernel: Array) -> Array:
    b, h, w, _ = x.shape
    side = ((1, 0), (0, 1))
    phases = [
        conv2d(x, kernel[p::2, q::2], padding=(side[p], side[q]))
        for p, q in itertools.product(range(2), repeat=2)
    ]
    y = jnp.stack(phases, 3).reshape(b, h, w, 4 * kernel.shape[-1])
    return depth_to_space(y, 2)


Padding = tuple[tuple[int, int], tuple[int, int]]


def conv2d(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw i o"],
    stride: int = 1,
    padding: Padding | None = None,
) -> Float[Array, "b H W o"]:
    """Convolution whose gradients stay fast inside `lax.scan` on CPU (stride 1).

    y[h, w] = sum_ab x[h + a, w + b] K[a, b] over the padded input; by default k // 2 on
    both sides, as PyTorch pads, so maps are ceil(h / stride) high.

    When XLA:CPU differentiates a convolution itself, the gradient runs tens of times
    slower inside a loop than outside; there dX and dW are written as plain ones.
    On maps of one or two pixels a side, a matmul of patches is several times faster on
    CPU and is used instead.
    """
    if padding is None:
        kh, kw = kernel.shape[:2]
        padding = ((kh // 2, kh // 2), (kw // 2, kw // 2))
        tiny = min(x.shape[1:3]) <= 2 * stride and kh % 2 == kw % 2 == 1
        if tiny:
            patches = _with(_conv_by_patches, stride)
            return by_platform(patches, _with(_lax_conv, padding, stride), x, kernel)
    if stride != 1:
        return _lax_conv(x, kernel, padding, stride)
    return by_platform(_with(_conv, padding), _with(_lax_conv, padding), x, kernel)


@functools.cache
def _with(function: Callable[..., Array], *settings: Any) -> Callable[..., Array]:
    """f(x, kernel, *settings) as a function of x and the kernel, the same each time."""
    return lambda x, kernel: function(x, kernel, *settings)


def _conv_by_patches(x: Array, kernel: Array, stride: int) -> Array:
    """`conv2d` with an odd kernel and default padding, as one matmul."""
    kh, kw, i, o = kernel.shape
    _, h, w, _ = x.shape
    pads = ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0))
    padded = jnp.pad(x, pads)
    taps = itertools.product(range(kh), range(kw))
    patches = [padded[:, a : a + h : stride, b : b + w : stride] for a, b in taps]
    return matmul(jnp.concatenate(patches, -1), kernel.reshape(kh * kw * i, o))


def _lax_conv(
    x: Array, kernel: Array, padding: Padding, stride: int = 1, groups: int = 1
) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=_NHWC,
        feature_group_count=groups,
    )


def _conv_to_x(kernel: Array, g: Array, padding: Padding) -> Array:
    """Full correlation with the flipped kernel: pads k - 1 - p on each side."""
    kh, kw = kernel.shape[:2]
    (top, bottom), (left, right) = padding
    mirrored = (
        (kh - 1 - top, kh - 1 - bottom),
        (kw - 1 - left, kw - 1 - right),
    )
    flipped = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    return _lax_conv(g, flipped, mirrored)


def _conv_to_kernel(x: Array, g: Array, padding: Padding) -> Array:
    """dK[a, b] = sum_bhw x[b, h + a, w + b] g[b, h, w]: batch is the summed channel."""
    dk = _lax_conv(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), padding)
    return dk.transpose(1, 2, 0, 3)


_conv = _bilinear(
    lambda x, kernel, padding: _lax_conv(x, kernel, padding),
    _conv_to_x,
    _conv_to_kernel,
)


def depthwise_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"]
) -> Float[Array, "b h w c"]:
    """Convolve each channel with its own k x k kernel (k odd), stride 1, 'SAME'.

    On CPU: k*k shifted multiply-adds forward, the same with the flipped kernel for dX,
    and matmuls over rows for dK. XLA:CPU's own forward and dX took 44 and 10 times as
    long (k = 7, 16 x 16 x 32, two cores), its dK twice to thirty times. GPU and TPU
    have native kernels, so they run the plain form.
    """
    return by_platform(_depthwise_cpu, _depthwise_lax, x, kernel)


def depthwise_conv_strided(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], stride: int, same: bool
) -> Float[Array, "b H W c"]:
    """`depthwise_conv` with a stride, padded by k // 2; with `same` as TensorFlow pads.

    On CPU it takes every stride-th site of `depthwise_conv`, whose gradient is fast.
    """
    half = kernel.shape[0] // 2
    pads = ((half, half), (half, half))
    if same:
        pads = same_padding(x, kernel.shape[0], stride)
    top, left = half - pads[0][0], half - pads[1][0]

    def on_cpu(x: Array, kernel: Array) -> Array:
        return _depthwise_cpu(x, kernel)[:, top::stride, left::stride]

    def elsewhere(x: Array, kernel: Array) -> Array:
        return _lax_conv(x, kernel, pads, stride, groups=x.shape[-1])

    return by_platform(on_cpu, elsewhere, x, kernel)


def same_padding(x: Float[Array, "b h w c"], k: int, stride: int) -> Padding:
    """TensorFlow's padding "SAME": as little as gives ceil(h / stride) rows, and the
    odd pixel at the bottom and right."""

    def of(side: int) -> tuple[int, int]:
        total = max((-(-side // stride) - 1) * stride + k - side, 0)
        return total // 2, total - total // 2

    return of(x.shape[1]), of(x.shape[2])


def _depthwise_cpu(x: Array, kernel: Array) -> Array:
    return _depthwise_shift(x, kernel, len(kernel))


def _depthwise_lax(x: Array, kernel: Array) -> Array:
    half = kernel.shape[0] // 2
    return _lax_conv(x, kernel, ((half, half), (half, half)), groups=x.shape[-1])


@jax.jit
def _shifted_sum(x: Array, kernel: Array) -> Array:
    k, (_, h, w, _) = kernel.shape[0], x.shape
    half = k // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    terms = (
        padded[:, i : i + h, j : j + w] * kernel[i, j][None, None]
        for i, j in itertools.product(range(k), repeat=2)
    )
    # Behind a barrier: XLA:CPU would recompute the sum in every fusion that reads it.
    return lax.optimization_barrier(functools.reduce(jnp.add, terms))


@functools.partial(jax.jit, static_argnums=2)
def _depthwise_dk(x: Array, g: Array, k: int) -> Array:
    """dK[i, j, c] = sum_bhw x[b, h + i, w + j, c] g[b, h, w, c], x padded by k // 2.

    For every i and c, one matmul gives all pairs of columns; a second sums those j
    apart. The barriers keep XLA:CPU from reading transposed values again and again.
    """
    (b, h, w, c), half = x.shape, k // 2
    x = lax.optimization_barrier(x.transpose(3, 2, 0, 1))
    x = jnp.pad(x, ((0, 0), (half, half), (0, 0), (half, half)))
    rows = jnp.stack([x[..., i : i + h] for i in range(k)], 1)
    rows = lax.optimization_barrier(rows).reshape(c, -1, b * h)
    columns = lax.optimization_barrier(g.transpose(3, 0, 1, 2)).reshape(c, b * h, w)
    pairs = lax.optimization_barrier(rows @ columns).reshape(c * k, -1)
    apart = [jnp.eye(w + 2 * half, w, -j, g.dtype) for j in range(k)]
    sums = pairs @ jnp.stack(apart, -1).reshape(-1, k)
    return sums.reshape(c, k, k).transpose(1, 2, 0)[:, :, None]


# The kernel size is the setting, since dK's inputs do not determine it.
_depthwise_shift = _bilinear(
    lambda x, kernel, _: _shifted_sum(x, kernel),
    lambda kernel, g, _: _shifted_sum(g, jnp.flip(kernel, (0, 1))),
    _depthwise_dk,
)


def per_channel(
    v: Shaped[Array, " c"], x: Shaped[Array, "*n c"]
) -> Shaped[Array, "*n c"]:
    """One value per channel, broadcast to the shape of x, as for a bias or a scale.

    On CPU this is a product with ones, which costs nothing forward and makes the
    gradient a matmul: XLA:CPU sums over all axes but the last at a quarter of that
    speed. Maps larger than the caches gain nothing, since the matmul reads them once
    more.
    """
    known = all(isinstance(n, int) for n in x.shape)
    if not known or x.size > 2**20:
        return _broadcast(x.shape)(v)
    return by_platform(_product(x.shape), _broadcast(x.shape), v)


@functools.cache
def _broadcast(shape: tuple[Any, ...]) -> Callable[[Array], Array]:
    def broadcast(v: Array) -> Array:
        return jnp.broadcast_to(v.reshape((1,) * (len(shape) - 1) + (-1,)), shape)

    return broadcast


@functools.cache
def _product(shape: tuple[Any, ...]) -> Callable[[Array], Array]:
    def product(v: Array) -> Array:
        ones = jnp.ones((math.prod(shape[:-1]), 1), v.dtype)
        return (ones @ v[None]).reshape(shape)

    return product


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
    """Mean over 2 x 2 windows; short windows at an odd side average what they have."""
    _, h, w, _ = x.shape
    total = _windows(x, 0.0).sum((2, 4))
    rows = jnp.full(-(-h // 2), 2, x.dtype).at[-1].add(-(h % 2))
    cols = jnp.full(-(-w // 2), 2, x.dtype).at[-1].add(-(w % 2))
    return total / (rows[:, None] * cols[None])[None, :, :, None]


def max_pool_with_switches(
    x: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b H W c"], UInt8[Array, "b H W c"]]:
    """`max_pool`, and the position of each maximum in its window: 0-3, rows first.

    Among equal maxima the first counts, for both switch and gradient.
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
    place = np.arange(4, dtype=np.uint8).reshape(1, 1, 2, 1, 2, 1)
    return (switches[:, :, None, :, None] == place).astype(dtype)


def max_unpool(
    y: Float[Array, "b h w c"],
    switches: UInt8[Array, "b h w c"],
    size: tuple[int, int],
) -> Float[Array, "b H W c"]:
    """Put each value back at the pixel its maximum came from, zeros elsewhere.

    The classic unpooling, partner of `max_pool_with_switches`; `size` is the size
    before pooling. It compares positions in the window instead of scattering.
    """
    b, h, w, c = y.shape
    spread = y[:, :, None, :, None] * _one_hot(switches, y.dtype)
    return spread.reshape(b, 2 * h, 2 * w, c)[:, : size[0], : size[1]]


def mean_pool_3x3(
    x: Float[Array, "b h w c"], counts_padding: bool = True
) -> Float[Array, "b h w c"]:
    """Mean over 3 x 3 windows, stride 1, padded with zeros.

    With `counts_padding` the zeros count, as in PyTorch; otherwise a mean is over the
    pixels that there are, as in TensorFlow.
    """
    for axis in (1, 2):
        n, pads = x.shape[axis], [(0, 0)] * 4
        pads[axis] = (1, 1)
        padded = jnp.pad(x, pads)
        taps = [lax.slice_in_dim(padded, t, t + n, axis=axis) for t in range(3)]
        count = np.full(n, 3)
        if not counts_padding:  # a single site has two borders
            count[0] -= 1
            count[-1] -= 1
        shape = [n if a == axis else 1 for a in range(4)]
        x = (taps[0] + taps[1] + taps[2]) / count.reshape(shape).astype(x.dtype)
    return x


def max_pool_3x3(
    x: Float[Array, "b h w c"], padded: bool = True
) -> Float[Array, "b H W c"]:
    """Maximum over 3 x 3 windows, stride 2, padded by one: the stem pool of ResNet.

    Rows, then columns, each as the maximum of three strided slices; avoids
    `reduce_window`. Not `padded`, sides of n give (n - 1) // 2.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        pads, out = [(0, 0)] * 4, (n - 1) // 2
        if padded:
            pads[axis], out = (1, 1 + n % 2), -(-n // 2)
        padded_x = jnp.pad(x, pads, constant_values=-math.inf)
        taps = [
            lax.slice_in_dim(padded_x, t, t + 2 * out - 1, stride=2, axis=axis)
            for t in range(3)
        ]
        x = jnp.maximum(jnp.maximum(taps[0], taps[1]), taps[2])
    return x


def upsample_nearest(x: Shaped[Array, "b h w c"], r: int) -> Shaped[Array, "b H W c"]:
    """Repeat pixels r x r times: `jax.image.resize(.., 'nearest')` without a gather."""
    b, h, w, c = x.shape
    y = jnp.broadcast_to(x[:, :, None, :, None], (b, h, r, w, r, c))
    return y.reshape(b, h * r, w * r, c)
