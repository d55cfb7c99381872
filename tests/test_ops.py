"""Every product equals its plain Flax or lax form, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from afterimage import runtime
from afterimage.models import ops
from benchmarks import plain
from tests.forms import (
    CASES,
    DTYPES,
    SIZES,
    check,
    check_faster,
    close,
    milliseconds,
    normal,
    on_cpu,
)

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
    x = normal(0, 2, *SIZES[size], 3, dtype=dtype)
    kernel = normal(1, *shape, dtype=dtype)
    check(ours, plainly, x, kernel, tolerance=DTYPES[dtype])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", KERNELS)
def test_forms_for_other_platforms_equal_those_of_the_cpu(name, size):
    ours, _, shape = KERNELS[name]

    def other(x, kernel):
        with ops.plain_forms():
            return ours(x, kernel)

    x, kernel = normal(0, 2, *SIZES[size], 3), normal(1, *shape)
    check(ours, other, x, kernel)


@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 0), (0, 1)), None])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv2d_with_padding_and_stride(padding, stride):
    x, kernel = normal(0, 2, 7, 6, 3), normal(1, 2, 3, 3, 4)
    check(
        lambda x, k: ops.conv2d(x, k, stride, padding),
        lambda x, k: plain.conv(x, k, stride, padding),
        x,
        kernel,
    )


@pytest.mark.parametrize("side", [(7, 6), (1, 2)])
@pytest.mark.parametrize(("k", "same"), [(3, True), (5, True), (3, False)])
def test_depthwise_conv_with_a_stride(side, k, same):
    x, kernel = normal(0, 2, *side, 3), normal(1, k, k, 1, 3)

    def plainly(x, kernel):
        pads = "SAME" if same else ((k // 2, k // 2),) * 2
        names = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (2, 2), pads, dimension_numbers=names, feature_group_count=3
        )

    check(lambda x, y: ops.depthwise_conv_strided(x, y, 2, same), plainly, x, kernel)


@pytest.mark.parametrize("side", [(2, 2), (1, 1), (3, 4), (2, 7)])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv2d_on_tiny_maps(side, stride):
    x, kernel = normal(0, 2, *side, 3), normal(1, 3, 3, 3, 4)
    check(
        lambda x, k: ops.conv2d(x, k, stride),
        lambda x, k: plain.conv(x, k, stride),
        x,
        kernel,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 5, 4)], ids=str)
def test_matmul_equals_its_plain_form(shape, dtype):
    x, kernel = normal(0, *shape, dtype=dtype), normal(1, 4, 6, dtype=dtype)
    check(ops.matmul, plain.matmul, x, kernel, tolerance=DTYPES[dtype])


FORWARD = {
    **{name: KERNELS[name] for name in ("up 2", "k4s2", "conv 3x3", "depthwise 3")},
    "matmul": (ops.matmul, plain.matmul, (3, 5)),
    "conv on a tiny map": (lambda x, k: ops.conv2d(x[:, :1], k), None, (3, 3, 3, 5)),
}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_mode_agrees_with_reverse_mode(name):
    """Jacobians by both modes, and forward over reverse for the second derivative."""
    ours, _, shape = FORWARD[name]
    x, kernel = normal(0, 1, 4, 3, 3), 0.3 * normal(1, *shape)

    def value(x, kernel):
        return jnp.tanh(ours(x, kernel)).sum((1, 2))

    for argument in (0, 1):
        forward, backward = (
            jax.jit(mode(value, argument))(x, kernel)
            for mode in (jax.jacfwd, jax.jacrev)
        )
        close(forward, backward, 1e-5)

    slope = jax.grad(lambda x, k: value(x, k).sum(), (0, 1))
    along = (normal(2, *x.shape), normal(3, *kernel.shape))
    _, forward = jax.jit(lambda *v: jax.jvp(slope, (x, kernel), v))(*along)
    _, pull = jax.vjp(slope, x, kernel)
    # A Hessian is symmetric, so that its transpose gives the same product.
    for got, expected in zip(forward, jax.jit(pull)(along), strict=True):
        close(got, expected, 1e-5)


def test_what_has_no_tangent_costs_no_product():
    """A frozen kernel, or images: neither its gradient nor a product with zeros."""
    x, kernel = normal(0, 2, 8, 8, 3), normal(1, 3, 3, 3, 4)

    def products(argument):
        slope = jax.grad(lambda x, k: ops.conv2d(x, k).sum(), argument)
        return jax.jit(slope).lower(x, kernel).as_text().count("stablehlo.convolution")

    assert [products(a) for a in (0, 1, (0, 1))] == [1, 1, 2]


@pytest.mark.parametrize(("size", "dtype"), CASES)
def test_per_channel_equals_broadcasting(size, dtype):
    x = normal(0, 2, *SIZES[size], 3, dtype=dtype)
    v = normal(1, 3, dtype=dtype)
    check(
        lambda v, x: ops.per_channel(v, x) * x,
        lambda v, x: plain.per_channel(v, x) * x,
        v,
        x,
        tolerance=DTYPES[dtype],
    )


@settings(deadline=None, max_examples=8)
@given(r=st.integers(1, 4), h=st.integers(1, 4), w=st.integers(1, 4))
def test_depth_to_space_undoes_space_to_depth(r, h, w):
    x = normal(0, 2, h * r, w * r, 3)
    np.testing.assert_array_equal(ops.depth_to_space(ops.space_to_depth(x, r), r), x)


def test_space_to_depth_orders_rows_first():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(
        ops.space_to_depth(x, 2).ravel(), jnp.array([0.0, 1.0, 2.0, 3.0])
    )


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
}


@on_cpu
@pytest.mark.parametrize("name", GUARDS)
def test_faster_than_the_plain_form(name):
    check_faster(*GUARDS[name])


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
    x, kernel = normal(0, 4, 8, 8, 3), normal(1, 3, 3, 3, 4)
    close(
        _descend(ops.conv2d, kernel, x, True),
        _descend(plain.conv, kernel, x, False),
        1e-5,
    )


@on_cpu
def test_convolution_gradient_inside_scan_is_not_slow():
    x, kernel = normal(0, 32, 16, 16, 32), normal(1, 3, 3, 32, 32)

    def run(scanned):
        step = runtime.jit(lambda k: _descend(ops.conv2d, k, x, scanned))
        return lambda: jax.block_until_ready(step(kernel))

    looped, unrolled = milliseconds(run(True), run(False))
    assert looped <= 2 * unrolled, f"scan {looped:.2f} ms, unrolled {unrolled:.2f} ms"


def test_the_platform_of_the_program_chooses_the_form():
    """A program for an accelerator, made on this CPU, holds no detour for CPUs."""

    def loss(x, kernel, depthwise, v):
        y = ops.depthwise_conv(x, depthwise)
        y = ops.conv2d(y[:, :1], kernel) + ops.per_channel(v, y[:, :1])
        return ops.matmul(y, kernel[0, 0]).sum()

    args = [normal(n, *s) for n, s in enumerate(((2, 8, 8, 4), (3, 3, 4, 4)))]
    args += [normal(2, 7, 7, 1, 4), normal(3, 4)]
    traced = jax.jit(jax.grad(loss, (0, 1, 2, 3))).trace(*args)
    texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in PLATFORMS}
    own = {p: text.count("feature_group_count = 4") for p, text in texts.items()}
    assert own["cpu"] == 0 < own["tpu"] == own["cuda"]
    assert "optimization_barrier" in texts["cpu"]
    with ops.plain_forms():
        plain = jax.jit(jax.grad(loss, (0, 1, 2, 3)))
        text = plain.trace(*args).lower(lowering_platforms=("tpu",)).as_text()
    for name in ("convolution", "dot_general", "pad", "barrier"):
        assert text.count(name) == texts["tpu"].count(name), name


PLATFORMS = ("cpu", "cuda", "tpu")
