"""Pooling equals its plain form, and its inverses undo it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.models import ops
from benchmarks import plain
from tests.forms import CASES, DTYPES, SIZES, check, check_faster, normal, on_cpu


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def size(request):
    return request.param


POOLS = {
    "max": (ops.max_pool, plain.max_pool),
    "max 3x3": (ops.max_pool_3x3, plain.max_pool_3x3),
    "mean": (ops.mean_pool, plain.mean_pool),
    "max with switches": (
        lambda x: ops.max_pool_with_switches(x)[0],
        plain.max_pool,
    ),
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
    check(*POOLS[name], x, tolerance=DTYPES[dtype])


def test_max_pool_at_even_sizes_is_flax_max_pool():
    x = normal(0, 2, 6, 8, 3)
    np.testing.assert_array_equal(ops.max_pool(x), nn.max_pool(x, (2, 2), (2, 2)))


def test_max_pool_shares_the_gradient_of_equal_maxima():
    gradient = jax.grad(lambda x: ops.max_pool(x).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient, jnp.full((1, 2, 2, 1), 0.25))


def test_unpool_equals_its_plain_form(size):
    x = normal(0, 2, *size, 3)
    pooled, switches = ops.max_pool_with_switches(x)
    np.testing.assert_array_equal(switches, plain.max_pool_with_switches(x)[1])
    check(
        lambda y: ops.max_unpool(y, switches, size),
        lambda y: plain.max_unpool(y, switches, size),
        pooled,
    )


def test_unpool_puts_each_maximum_back_in_its_place(size):
    x = normal(0, 2, *size, 3)
    back = ops.max_unpool(*ops.max_pool_with_switches(x), size)
    kept = np.asarray(back) != 0
    assert kept.sum() == 2 * -(-size[0] // 2) * -(-size[1] // 2) * 3
    np.testing.assert_array_equal(np.asarray(back)[kept], np.asarray(x)[kept])


# What each form must save on CPU; measured ratios are two to four times these bounds.
GUARDS = {
    "max": (*POOLS["max"], (64, 16, 16, 64), None, 2.0),
    "max 3x3": (*POOLS["max 3x3"], (64, 16, 16, 64), None, 1.2),
    "nearest 2": (*POOLS["nearest 2"], (64, 16, 16, 64), None, 1.5),
}


@on_cpu
@pytest.mark.parametrize("name", GUARDS)
def test_faster_than_the_plain_form(name):
    check_faster(*GUARDS[name])
