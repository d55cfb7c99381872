"""Masks have the exact share asked for, in whole patches, and the shape asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afterimage import runtime
from afterimage.data import Preprocessing
from afterimage.models import ModelConfig, Network
from afterimage.pretrain.objective import Forward, ModelSetup
from afterimage.pretrain.objectives.latent import Latent
from afterimage.pretrain.objectives.masked import Masked, draw_mask, lowest, patch_size
from tests.forms import milliseconds, on_cpu

pytestmark = pytest.mark.usefixtures("tiny")


def drawn(seed, batch, size, chosen):
    return runtime.jit(lambda key: draw_mask(key, batch, size, chosen))(
        jax.random.key(seed)
    )


def grids(mask, patch):
    """The mask as one value a patch; fails where a patch is not whole."""
    grid = np.asarray(mask)[:, ::patch, ::patch]
    h, w = mask.shape[1:]
    whole = np.repeat(np.repeat(grid, patch, 1), patch, 2)[:, :h, :w]
    np.testing.assert_array_equal(mask, whole)
    return grid


@settings(
    deadline=None,
    max_examples=5,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    size=st.tuples(st.integers(8, 20), st.integers(8, 20)),
    patch=st.integers(1, 5),
    ratio=st.floats(0.01, 0.99),
    kind=st.sampled_from(["random", "block"]),
    seed=st.integers(0, 1000),
)
def test_every_image_has_exactly_its_share(size, patch, ratio, kind, seed):
    chosen = Masked(pattern=kind, ratio=ratio, patch=patch)
    mask = drawn(seed, 4, size, chosen)
    assert mask.shape == (4, *size)
    grid = grids(mask, patch)
    n = grid[0].size
    expected = min(max(round(float(np.float32(ratio) * np.float32(n))), 1), n - 1)
    assert (grid.sum((1, 2)) == expected).all()


@pytest.mark.parametrize("kind", ["random", "block"])
def test_ratios_of_single_images_fill_their_range(kind):
    chosen = Masked(pattern=kind, ratio=0.2, ratio_max=0.8, patch=1)
    mask = drawn(0, 2000, (10, 10), chosen)
    shares = np.asarray(mask).mean((1, 2))
    assert shares.min() == pytest.approx(0.2, abs=0.01)
    assert shares.max() == pytest.approx(0.8, abs=0.01)
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert len(np.unique(shares)) == 61


def test_random_patches_are_uniform_and_independent_of_each_other():
    mask = drawn(1, 4000, (6, 6), Masked(patch=2))
    grid = grids(mask, 2)
    # Deviation 0.008; round(0.6 * 9) = 5 of 9.
    np.testing.assert_allclose(grid.mean(0), np.full((3, 3), 5 / 9), atol=0.035)
    assert len(np.unique(grid.reshape(4000, -1), axis=0)) == 126  # 9 over 5


def _borders(grid):
    """Neighbouring patches of which one is masked and one is not."""
    return (grid[:, 1:] != grid[:, :-1]).sum() + (
        grid[:, :, 1:] != grid[:, :, :-1]
    ).sum()


def test_blocks_hang_together_and_lie_anywhere():
    block = drawn(2, 500, (16, 16), Masked(pattern="block", patch=1))
    scattered = drawn(2, 500, (16, 16), Masked(patch=1))
    assert _borders(np.asarray(block)) < 0.4 * _borders(np.asarray(scattered))
    share = np.asarray(block).mean(0)
    assert share.min() > 0.15
    assert len(np.unique(np.asarray(block).reshape(500, -1), axis=0)) > 490


def test_lowest_takes_as_many_as_asked_in_each_row():
    scores = jnp.asarray([[4, 0, 9, 2], [7, 7, 7, 7], [1, 2, 3, 4]], jnp.uint32) << 8
    found = runtime.jit(lowest)(scores, jnp.asarray([2, 3, 0], jnp.int32))
    expected = [[0, 1, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(found, np.array(expected, bool))


@pytest.mark.parametrize(
    ("side", "patch"), [(8, 2), (28, 4), (32, 4), (64, 8), (96, 8), (224, 32)]
)
def test_the_usual_patch_is_near_a_seventh_of_the_image(side, patch):
    assert patch_size(Masked(), (side, side)) == patch


@pytest.mark.parametrize("objective", [Masked(patch=2), Latent(patch=8)])
def test_images_normalised_one_by_one_do_not_show_masked_pixels(objective):
    """Bit for bit, in training, where moments are of the batch."""
    size = (16, 16)
    model = ModelConfig(
        image_size=size, channels=1, norm="batch", decoder="block", width=0.1
    )
    network, params, stats = Network.create(objective.build(model, nnx.Rngs(0)))
    stats = jax.tree.map(jnp.asarray, objective.start(params, stats))
    rule = Preprocessing(size, (0.4,), (0.2,), 1, normalisation="image")
    setup = ModelSetup(model, network, rule)
    step, key = jnp.asarray(0), jax.random.key(1)

    @runtime.jit
    def run(pixels):
        forward = Forward(setup, params, stats, key, step)
        found = objective.forward(forward, objective.inputs(forward, pixels))
        found.stats.pop("teacher", None)  # the teacher sees everything
        return found.output, found.stats, found.mask

    images = np.random.default_rng(0).random((3, *size, 1), np.float32)
    *one, mask = run(images)
    mask = np.asarray(mask)[..., None]
    *two, _ = run(np.where(mask, 7 * images + 1, images))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    *seen, _ = run(np.where(mask, images, images**2))
    assert np.any(np.asarray(seen[0]) != np.asarray(one[0]))


@on_cpu
def test_lowest_is_cheaper_than_two_sorts():
    def double_argsort(key):
        order = jnp.argsort(jnp.argsort(jax.random.uniform(key, (256, 256))))
        return order < 154

    def once(key):
        scores = jax.random.bits(key, (256, 256), jnp.uint32)
        return lowest(scores, jnp.full(256, 154, jnp.int32))

    key = jax.random.key(0)
    ours, theirs = runtime.jit(once), runtime.jit(double_argsort)
    fast, slow = milliseconds(
        lambda: jax.block_until_ready(ours(key)),
        lambda: jax.block_until_ready(theirs(key)),
    )
    assert slow / fast >= 1.3, f"{fast:.2f} ms, two sorts {slow:.2f} ms"
