"""Every operation equals its plain Flax or lax form, in values and gradients."""

import functools
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage import runtime
from afterimage.models import ops
from benchmarks import plain

SIZES = {"even": (8, 6), "odd": (7, 9), "one row": (1, 4)}
DTYPES = {"float32": 1e-5, "bfloat16": 6e-2}


def _normal(seed, *shape, dtype="float32"):
    # NumPy's: JAX would compile its generator anew for every shape.
    values = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(values.astype(np.float32), dtype)


def _close(got, expected, tolerance):
    got, expected = (np.asarray(x, np.float32) for x in (got, expected))
    assert got.shape == expected.shape
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(got / scale, expected / scale, atol=tolerance)


def _check(ours, plainly, *args, tolerance=1e-5):
    """Values and the gradients of every argument agree, with a random cotangent."""

    # One compilation a case, unoptimised: that is most of the time here.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(*args):
        y, pull = jax.vjp(ours, *args)
        z, pull_plain = jax.vjp(plainly, *args)
        g = _normal(99, *y.shape, dtype=str(y.dtype))
        return (y, *pull(g)), (z, *pull_plain(g))

    for mine, theirs in zip(*both(*args), strict=True):
        assert mine.dtype == theirs.dtype
        _close(mine, theirs, tolerance)


CASES = [(size, "float32") for size in SIZES] + [("odd", "bfloat16")]


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def size(request):
    return request.param


KERNELS = {
    "patchify 1": (ops.patchify, plain.patchify, (1, 1, 3, 5)),
    "patchify 2": (ops.patchify, plain.patchify, (2, 2, 3, 5)),
    "patchify 4": (ops.patchify, plain.patchify, (4, 4, 3, 5)),
    "up 1": (ops.conv_transpose_patch, plain.conv_transpose, (1, 1, 3, 5)),
    "up 2": (ops.conv_transpose_patch, plain.conv_transpose, (2, 2, 3, 5)),
    "up 4": (ops.conv_transpose_patch, plain.conv_transpose, (4, 4, 3, 5)),
    "k4s2": (ops.conv_transpose_4x4, plain.conv_transpose_4x4, (4, 4, 3, 5)),
    "conv 3x3": (ops.conv2d, plain.conv, (3, 3, 3, 5)),
    "conv 7x7": (ops.conv2d, plain.conv, (7, 7, 3, 5)),
    "conv 1x3": (ops.conv2d, plain.conv, (1, 3, 3, 5)),
    "depthwise 3": (ops.depthwise_conv, plain.depthwise_conv, (3, 3, 1, 3)),
    "depthwise 7": (ops.depthwise_conv, plain.depthwise_conv, (7, 7, 1, 3)),
}


@pytest.mark.parametrize(("size", "dtype"), CASES)
@pytest.mark.parametrize("name", KERNELS)
def test_convolutions_equal_their_plain_form(name, size, dtype):
    ours, plainly, shape = KERNELS[name]
    x = _normal(0, 2, *SIZES[size], 3, dtype=dtype)
    kernel = _normal(1, *shape, dtype=dtype)
    _check(ours, plainly, x, kernel, tolerance=DTYPES[dtype])


@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 0), (0, 1)), None])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv2d_with_padding_and_stride(padding, stride):
    x, kernel = _normal(0, 2, 7, 6, 3), _normal(1, 2, 3, 3, 4)
    _check(
        lambda x, k: ops.conv2d(x, k, stride, padding),
        lambda x, k: plain.conv(x, k, stride, padding),
        x,
        kernel,
    )


@pytest.mark.parametrize("side", [(2, 2), (1, 1), (3, 4), (2, 7)])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv2d_on_tiny_maps(side, stride):
    x, kernel = _normal(0, 2, *side, 3), _normal(1, 3, 3, 3, 4)
    _check(
        lambda x, k: ops.conv2d(x, k, stride),
        lambda x, k: plain.conv(x, k, stride),
        x,
        kernel,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 5, 4)], ids=str)
def test_matmul_equals_its_plain_form(shape, dtype):
    x, kernel = _normal(0, *shape, dtype=dtype), _normal(1, 4, 6, dtype=dtype)
    _check(ops.matmul, plain.matmul, x, kernel, tolerance=DTYPES[dtype])


@pytest.mark.parametrize(("size", "dtype"), CASES)
def test_per_channel_equals_broadcasting(size, dtype):
    x = _normal(0, 2, *SIZES[size], 3, dtype=dtype)
    v = _normal(1, 3, dtype=dtype)
    _check(
        lambda v, x: ops.per_channel(v, x) * x,
        lambda v, x: plain.per_channel(v, x) * x,
        v,
        x,
        tolerance=DTYPES[dtype],
    )


POOLS = {
    "max": (ops.max_pool, plain.max_pool),
    "max 3x3": (ops.max_pool_3x3, plain.max_pool_3x3),
    "mean": (ops.mean_pool, plain.mean_pool),
    "max with switches": (lambda x: ops.max_pool_with_switches(x)[0], plain.max_pool),
    "nearest 2": (
        lambda x: ops.upsample_nearest(x, 2),
        lambda x: plain.upsample_nearest(x, 2),
    ),
    "nearest 3": (
        lambda x: ops.upsample_nearest(x, 3),
        lambda x: plain.upsample_nearest(x, 3),
    ),
}


@pytest.mark.parametrize(("size", "dtype"), CASES)
@pytest.mark.parametrize("name", POOLS)
def test_pooling_equals_its_plain_form(name, size, dtype):
    # Distinct values: where two are equal, the forms share the gradient differently.
    # At most 256 of them, which bfloat16 tells apart.
    h, w = SIZES[size]
    order = np.random.default_rng(0).permutation(h * w * 3).reshape(1, h, w, 3)
    x = jnp.asarray(order - h * w * 3 // 2, dtype)
    _check(*POOLS[name], x, tolerance=DTYPES[dtype])


def test_max_pool_at_even_sizes_is_flax_max_pool():
    x = _normal(0, 2, 6, 8, 3)
    np.testing.assert_array_equal(ops.max_pool(x), nn.max_pool(x, (2, 2), (2, 2)))


def test_max_pool_shares_the_gradient_of_equal_maxima():
    gradient = jax.grad(lambda x: ops.max_pool(x).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient, jnp.full((1, 2, 2, 1), 0.25))


def test_unpool_equals_its_plain_form(size):
    x = _normal(0, 2, *size, 3)
    pooled, switches = ops.max_pool_with_switches(x)
    np.testing.assert_array_equal(switches, plain.max_pool_with_switches(x)[1])
    _check(
        lambda y: ops.max_unpool(y, switches, size),
        lambda y: plain.max_unpool(y, switches, size),
        pooled,
    )


def test_unpool_puts_each_maximum_back_in_its_place(size):
    x = _normal(0, 2, *size, 3)
    back = ops.max_unpool(*ops.max_pool_with_switches(x), size)
    kept = np.asarray(back) != 0
    assert kept.sum() == 2 * -(-size[0] // 2) * -(-size[1] // 2) * 3
    np.testing.assert_array_equal(np.asarray(back)[kept], np.asarray(x)[kept])


@settings(deadline=None, max_examples=8)
@given(r=st.integers(1, 4), h=st.integers(1, 4), w=st.integers(1, 4))
def test_depth_to_space_undoes_space_to_depth(r, h, w):
    x = _normal(0, 2, h * r, w * r, 3)
    np.testing.assert_array_equal(ops.depth_to_space(ops.space_to_depth(x, r), r), x)


def test_space_to_depth_orders_rows_first():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(
        ops.space_to_depth(x, 2).ravel(), jnp.array([0.0, 1.0, 2.0, 3.0])
    )


@settings(deadline=None, max_examples=10)
@given(
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_patch_mask_hides_exactly_its_share(h, w, ratio, seed):
    mask = ops.patch_mask(jax.random.key(seed), 3, (h, w), ratio)
    assert mask.shape == (3, h, w)
    assert (np.asarray(mask).sum((1, 2)) == round(ratio * h * w)).all()


def test_patch_mask_is_uniform_over_patches():
    mask = ops.patch_mask(jax.random.key(0), 4000, (3, 3), 1 / 3)
    # 4000 draws of probability 1/3: deviation 0.0075.
    np.testing.assert_allclose(np.asarray(mask).mean(0), 1 / 3, atol=0.035)


def _milliseconds(*runs, rounds=7):
    """The least time of each, interleaved: noise only ever adds."""
    best = [float("inf")] * len(runs)
    for run in runs:
        run()
    for _ in range(rounds):
        for n, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[n] = min(best[n], 1e3 * (time.perf_counter() - start))
    return best


def _forward_and_backward(function, *args, jit=runtime.jit):
    def both(*args):
        y, pull = jax.vjp(function, *args)
        return pull(y)

    compiled = jit(both)
    return lambda: jax.block_until_ready(compiled(*args))


# What each form must save on CPU; measured ratios are two to four times these bounds.
GUARDS = {
    "k4s2": (*KERNELS["k4s2"][:2], (64, 8, 8, 64), (4, 4, 64, 32), 1.3),
    "up 2": (*KERNELS["up 2"][:2], (64, 8, 8, 64), (2, 2, 64, 32), 1.3),
    "conv 2x2": (*KERNELS["conv 3x3"][:2], (64, 2, 2, 64), (3, 3, 64, 64), 2.0),
    "depthwise 7": (*KERNELS["depthwise 7"][:2], (64, 16, 16, 32), (7, 7, 1, 32), 2.0),
    "scale": (
        lambda x, v: x * ops.per_channel(v, x),
        lambda x, v: x * plain.per_channel(v, x),
        (64, 16, 16, 64),
        (64,),
        1.3,
    ),
    "max": (*POOLS["max"], (64, 16, 16, 64), None, 2.0),
    "max 3x3": (*POOLS["max 3x3"], (64, 16, 16, 64), None, 1.2),
    "nearest 2": (*POOLS["nearest 2"], (64, 16, 16, 64), None, 1.5),
}


@pytest.mark.speed
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="guards what is slow on CPU")
@pytest.mark.parametrize("name", GUARDS)
def test_faster_than_the_plain_form(name):
    ours, plainly, shape, kernel, bound = GUARDS[name]
    args = [_normal(0, *shape)] + ([_normal(1, *kernel)] if kernel else [])
    fast, slow = _milliseconds(
        _forward_and_backward(ours, *args), _forward_and_backward(plainly, *args)
    )
    assert slow / fast >= bound, f"{name}: {fast:.2f} ms, plain {slow:.2f} ms"


@pytest.mark.speed
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="guards what is slow on CPU")
def test_patch_mask_is_cheaper_than_two_sorts():
    def double_argsort(key):
        order = jnp.argsort(jnp.argsort(jax.random.uniform(key, (256, 256))))
        return order < 154

    key = jax.random.key(0)
    ours = runtime.jit(lambda key: ops.patch_mask(key, 256, (16, 16), 0.6))
    theirs = runtime.jit(double_argsort)
    fast, slow = _milliseconds(
        lambda: jax.block_until_ready(ours(key)),
        lambda: jax.block_until_ready(theirs(key)),
    )
    assert slow / fast >= 1.3, f"{fast:.2f} ms, two sorts {slow:.2f} ms"


def _descend(conv, kernel, x, scanned):
    def body(kernel, _):
        gradient = jax.grad(lambda k: jnp.square(conv(x, k)).mean())(kernel)
        return kernel - 0.01 * gradient, None

    if scanned:
        return jax.lax.scan(body, kernel, None, length=3)[0]
    for _ in range(3):
        kernel, _ = body(kernel, None)
    return kernel


def test_convolution_gradient_is_the_same_inside_scan():
    x, kernel = _normal(0, 4, 8, 8, 3), _normal(1, 3, 3, 3, 4)
    _close(
        _descend(ops.conv2d, kernel, x, True),
        _descend(plain.conv, kernel, x, False),
        1e-5,
    )


@pytest.mark.speed
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="guards what is slow on CPU")
def test_convolution_gradient_inside_scan_is_not_slow():
    x, kernel = _normal(0, 32, 16, 16, 32), _normal(1, 3, 3, 32, 32)

    def run(scanned):
        step = runtime.jit(lambda k: _descend(ops.conv2d, k, x, scanned))
        return lambda: jax.block_until_ready(step(kernel))

    looped, unrolled = _milliseconds(run(True), run(False))
    assert looped <= 2 * unrolled, f"scan {looped:.2f} ms, unrolled {unrolled:.2f} ms"
