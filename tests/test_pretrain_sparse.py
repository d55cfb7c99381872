"""Sparse codes: exactly k channels a site, or an L1 that pulls to zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afterimage import runtime
from afterimage.models import ModelConfig, Network
from afterimage.pretrain.objectives.sparse import Sparse, keep_largest
from tests.objectives import passing

pytestmark = pytest.mark.usefixtures("tiny")

MODEL = ModelConfig(image_size=(8, 8), channels=1, width=0.25, bottleneck=12)
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)


def test_the_largest_stay_and_carry_the_gradient():
    code = jnp.array([[3.0, -9.0, 5.0, 1.0], [0.0, 2.0, -1.0, -2.0]])
    kept = jnp.array([[3.0, 0.0, 5.0, 0.0], [0.0, 2.0, 0.0, 0.0]])
    np.testing.assert_array_equal(keep_largest(code, 2), kept)
    slope = jax.grad(lambda code: keep_largest(code, 2).sum())(code)
    expected = [[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    np.testing.assert_array_equal(slope, np.array(expected))


def passed(sparse):
    """What one pass gave, and the code."""
    network, params, stats = Network.create(sparse.build(MODEL, nnx.Rngs(0)))

    @runtime.jit
    def run(images):
        key = jax.random.key(0)
        found = passing(sparse, network)(params, stats, images, key, None)
        return found, network.apply(params, stats, images, method="coded")[0][1]

    return run(IMAGES)


def test_top_k_leaves_k_of_the_code():
    found, _ = passed(Sparse(k=3))
    assert found.penalty is None
    np.testing.assert_allclose(found.measures["share"].sum(1), 3 * np.ones(4))


def test_l1_is_the_mean_size_of_the_code():
    found, code = passed(Sparse(weight=0.5))
    assert code.shape == (4, 12)
    np.testing.assert_allclose(found.penalty, 0.5 * np.abs(code).mean(1), rtol=1e-6)


def test_metrics_count_the_silent():
    found = Sparse().summarise({"share": np.array([0.5, 0.0, 0.25, 0.0])})
    assert float(found["active_share"]) == 0.1875
    assert int(found["dead_channels"]) == 2


def test_more_channels_than_there_are_are_a_mistake():
    assert Sparse(k=12).data_problems(MODEL) == []
    (found,) = Sparse(k=13).data_problems(MODEL)
    assert "k=13: the code has only 12 channels" in found
    assert Sparse().data_problems(MODEL) == []


def test_both_can_be_used_together():
    found, code = passed(Sparse(k=3, weight=0.5))
    assert code.shape == (4, 12)
    np.testing.assert_allclose(found.measures["share"].sum(1), 3 * np.ones(4))
    assert np.all(np.asarray(found.penalty) > 0)
