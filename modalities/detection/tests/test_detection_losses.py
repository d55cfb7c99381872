"""Targets, losses and peaks by their definitions; boxes that move with their image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from afterimage_detection import losses
from flax import nnx

from afterimage.data.augmentations.resampling import Affine
from afterimage.models import FeatureInfo

BOXES = jnp.array([[[4.0, 8, 16, 20], [20, 2, 30, 8], [0, 0, 0, 0], [16, 16, 32, 32]]])
CLASSES = jnp.array([[1, 0, -1, -2]])


@pytest.fixture(scope="module")
def wanted():
    make = jax.jit(losses.make_targets, static_argnums=(2, 3, 4))
    return jax.tree.map(np.asarray, make(BOXES, CLASSES, 16, 2, 2))


focal, sides, peaks = map(jax.jit, (losses.focal, losses.sides, losses.peaks))


def perfect(wanted):
    """Logits and boxes that say exactly what is wanted."""
    return np.where(wanted.heat == 1, np.float32(20), np.float32(-20)), wanted.boxes


def at(logits, place, value):
    """Other logits, with a value in one place."""
    logits = logits.copy()
    logits[place] = value
    return logits


def test_targets(wanted):
    heat = np.asarray(wanted.heat[0])
    assert wanted.objects == 2
    # Centres (10, 14) and (25, 5) in pixels are the cells (5, 7) and (12, 2).
    assert [*zip(*np.nonzero(heat == 1))] == [(2, 12, 0), (7, 5, 1)]
    assert 0 < heat[7, 6, 1] < 1
    assert heat[7, 6, 0] == heat[0, 0].max() == 0
    assert (wanted.boxes[0, 7, 6] == BOXES[0, 0]).all()
    assert float(wanted.weight.sum()) == pytest.approx(2)
    counts = np.ones((16, 16))
    counts[8:, 8:] = 0
    np.testing.assert_array_equal(wanted.counts[0], counts)


def test_what_is_right_has_no_loss_and_is_found(wanted):
    logits, boxes = perfect(wanted)
    assert float(focal(logits, wanted)) == pytest.approx(0, abs=1e-6)
    assert float(sides(boxes, wanted)) == pytest.approx(0, abs=1e-5)
    found = np.asarray(peaks(logits, boxes)[0])
    assert found.shape == (100, 6)
    best = {tuple(row[:5]) for row in found[:2].round(3).tolist()}
    assert best == {(4, 8, 16, 20, 1), (20, 2, 30, 8, 0)}
    assert found[1, 5] > 0.99
    assert found[2, 5] < 0.01
    # A centre in the ignored region costs nothing, elsewhere it does.
    ignored = float(focal(at(logits, (0, 12, 12), 9), wanted))
    assert ignored == pytest.approx(0, abs=1e-6)
    assert focal(at(logits, (0, 12, 2), 9), wanted) > 1


def test_neighbours_of_a_peak_are_not_found(wanted):
    logits = np.full_like(wanted.heat, -5)
    logits[0, 3, 3:5, 0], logits[0, 6, 6, 1] = (4, 3), 2
    found = np.asarray(peaks(logits, wanted.boxes)[0])
    np.testing.assert_allclose(found[:2, 5], 1 / (1 + np.exp([-4.0, -2.0])), rtol=1e-5)
    assert found[2, 5] < 0.01


def test_giou():
    one = jnp.array([[0.0, 0, 2, 2]] * 3)
    two = jnp.array([[0.0, 0, 2, 2], [1, 0, 3, 2], [3, 0, 5, 2]])
    np.testing.assert_allclose(losses.giou(one, two), [1, 1 / 3, -1 / 5], atol=1e-6)


@pytest.mark.parametrize("spec", ["crop:0.5,flip,flip-vertical", "zoom:0.4"])
def test_boxes_move_with_their_images(spec):
    image = np.zeros((1, 32, 32, 1), np.float32)
    image[0, 6:14, 4:16] = 1
    boxes, classes = jnp.array([[[4.0, 6, 16, 14]]]), jnp.array([[3]])
    augment = jax.jit(losses.boxed_augment(spec))
    seen = []
    for seed in range(12):
        key = jax.random.key(seed)
        moved, found, kinds = augment(key, jnp.asarray(image), boxes, classes)
        if kinds[0, 0] < 0:
            continue
        y, x = np.nonzero(np.asarray(moved[0, :, :, 0]) > 0.5)
        own = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        np.testing.assert_allclose(found[0, 0], own, atol=1)
        seen.append(tuple(own))
    assert len(set(seen)) > 1


def test_of_what_is_cut_off_little_is_ignored():
    # The right half of the image, twice as large.
    move = Affine(jnp.array([[[0.5, 0], [0, 1]]]), jnp.array([[0.5, 0]]))
    moved = jax.jit(losses.moved, static_argnums=3)
    boxes = np.float32([[[20, 4, 28, 8], [8, 4, 20, 8], [14, 4, 17, 8], [2, 4, 6, 8]]])
    classes = jnp.array([[0, 1, 2, 3]])
    found, kinds = moved(boxes, classes, move, (32, 32))
    # A third of the second is left, a third of the third, nothing of the last.
    np.testing.assert_array_equal(kinds, [[0, 1, 2, -1]])
    np.testing.assert_allclose(found[0, :2], [[8, 4, 24, 8], [0, 4, 8, 8]])
    few = np.array(boxes)
    few[0, 1, 0] = 2
    assert moved(few, classes, move, (32, 32))[1][0, 1] == -2


def test_an_encoder_with_coarse_maps_gets_the_image_itself():
    from afterimage_detection.network import Head

    info = (FeatureInfo("a", 8, 4), FeatureInfo("b", 16, 16))
    head = Head(info, 3, 5, 2, rngs=nnx.Rngs(0))
    maps = [jnp.zeros((1, 8, 8, 8)), jnp.zeros((1, 2, 2, 16))]
    centres, sides = nnx.jit(head)(jnp.zeros((1, 32, 32, 3)), maps)
    assert centres.shape == (1, 16, 16, 5)
    assert sides.shape == (1, 16, 16, 4)
    # At first, a centre has the chance 0.1 everywhere.
    np.testing.assert_allclose(1 / (1 + np.exp(-centres)), 0.1, atol=1e-3)
