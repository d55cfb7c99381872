"""The codebook by hand: nearest vectors, running means, restart of dead codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afterimage import runtime
from afterimage.checkpoints.trees import flatten
from afterimage.models import ModelConfig, Network
from afterimage.pretrain.objectives.vq import DECAY, Codebook, Quantised
from tests.objectives import passing

pytestmark = pytest.mark.usefixtures("tiny")

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)


def codebook(vectors, counts):
    book = Codebook(*np.shape(vectors))
    book.vectors[...] = jnp.asarray(vectors, jnp.float32)
    book.counts[...] = jnp.asarray(counts, jnp.float32)
    book.sums[...] = book.vectors[...] * book.counts[...][:, None]
    return book


def test_the_update_by_hand():
    book = codebook([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], [2.0, 1.0, 4.0])
    rows = jnp.array([[1.0, 1.0], [3.0, 1.0], [9.0, 2.0]])
    index = book.nearest(rows)
    np.testing.assert_array_equal(index, [0, 0, 1])
    book.follow(rows, index)
    counts = [DECAY * 2 + (1 - DECAY) * 2, DECAY * 1 + (1 - DECAY) * 1, DECAY * 4]
    np.testing.assert_allclose(book.counts[...], counts, rtol=1e-6)
    first = (1 - DECAY) * np.array([4.0, 2.0]) / counts[0]
    second = (DECAY * np.array([10.0, 0.0]) + (1 - DECAY) * np.array([9.0, 2.0])) / 1
    expected = np.array([first, second, [0.0, 10.0]])
    np.testing.assert_allclose(book.vectors[...], expected, rtol=1e-5, atol=1e-6)


def test_only_dead_codes_restart_from_rows_of_the_batch():
    # Nine rows and three codes: the mean use is 3, and dead is below 0.3.
    book = codebook([[5.0], [6.0], [7.0]], [0.31, 0.29, 8.0])
    rows = 100 + jnp.arange(9.0)[:, None]
    book.restart(rows, KEY)
    vectors = np.asarray(book.vectors[...]).ravel()
    assert (vectors[0], vectors[2]) == (5.0, 7.0)
    assert vectors[1] in np.asarray(rows)
    np.testing.assert_allclose(book.counts[...], np.array([0.31, 3.0, 8.0]))
    np.testing.assert_allclose(book.sums[...][1], 3 * vectors[1])


VQ = Quantised(codes=5)


@pytest.mark.parametrize("bottleneck", [None, pytest.param(6, marks=pytest.mark.slow)])
def test_the_first_step_takes_its_codes_from_the_batch(bottleneck):
    model = ModelConfig(
        image_size=(8, 8), channels=1, width=0.25, bottleneck=bottleneck
    )
    network, params, stats = Network.create(VQ.build(model, nnx.Rngs(0)))
    run = runtime.jit(passing(VQ, network))
    found = run(params, stats, IMAGES, KEY, jnp.asarray(0))
    vectors = flatten(found.stats)["codebook/vectors"]
    assert vectors.shape == (5, bottleneck or 16)
    assert np.abs(vectors).max() > 0
    use = found.measures["use"]
    np.testing.assert_allclose(use.sum(1), np.ones(4), rtol=1e-6)
    still = run(params, found.stats, IMAGES, KEY, None)
    jax.tree.map(np.testing.assert_array_equal, still.stats, found.stats)
    np.testing.assert_allclose(
        still.penalty, 0.25 * still.measures["commitment"], rtol=1e-6
    )


def test_the_encoder_is_given_the_decoders_gradient():
    """Straight through: with the codebook at the code, as if nothing were quantised."""
    model = ModelConfig(image_size=(8, 8), channels=1, width=0.25, bottleneck=3)
    network, params, stats = Network.create(VQ.build(model, nnx.Rngs(0)))
    image = jnp.asarray(IMAGES[:1])
    first = runtime.jit(passing(VQ, network))
    stats = first(params, stats, image, KEY, jnp.asarray(0)).stats

    def quantised(params):
        return passing(VQ, network)(params, stats, image, KEY, None).output.sum()

    def plain(params):
        return network.apply(params, stats, image)[0].sum()

    both = runtime.jit(lambda p: [jax.grad(f)(p) for f in (quantised, plain)])
    one, two = both(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, two)
    assert np.abs(one["encoder"]["bottleneck"]["kernel"]).max() > 0


def test_metrics_by_hand():
    means = {"use": np.array([0.5, 0.25, 0.25, 0.0]), "commitment": np.array(2.0)}
    found = VQ.summarise(means)
    np.testing.assert_allclose(found["perplexity"], 2**1.5, rtol=1e-6)
    assert int(found["dead_codes"]) == 1
    assert float(found["commitment"]) == 2.0
