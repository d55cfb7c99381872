"""The Jacobian's norm: exact where the code is short, without bias where it is long."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afterimage import runtime
from afterimage.models import ModelConfig, Network
from afterimage.pretrain.objectives.contractive import (
    EXACT,
    Contractive,
    jacobian_norm,
)
from tests.objectives import passing

pytestmark = pytest.mark.usefixtures("tiny")

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


def built(model):
    contractive = Contractive()
    network, params, stats = Network.create(contractive.build(model, nnx.Rngs(0)))
    return passing(contractive, network), (network, params, stats)


def test_the_norm_is_that_of_the_encoder():
    """Against differences of a network without our own gradients."""
    model = ModelConfig(image_size=(8, 8), channels=1, width=0.25, bottleneck=3)
    contractive, (network, params, stats) = built(model)
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)

    @runtime.jit
    def code(images):
        return network.apply(params, stats, images, method="code")[0]

    @runtime.jit
    def measured(images):
        found = contractive(params, stats, images, KEY, None)
        return found.penalty, found.measures["jacobian"]

    penalty, jacobian = measured(image)
    np.testing.assert_allclose(penalty, 0.1 * jacobian, rtol=1e-6)
    # Central differences of every pixel.
    nudges = np.float32(1e-2) * np.eye(64, dtype=np.float32).reshape(64, 8, 8, 1)
    slopes = (code(image + nudges) - code(image - nudges)) / 2e-2
    np.testing.assert_allclose(jacobian[0], np.square(slopes).sum() / 3, rtol=5e-2)


def test_the_penalty_of_a_map_has_a_gradient():
    model = ModelConfig("conv-classic", image_size=(8, 8), channels=1, width=0.25)
    contractive, (_, params, stats) = built(model)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
    images = jnp.asarray(images, jnp.float32)

    @runtime.jit
    def measured(params):
        def total(params):
            found = contractive(params, stats, images, KEY, None)
            return found.penalty.sum(), (found.penalty, found.measures["jacobian"])

        return jax.grad(total, has_aux=True)(params)

    gradient, (penalty, jacobian) = measured(params)
    np.testing.assert_allclose(penalty, 0.1 * jacobian, rtol=1e-6)
    assert np.all(np.asarray(penalty) > 0)
    leaves = jax.tree.leaves(gradient["encoder"])
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert max(np.abs(leaf).max() for leaf in leaves) > 0
