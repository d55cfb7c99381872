"""Whitened patches, against the formula written out with loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afterimage import runtime
from afterimage.models import ModelConfig, Network, build_encoder, ops
from tests.forms import milliseconds, on_cpu

FLOOR, WHITENING, THRESHOLD = 0.0025, 0.1, 0.25


def images(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def made(size, channels, width=0.03):
    config = ModelConfig("conv-patches", size, channels, width=width)
    return Network.create(build_encoder(config, rngs=nnx.Rngs(0)))


def applied(network, params, stats, x, **settings):
    given = {k: jnp.asarray(v) if k == "mask" else v for k, v in settings.items()}
    run = runtime.jit(lambda p, s, x: network.apply(p, s, x, **given))
    (out,), stats = run(params, stats, x)
    return np.asarray(out), stats


def windows(x, k=6):
    """[b, h - k + 1, w - k + 1, k, k, c]."""
    found = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))
    return found.transpose(0, 1, 2, 4, 5, 3)


def normalised(x):
    p = windows(x.astype(np.float64))
    p = p.reshape(*p.shape[:3], -1)
    p = p - p.mean(-1, keepdims=True)
    return p / np.sqrt((p**2).mean(-1, keepdims=True) + FLOOR)


def moved(stats):
    """Statistics as training might leave them."""
    layer = dict(stats["stages"]["0"])
    d = len(layer["mean"])
    rng = np.random.default_rng(3)
    layer["mean"] = 0.1 * rng.normal(size=d).astype(np.float32)
    mix = rng.normal(size=(d, d)) / np.sqrt(d)
    layer["whitening"] = (mix @ mix.T + np.eye(d)).astype(np.float32)
    return {"stages": {"0": layer}}


def expected(params, stats, x, stride=4):
    layer = stats["stages"]["0"]
    kernel = np.asarray(params["stages"]["0"]["kernel"], np.float64)
    kernel = kernel / np.linalg.norm(kernel, axis=0)
    white = (normalised(x) - layer["mean"]) @ layer["whitening"]
    answers = np.maximum(white @ kernel - THRESHOLD, 0)
    answers = np.pad(answers, ((0, 0), (2, 3), (2, 3), (0, 0)))
    _, h, w, _ = x.shape
    rows, columns = range(0, h, stride), range(0, w, stride)
    return np.stack(
        [
            np.stack(
                [
                    answers[:, i : i + stride, j : j + stride].mean((1, 2))
                    for j in columns
                ],
                1,
            )
            for i in rows
        ],
        1,
    )


@pytest.mark.parametrize(("size", "channels"), [((9, 14), 1), ((12, 8), 3)])
def test_the_map_is_the_formula(size, channels):
    network, params, stats = made(size, channels)
    stats, x = moved(stats), images(1, 2, *size, channels)
    found, _ = applied(network, params, stats, x)
    np.testing.assert_allclose(found, expected(params, stats, x), atol=2e-5)


def test_whole_batches_and_single_images_agree():
    """Accelerators take a batch at once; their gradients are the same too."""
    network, params, stats = made((9, 14), 3)
    stats, x = moved(stats), images(1, 3, 9, 14, 3)

    def loss(params):
        (out,), _ = network.apply(params, stats, x)
        return jnp.square(out).sum(), out

    both = jax.value_and_grad(loss, has_aux=True)
    one = jax.jit(both)(params)
    with ops.plain_forms():
        two = jax.jit(lambda params: both(params))(params)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, one, two)
    assert np.all(np.any(np.asarray(one[1]["stages"]["0"]["kernel"]) != 0, axis=0))


def test_training_whitens_by_the_patches_it_saw():
    network, params, stats = made((16, 16), 3)
    x = images(1, 8, 16, 16, 3)
    _, once = applied(network, params, stats, x, train=True)
    _, twice = applied(network, params, once, x, train=True)
    rows = normalised(x)[:, ::3, ::3].reshape(-1, 108)
    covariance = np.cov(rows.T, bias=True)
    energy, basis = np.linalg.eigh(covariance)
    whitening = (basis / np.sqrt(energy + WHITENING)) @ basis.T
    for count, found in enumerate((once, twice), 1):
        layer = found["stages"]["0"]
        assert layer["batches"] == count
        np.testing.assert_allclose(layer["mean"], rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(layer["covariance"], covariance, atol=1e-4)
        np.testing.assert_allclose(layer["whitening"], whitening, atol=1e-3)
    _, still = applied(network, params, once, x)
    jax.tree.map(np.testing.assert_array_equal, once, still)


def test_batches_of_other_images_count_alike():
    network, params, stats = made((16, 16), 1)
    means = []
    for seed in range(3):
        x = images(seed, 4, 16, 16, 1)
        _, stats = applied(network, params, stats, x, train=True)
        means.append(normalised(x)[:, ::3, ::3].reshape(-1, 36).mean(0))
    layer = stats["stages"]["0"]
    np.testing.assert_allclose(layer["mean"], np.mean(means, 0), atol=1e-5)


def test_where_no_patch_is_wholly_visible_nothing_moves():
    network, params, stats = made((16, 16), 3)
    mask = np.zeros((2, 16, 16), bool)
    mask[:, ::4] = True
    x = images(1, 2, 16, 16, 3)
    _, found = applied(network, params, moved(stats), x, mask=mask, train=True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        {k: v for k, v in found["stages"]["0"].items() if k != "whitening"},
        {k: v for k, v in moved(stats)["stages"]["0"].items() if k != "whitening"},
    )
    assert np.isfinite(found["stages"]["0"]["whitening"]).all()


def test_brightness_changes_nothing_and_contrast_little():
    network, params, stats = made((16, 16), 3)
    x = images(1, 2, 16, 16, 3)
    plain, _ = applied(network, params, stats, x)
    bright, _ = applied(network, params, stats, x + 2)
    np.testing.assert_allclose(bright, plain, atol=1e-4)
    strong, _ = applied(network, params, stats, 3 * x)
    np.testing.assert_allclose(strong, plain, atol=1e-2)
    assert plain.max() > 0.1


@on_cpu
def test_an_image_at_a_time_is_faster_than_a_batch():
    network, params, stats = made((32, 32), 3, width=1.0)
    x = images(1, 64, 32, 32, 3)

    def compiled():
        run = runtime.jit(lambda p, s, x: network.apply(p, s, x)[0])
        jax.block_until_ready(run(params, stats, x))
        return lambda: jax.block_until_ready(run(params, stats, x))

    one = compiled()
    with ops.plain_forms():
        batch = compiled()
    fast, slow = milliseconds(one, batch, rounds=4)
    assert slow / fast >= 1.2, f"{fast:.0f} ms, a batch at once {slow:.0f} ms"
