"""Gradient and Laplacian terms by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from afterimage import runtime
from afterimage.data.preprocessing import Preprocessing
from afterimage.errors import UserError
from afterimage.pretrain import losses
from afterimage.pretrain.losses import ReconstructionLoss

pytestmark = pytest.mark.usefixtures("tiny")


def compiled(function):
    """As one program, made when it is first called."""
    return lambda *args: runtime.jit(function)(*args)


gradient, laplacian = compiled(losses.gradient), compiled(losses.laplacian)
mse, l1, ssim = map(compiled, (losses.mse, losses.l1, losses.ssim))


def random(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_gradient_by_hand():
    error = jnp.array([[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]]).reshape(1, 2, 3, 1)
    expected = np.mean([1, 3, 3]) + np.mean([2, 1, 0, 5])
    np.testing.assert_allclose(gradient(error)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(gradient(error + 7), gradient(error), rtol=1e-6)


def test_laplacian_by_hand():
    error = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(4.0)
    # Halved: 1 in one of four. Lost: 3, 1, 1, 1 of sixteen.
    np.testing.assert_allclose(laplacian(error)[0], 6 / 16 + 1 / 4)


@pytest.mark.parametrize("size", [(2, 2), (9, 7), (16, 12), (70, 64)])
def test_a_shift_is_in_the_smallest_map_alone(size):
    shift = jnp.full((2, *size, 3), 0.5)
    np.testing.assert_allclose(laplacian(shift), np.full(2, 0.5), rtol=1e-6)
    np.testing.assert_array_equal(gradient(shift), np.zeros(2))


def loss(name="mse", **weights):
    preprocessing = Preprocessing((12, 12), (0.4,), (0.2,), 1)
    target = weights.pop("target", "data")
    made = ReconstructionLoss(
        loss=name, target=target, preprocessing=preprocessing, **weights
    )
    return compiled(made.per_image)


def test_terms_add_up():
    output, target = random(2, 12, 12, 1), jnp.zeros((2, 12, 12, 1))
    both = loss(gradient_weight=0.5, laplacian_weight=2.0)(output, target)
    expected = mse(output, target) + 0.5 * gradient(output) + 2 * laplacian(output)
    np.testing.assert_allclose(both, expected, rtol=1e-6)
    pixels, mean = 0.2 * output + 0.4, jnp.full(target.shape, 0.4)
    found = loss("l1", ssim_weight=3.0)(output, target)
    expected = l1(output, target) + 3 * (1 - ssim(pixels, mean))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["mse", "bce", "ssim"])
def test_with_a_mask_visible_pixels_cost_nothing(name):
    terms = loss(name, gradient_weight=1.0, laplacian_weight=1.0, ssim_weight=1.0)
    output, target = random(2, 12, 12, 1), jnp.full((2, 12, 12, 1), 0.5)
    mask = jnp.zeros((2, 12, 12), bool).at[:, :4].set(True)
    other = jnp.where(mask[..., None], output, 9.0)
    found = terms(output, target, mask)
    np.testing.assert_array_equal(found, terms(other, target, mask))
    assert np.all(np.asarray(found) > 0.1)


def test_structural_similarity_needs_pixels():
    with pytest.raises(UserError, match="ssim_weight"):
        loss(ssim_weight=1.0, target="image")
