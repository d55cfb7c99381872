"""KL, free bits and the warm-up of beta by hand; what a collapsed code looks like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afterimage import runtime
from afterimage.models import ModelConfig, Network
from afterimage.pretrain.objectives.variational import Variational, divergence, freed
from tests.objectives import forward, passing

pytestmark = pytest.mark.usefixtures("tiny")

KEY = jax.random.key(0)

BOTTLENECKS = [None, pytest.param(5, marks=pytest.mark.slow)]


def built(model):
    return Network.create(Variational().build(model, nnx.Rngs(0)))


def test_divergence_by_hand():
    mean = jnp.array([[0.0, 3.0], [1.0, 0.0]])
    log_variance = jnp.log(jnp.array([[1.0, 1.0], [4.0, 0.25]]))
    # 0; 9 / 2; (1 + 4 - 1 - log 4) / 2; (0.25 - 1 + log 4) / 2
    expected = [[0.0, 4.5], [2 - np.log(2), np.log(2) - 0.375]]
    np.testing.assert_allclose(divergence(mean, log_variance), expected, atol=1e-6)
    twice = jnp.stack([mean, mean], 1)[:, :, None]
    both = jnp.stack([log_variance, log_variance], 1)[:, :, None]
    np.testing.assert_allclose(divergence(twice, both), 2 * np.array(expected), 1e-5)


def test_divergence_is_the_expected_log_ratio():
    mean, deviation = 0.7, 0.4
    z = mean + deviation * np.random.default_rng(0).standard_normal(400_000)
    ratio = -np.log(deviation) - (z - mean) ** 2 / (2 * deviation**2) + z**2 / 2
    one = jnp.ones((1, 1))
    found = divergence(mean * one, 2 * np.log(deviation) * one)
    np.testing.assert_allclose(found[0, 0], ratio.mean(), atol=5e-3)


def test_free_bits_hold_the_mean_of_a_channel_up_and_stop_its_gradient():
    kl = jnp.array([[0.1, 2.0], [0.3, 0.0]])
    found = freed(kl, 0.5)
    np.testing.assert_allclose(found.mean(0), jnp.array([0.5, 1.0]))
    slope = jax.grad(lambda kl: freed(kl, 0.5).mean())(kl)
    np.testing.assert_allclose(slope, jnp.array([[0.0, 0.25], [0.0, 0.25]]))
    np.testing.assert_array_equal(freed(kl, 0.0), kl)


def test_beta_rises_over_its_warm_up_and_is_whole_in_evaluation():
    rising = Variational(beta=4.0, beta_warmup=10)
    found = [float(rising.beta_at(jnp.asarray(n))) for n in (0, 5, 10, 99)]
    assert found == [0.0, 2.0, 4.0, 4.0]
    assert rising.beta_at(None) == 4.0
    assert Variational(beta=3.0).beta_at(jnp.asarray(0)) == 3.0


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_the_penalty_is_beta_times_the_divergence_per_value(bottleneck):
    model = ModelConfig(
        image_size=(8, 8), channels=1, width=0.25, bottleneck=bottleneck
    )
    variational = Variational(beta=3.0, free_bits=0.5)
    network, params, stats = built(model)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    run = runtime.jit(passing(variational, network))
    found = run(params, stats, images, KEY, None)
    kl = found.measures["kl"]
    assert kl.shape == (4, bottleneck or 16)
    np.testing.assert_allclose(found.penalty, 3 * kl.sum(1) / 64, rtol=1e-5)
    in_training = run(params, stats, images, KEY, jnp.asarray(3))
    paid = freed(kl, 0.5).sum(1)
    np.testing.assert_allclose(in_training.penalty, 3 * paid / 64, rtol=1e-4)
    other = run(params, stats, images, jax.random.key(1), None)
    assert np.any(np.asarray(other.output) != np.asarray(found.output))


def test_metrics_tell_active_channels_from_collapsed_ones():
    means = {
        "kl": np.array([2.0, 0.0, 1.0]),
        "mean": np.array([1.0, 0.0, 3.0]),
        "square": np.array([1.5, 0.0, 9.0]),
    }
    found = Variational().summarise(means)
    assert {k: float(v) for k, v in found.items()} == {
        "kl": 3.0,
        "kl_channel_max": 2.0,
        "kl_channel_median": 1.0,
        "active_channels": 1.0,
    }


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_samples_are_images_and_differ(bottleneck):
    model = ModelConfig(
        image_size=(9, 12), channels=2, width=0.25, bottleneck=bottleneck
    )
    variational, pixels = Variational(), jnp.zeros((3, 9, 12, 2))
    network, params, stats = built(model)

    def sample(params, model=model):
        made = forward(network, params, stats, KEY, model=model)
        return variational.samples(made, pixels)

    found = runtime.jit(sample)(params)
    assert found.shape == (3, 9, 12, 2)
    assert np.std(np.asarray(found), axis=0).max() > 0
    classic = ModelConfig("conv-classic", image_size=(8, 8), width=0.25)
    assert sample(params, classic) is None
