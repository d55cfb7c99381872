"""What the tests of operations share: an operation beside its plain form."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage import runtime

SIZES = {"even": (8, 6), "odd": (7, 9), "one row": (1, 4)}
DTYPES = {"float32": 1e-5, "bfloat16": 6e-2}


def normal(seed, *shape, dtype="float32"):
    # NumPy's: JAX would compile its generator anew for every shape.
    values = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(values.astype(np.float32), dtype)


def close(got, expected, tolerance):
    got, expected = (np.asarray(x, np.float32) for x in (got, expected))
    assert got.shape == expected.shape
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(got / scale, expected / scale, atol=tolerance)


def check(ours, plainly, *args, tolerance=1e-5):
    """Values and the gradients of every argument agree, with a random cotangent."""

    # One compilation a case, unoptimised: that is most of the time here.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(*args):
        y, pull = jax.vjp(ours, *args)
        z, pull_plain = jax.vjp(plainly, *args)
        g = normal(99, *y.shape, dtype=str(y.dtype))
        return (y, *pull(g)), (z, *pull_plain(g))

    for mine, theirs in zip(*both(*args), strict=True):
        assert mine.dtype == theirs.dtype
        close(mine, theirs, tolerance)


CASES = [(size, "float32") for size in SIZES] + [("odd", "bfloat16")]


def milliseconds(*runs, rounds=21):
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


def forward_and_backward(function, *args):
    def both(*args):
        y, pull = jax.vjp(function, *args)
        return pull(y)

    compiled = runtime.jit(both)
    return lambda: jax.block_until_ready(compiled(*args))


def check_faster(ours, plainly, shape, kernel, bound):
    """On this CPU it takes `bound` times less, forward and backward."""
    args = [normal(0, *shape)] + ([normal(1, *kernel)] if kernel else [])
    fast, slow = milliseconds(
        forward_and_backward(ours, *args), forward_and_backward(plainly, *args)
    )
    assert slow / fast >= bound, f"{fast:.2f} ms, plain {slow:.2f} ms"


def on_cpu(test):
    """Marks a test of what is slow on CPU."""
    reason = "guards what is slow on CPU"
    skip = pytest.mark.skipif(jax.default_backend() != "cpu", reason=reason)
    return pytest.mark.speed(skip(test))
