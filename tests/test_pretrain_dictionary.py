"""A dictionary of patches, against the same written out with loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afterimage import runtime
from afterimage.errors import UserError
from afterimage.models import ModelConfig, Network
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.objectives.dictionary import Dictionary
from tests.objectives import passing
from tests.test_models_patches import FLOOR, images, moved

K, SIZE = 6, (9, 14)
MODEL = ModelConfig("conv-patches", SIZE, 2, width=0.03)


def config(**changes):
    settings = {"data": "digits", "out": "x", "model": "conv-patches"}
    settings |= {"objective": "dictionary", "width": 0.03}
    return PretrainConfig(**settings | changes)


def built(model=MODEL):
    chosen = Dictionary()
    network, params, stats = Network.create(chosen.build(model, nnx.Rngs(0)))
    return passing(chosen, network), params, stats


def made():
    run, params, stats = built()
    stats = jax.tree.map(jnp.asarray, {"encoder": moved(stats["encoder"])})
    return run, params, stats


def expected(params, stats, x):
    """(image, error, use) of one image, by loops over its patches."""
    layer = stats["encoder"]["stages"]["0"]
    filters = np.asarray(params["encoder"]["stages"]["0"]["kernel"], np.float64)
    filters = filters / np.linalg.norm(filters, axis=0)
    total, count = np.zeros(x.shape), np.zeros((*x.shape[:2], 1))
    missed = energy = 0.0
    use = np.zeros(filters.shape[1])
    for a in (0, 3):  # the last that fits begins at 3
        for b in (0, 3, 6, 8):  # and here at 8
            patch = np.asarray(x[a : a + K, b : b + K], np.float64).reshape(-1)
            level, spread = patch.mean(), np.sqrt(patch.var() + FLOOR)
            white = ((patch - level) / spread - layer["mean"]) @ layer["whitening"]
            answers = white @ filters
            best = np.abs(answers).argmax()
            rebuilt = answers[best] * filters[:, best]
            missed += np.sum((white - rebuilt) ** 2)
            energy += np.sum(white**2)
            use[best] += 1 / 8
            back = rebuilt @ np.linalg.inv(layer["whitening"]) + layer["mean"]
            back = (back * spread + level).reshape(K, K, -1)
            total[a : a + K, b : b + K] += back
            count[a : a + K, b : b + K] += 1
    return total / count, missed / energy, use


def test_a_patch_is_rebuilt_by_its_nearest_filter():
    run, params, stats = made()
    x = images(1, 3, *SIZE, 2)
    found = runtime.jit(lambda p, s, x: run(p, s, x, jax.random.key(0), None))(
        params, stats, x
    )
    for n, image in enumerate(x):
        output, error, use = expected(params, stats, image)
        np.testing.assert_allclose(found.output[n], output, atol=1e-3)
        np.testing.assert_allclose(found.penalty[n], error, rtol=1e-4)
        np.testing.assert_allclose(found.measures["use"][n], use, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, found.stats, stats)


def test_only_the_error_trains():
    """The image is looked at: its loss has no gradient."""
    run, params, stats = made()
    x, key = jnp.asarray(images(1, 2, *SIZE, 2)), jax.random.key(0)

    def loss(params, image, error):
        found = run(params, stats, x, key, None)
        return image * jnp.square(found.output).sum() + error * found.penalty.sum()

    slope = jax.jit(jax.grad(loss))
    assert not np.any(jax.tree.leaves(slope(params, 1.0, 0.0))[0])
    (slopes,) = jax.tree.leaves(slope(params, 0.0, 1.0))
    used = np.any(slopes != 0, axis=0)
    use = np.sum([expected(params, stats, image)[2] for image in x], axis=0)
    np.testing.assert_array_equal(used, use > 0)


def test_training_whitens_as_the_encoder_does():
    run, params, stats = made()
    x, key = jnp.asarray(images(1, 4, *SIZE, 2)), jax.random.key(0)
    trained = run(params, stats, x, key, jnp.asarray(0)).stats
    encoder = Dictionary().build(MODEL, nnx.Rngs(0)).encoder
    alone, _, _ = Network.create(encoder)
    _, wanted = alone.apply(params["encoder"], stats["encoder"], x, train=True)
    jax.tree.map(np.testing.assert_array_equal, trained["encoder"], wanted)


def test_it_finds_what_images_are_made_of():
    """Images of two motifs, of either sign: the filters come to say nearly all."""
    rng = np.random.default_rng(0)
    motifs = rng.normal(size=(2, 9, 9, 1)).astype(np.float32)
    signs = rng.choice([-1, 1], 64)[:, None, None, None]
    x = jnp.asarray(motifs[rng.integers(0, 2, 64)] * signs.astype(np.float32))
    run, params, stats = built(ModelConfig("conv-patches", (9, 9), 1, width=0.03))

    def loss(params, stats):
        found = run(params, stats, x, key, jnp.asarray(0))
        return found.penalty.mean(), found.stats

    key = jax.random.key(0)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (before, stats), _ = step(params, stats)
    for _ in range(200):
        (after, stats), slopes = step(params, stats)
        params = jax.tree.map(lambda p, g: p - 3 * g, params, slopes)
    # Eight kinds of patches of either sign, and sixteen filters.
    assert before > 0.4
    assert after < 0.05


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bottleneck": 8}, "bottleneck=8"),
        ({"decoder": "nearest"}, "decoder='nearest'"),
        ({"model": "conv", "width": 1.0}, "model='conv': must be 'conv-patches'"),
    ],
)
def test_what_it_cannot_use_is_refused(changes, says):
    with pytest.raises(UserError, match=f"objective dictionary: {says}"):
        config(**changes)
    assert config().objective == Dictionary()
