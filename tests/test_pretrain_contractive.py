"""The Jacobian's norm: exact where the code is short, without bias where it is long."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afterimage import runtime
from afterimage.models import ModelConfig, Network
from pretrain.config import PretrainConfig
from pretrain.contractive import EXACT, jacobian_norm
from pretrain.objectives import make_objective

KEY = jax.random.key(0)


def linear(numbers):
    """A code of so many numbers, linear in images of 2x3x1, and its squared norm."""
    matrix = np.random.default_rng(0).normal(size=(6, numbers)).astype(np.float32)
    encode = lambda x: x.reshape(len(x), 6) @ matrix  # noqa: E731
    return encode, np.square(matrix).sum()


def test_a_short_code_is_exact():
    encode, norm = linear(EXACT)
    found = jacobian_norm(encode, jnp.ones((3, 2, 3, 1)), KEY)
    np.testing.assert_allclose(found, np.full(3, norm), rtol=1e-5)


def test_a_long_code_is_estimated_without_bias():
    encode, norm = linear(EXACT + 1)
    found = jacobian_norm(encode, jnp.ones((20_000, 2, 3, 1)), KEY)
    assert np.asarray(found).std() > 0
    np.testing.assert_allclose(np.asarray(found).mean(), norm, rtol=0.02)


@pytest.mark.parametrize("bottleneck", [None, 3])
def test_the_norm_is_that_of_the_encoder(bottleneck):
    """Against forward differentiation of a network without our own gradients."""
    model = ModelConfig(
        image_size=(8, 8), channels=1, width=0.25, bottleneck=bottleneck
    )
    settings = {"data": "digits", "out": "x", "objective": "contractive"}
    contractive = make_objective(PretrainConfig(**settings), model)
    network, params, stats = Network.create(contractive.build(nnx.Rngs(0)))
    images = jax.random.normal(KEY, (2, 8, 8, 1))

    @runtime.jit
    def code(images):
        return network.apply(params, stats, images, method="code")[0]

    @runtime.jit
    def measured(images):
        found = contractive.forward(network, params, stats, images, KEY, None)
        return found.penalty, found.measures["jacobian"]

    penalty, jacobian = measured(images)
    np.testing.assert_allclose(penalty, 0.1 * jacobian, rtol=1e-6)
    if bottleneck is None:
        assert np.all(np.asarray(penalty) > 0)
        return
    step = 1e-2  # central differences, pixel by pixel
    total = np.zeros(2)
    for pixel in np.ndindex(8, 8):
        nudge = np.zeros((1, 8, 8, 1), np.float32)
        nudge[0, *pixel, 0] = step
        slope = (code(images + nudge) - code(images - nudge)) / (2 * step)
        total += np.square(slope).sum(1)
    np.testing.assert_allclose(jacobian, total / 3, rtol=5e-2)


def test_the_penalty_has_a_gradient():
    model = ModelConfig("conv-classic", image_size=(8, 8), channels=1, width=0.25)
    settings = {"data": "digits", "out": "x", "objective": "contractive"}
    contractive = make_objective(PretrainConfig(**settings), model)
    network, params, stats = Network.create(contractive.build(nnx.Rngs(0)))
    images = jax.random.normal(KEY, (2, 8, 8, 1))

    @runtime.jit
    @jax.grad
    def gradient(params):
        return contractive.forward(
            network, params, stats, images, KEY, None
        ).penalty.sum()

    leaves = jax.tree.leaves(gradient(params)["encoder"])
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert max(np.abs(leaf).max() for leaf in leaves) > 0
