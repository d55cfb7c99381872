"""Losses against hand-computed values and an independent SSIM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.data.preprocessing import Preprocessing
from afterimage.errors import UserError
from afterimage.pretrain import losses
from afterimage.pretrain.losses import (
    LOSSES,
    ReconstructionLoss,
    loss_problems,
    masked_mean,
    ssim_window,
)

# Compiled once, not operation by operation.
mse, l1, huber, bce, ssim = map(
    jax.jit, (losses.mse, losses.l1, losses.huber, losses.bce, losses.ssim)
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def pixels(seed=0, shape=(4, 12, 10, 3)):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def objective(loss="mse", target="data"):
    preprocessing = Preprocessing((12, 10), MEAN, STD, 3)
    return ReconstructionLoss(loss=loss, target=target, preprocessing=preprocessing)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (mse, (0.25 + 4.0) / 2),
        (l1, (0.5 + 2.0) / 2),
        (huber, (0.125 + 1.5) / 2),
        # target 0, logits 0.5 and -2: log(1 + e^z)
        (bce, (np.log1p(np.exp(0.5)) + np.log1p(np.exp(-2.0))) / 2),
    ],
    ids=["mse", "l1", "huber", "bce"],
)
def test_elementwise_losses_by_hand(loss, expected):
    output = jnp.array([0.5, -2.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(loss(output, jnp.zeros((1, 1, 2, 1)))[0], expected, 1e-6)


def test_bce_is_the_cross_entropy_of_a_sigmoid_and_never_overflows():
    z, t = np.linspace(-8, 8, 12), np.linspace(0, 1, 12)
    p = 1 / (1 + np.exp(-z))
    expected = np.mean(-t * np.log(p) - (1 - t) * np.log(1 - p))
    shape = (1, 3, 4, 1)
    got = bce(jnp.array(z, jnp.float32).reshape(shape), jnp.array(t).reshape(shape))
    np.testing.assert_allclose(got[0], expected, 1e-5)
    huge = jnp.full(shape, 1e4)
    value, grad = jax.value_and_grad(lambda z: bce(z, jnp.zeros(shape)).sum())(huge)
    np.testing.assert_allclose(value, 1e4, 1e-6)
    np.testing.assert_allclose(grad, np.full(shape, 1 / 12), 1e-5)


def _reference_ssim(x, y):
    """Wang 2004 window by window, in float64, one image of one channel."""
    taps = ssim_window(*x.shape).astype(np.float64)
    window, k = np.outer(taps, taps), len(taps)
    scores = []
    for i in range(x.shape[0] - k + 1):
        for j in range(x.shape[1] - k + 1):
            a, b = x[i : i + k, j : j + k], y[i : i + k, j : j + k]
            ma, mb = (window * a).sum(), (window * b).sum()
            va = (window * (a - ma) ** 2).sum()
            vb = (window * (b - mb) ** 2).sum()
            cov = (window * (a - ma) * (b - mb)).sum()
            scores.append(
                ((2 * ma * mb + 1e-4) * (2 * cov + 9e-4))
                / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
            )
    return np.mean(scores)


@pytest.mark.parametrize("shape", [(16, 13), (8, 8), (11, 30), (5, 9), (1, 1)])
def test_ssim_equals_the_definition(shape):
    x = np.random.default_rng(1).random((2, *shape, 2), dtype=np.float32)
    y = np.clip(x + 0.2 * np.random.default_rng(2).standard_normal(x.shape), 0, 1)
    y = y.astype(np.float32)
    expected = [
        np.mean([_reference_ssim(a[..., c].astype(float), b[..., c]) for c in (0, 1)])
        for a, b in zip(x, y)
    ]
    np.testing.assert_allclose(ssim(jnp.array(x), jnp.array(y)), expected, atol=2e-5)


def test_ssim_equals_a_published_value():
    # scipy's Gaussian filter with truncate 3.5 is what scikit-image calls.
    from scipy.ndimage import gaussian_filter

    x, y = pixels(3, (1, 32, 32, 1)), pixels(4, (1, 32, 32, 1))
    blur = lambda z: gaussian_filter(z[0, :, :, 0].astype(float), 1.5, truncate=3.5)  # noqa: E731
    ux, uy = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - ux**2, blur(y * y) - uy**2, blur(x * y) - ux * uy
    score = (2 * ux * uy + 1e-4) * (2 * vxy + 9e-4)
    score /= (ux**2 + uy**2 + 1e-4) * (vx + vy + 9e-4)
    got = ssim(jnp.array(x), jnp.array(y))[0]
    np.testing.assert_allclose(got, score[5:-5, 5:-5].mean(), atol=1e-5)


def test_ssim_window_shrinks_with_the_image():
    assert [len(ssim_window(n, 50)) for n in (50, 11, 10, 8, 2, 1)] == [
        11,
        11,
        9,
        7,
        1,
        1,
    ]
    np.testing.assert_allclose(ssim_window(64, 64).sum(), 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["mse", "l1", "huber", "ssim"]))
def test_a_perfect_reconstruction_costs_nothing_and_any_other_costs_more(seed, loss):
    fn = objective(loss)
    target = fn.targets(jnp.array(pixels(seed)))
    np.testing.assert_allclose(fn.per_image(target, target), np.zeros(4), atol=1e-5)
    other = fn.per_image(target + 0.5, target)
    assert np.all(np.asarray(other) > 1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_of_an_image_depends_on_that_image_alone(loss):
    fn = objective(loss)
    images = jnp.array(pixels())
    target = fn.targets(images)
    output = 0.3 * target
    whole = fn.per_image(output, target)
    single = jnp.concatenate(
        [fn.per_image(output[i : i + 1], target[i : i + 1]) for i in range(4)]
    )
    np.testing.assert_allclose(whole, single, rtol=1e-5)
    grads = jax.grad(lambda o: fn.per_image(o, target)[0])(output)
    assert np.abs(grads[0]).max() > 0
    np.testing.assert_array_equal(grads[1:], jnp.zeros_like(grads[1:]))


def test_mse_of_predicting_the_channel_means_is_one():
    images = pixels(5, (64, 8, 8, 3))
    mean = tuple(images.mean((0, 1, 2)).tolist())
    std = tuple(images.std((0, 1, 2)).tolist())
    preprocessing = Preprocessing((8, 8), mean, std, 3)
    fn = ReconstructionLoss(loss="mse", target="data", preprocessing=preprocessing)
    target = fn.targets(jnp.array(images))
    np.testing.assert_allclose(
        fn.per_image(jnp.zeros_like(target), target).mean(), 1.0, rtol=1e-4
    )


@pytest.mark.parametrize("loss", ["mse", "l1", "huber", "bce", "ssim"])
def test_the_target_itself_turns_back_into_the_picture(loss):
    fn = objective(loss)
    images = jnp.array(pixels()).clip(0.05, 0.95)
    target = fn.targets(images)
    output = jax.scipy.special.logit(target) if loss == "bce" else target
    np.testing.assert_allclose(fn.pictures(output, images), images, atol=1e-5)


def test_image_target_is_standardised_and_ignores_brightness_and_contrast():
    fn = objective(target="image")
    images = jnp.array(pixels())
    target = fn.targets(images)
    np.testing.assert_allclose(target.mean((1, 2, 3)), np.zeros(4), atol=1e-5)
    np.testing.assert_allclose(target.std((1, 2, 3)), np.ones(4), atol=1e-4)
    np.testing.assert_allclose(fn.pictures(target, images), images, atol=1e-4)
    flat = fn.targets(jnp.full((1, 8, 8, 3), 0.5))
    assert np.isfinite(np.asarray(flat)).all()


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_constant_output_is_the_best_constant(loss):
    fn = objective(loss)
    target = fn.targets(jnp.array(pixels(7, (32, 6, 6, 3))))
    best = fn.constant_output(target.mean(0))
    score = lambda output: fn.per_image(  # noqa: E731
        jnp.broadcast_to(output, target.shape), target
    ).mean()
    slope = jax.grad(score)(best)
    np.testing.assert_allclose(slope, np.zeros(slope.shape), atol=1e-6)


def test_masked_mean_leaves_padding_out_even_if_it_is_nan():
    values = jnp.array([1.0, 3.0, jnp.nan])
    assert masked_mean(values, jnp.array([True, True, False])) == 2.0
    assert masked_mean(values, jnp.zeros(3, bool)) == 0.0
    assert masked_mean(values[:2]) == 2.0


def test_patch_target_is_that_of_the_masked_autoencoders_code():
    """`(target - mean) / (var + 1e-6) ** 0.5`, torch's `var`: of n - 1
    (facebookresearch/mae, `forward_loss`). The last patches have the two rows that
    there are."""
    preprocessing = Preprocessing((10, 12), MEAN, STD, 3)
    loss = ReconstructionLoss(
        loss="mse", target="patch", preprocessing=preprocessing, patch=4
    )
    images = pixels(shape=(2, 10, 12, 3))
    found = np.asarray(loss.targets(jnp.asarray(images)))
    x = (images - np.array(MEAN)) / np.array(STD)
    for row, column in np.ndindex(3, 3):
        place = np.s_[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        flat = x[place].reshape(2, -1)
        flat = flat - flat.mean(1, keepdims=True)
        expected = flat / np.sqrt(flat.var(1, ddof=1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(
            found[place].reshape(2, -1), expected, rtol=1e-4, atol=1e-5
        )


def test_a_patch_of_a_single_value_is_its_own_mean():
    preprocessing = Preprocessing((4, 4), (0.5,), (0.25,), 1)
    loss = ReconstructionLoss(
        loss="mse", target="patch", preprocessing=preprocessing, patch=1
    )
    found = loss.targets(jnp.asarray(pixels(shape=(2, 4, 4, 1))))
    np.testing.assert_array_equal(found, np.zeros((2, 4, 4, 1)))


def test_every_mistake_is_named_at_once():
    found = loss_problems("mae", "patches")
    assert len(found) == 2
    assert "loss='mae'" in found[0]
    assert "target='patches'" in found[1]
    for loss in ("bce", "ssim"):
        with pytest.raises(UserError, match="Use target='data'"):
            objective(loss, "image")
