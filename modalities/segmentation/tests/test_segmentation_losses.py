"""Losses and scores, beside plain NumPy; images and masks moved alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from afterimage_segmentation.data import IGNORED
from afterimage_segmentation.losses import (
    confusion,
    cross_entropy,
    dice,
    paired_augment,
    scores,
)

from afterimage.errors import UserError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 5, 4, 3))
TRUTH = RNG.integers(0, 3, (2, 5, 4)).astype(np.uint8)
TRUTH[0, :2] = IGNORED


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def plain_cross_entropy(logits, truth):
    p = softmax(logits)
    each = [
        -np.log(p[place][truth[place]])
        for place in np.ndindex(truth.shape)
        if truth[place] != IGNORED
    ]
    return np.mean(each)


def plain_dice(logits, truth):
    p, found = softmax(logits)[truth != IGNORED], []
    t = truth[truth != IGNORED]
    for c in np.unique(t):
        both, said = p[t == c, c].sum(), p[:, c].sum()
        found.append((2 * both + 1) / ((t == c).sum() + said + 1))
    return 1 - np.mean(found)


PAIRS = [(cross_entropy, plain_cross_entropy), (dice, plain_dice)]


@pytest.mark.parametrize(("ours", "plain"), PAIRS)
def test_a_loss_and_its_gradient_are_the_formula(ours, plain):
    wanted = plain(LOGITS, TRUTH)
    assert ours(jnp.asarray(LOGITS), jnp.asarray(TRUTH)) == pytest.approx(
        wanted, abs=1e-5
    )
    slope = np.asarray(jax.grad(ours)(jnp.asarray(LOGITS), jnp.asarray(TRUTH)))
    for place in [(0, 3, 1, 2), (1, 0, 0, 0), (1, 4, 3, 1), (0, 0, 0, 0)]:
        step = np.zeros_like(LOGITS)
        step[place] = 1e-4
        change = plain(LOGITS + step, TRUTH) - plain(LOGITS - step, TRUTH)
        assert slope[place] == pytest.approx(change / 2e-4, abs=1e-5)
    assert not slope[0, :2].any()  # ignored


def test_losses_without_any_known_pixel_are_finite():
    nothing = jnp.full((2, 5, 4), IGNORED, jnp.uint8)
    for loss in (cross_entropy, dice):
        value, slope = jax.value_and_grad(loss)(jnp.asarray(LOGITS), nothing)
        assert np.isfinite(value)
        assert not slope.any()


def test_a_class_that_is_not_in_the_batch_does_not_count_in_dice():
    truth = np.where(TRUTH == 2, 0, TRUTH)
    assert dice(jnp.asarray(LOGITS), jnp.asarray(truth)) == pytest.approx(
        plain_dice(LOGITS, truth), abs=1e-5
    )


def test_scores_are_counted_pixel_by_pixel():
    predicted = RNG.integers(0, 3, TRUTH.shape)
    counts = np.asarray(confusion(jnp.asarray(predicted), jnp.asarray(TRUTH), 4))
    known = TRUTH != IGNORED
    found = scores(counts, ("a", "b", "c", "never"))
    assert found["pixels"] == known.sum()
    assert found["accuracy"] == (predicted == TRUTH)[known].mean()
    wanted = []
    for c in range(3):
        said, true = predicted[known] == c, TRUTH[known] == c
        wanted.append((said & true).sum() / (said | true).sum())
    assert list(found["iou"].values()) == [*wanted, None]
    assert found["miou"] == pytest.approx(np.mean(wanted))


@pytest.mark.parametrize(
    "spec", ["flip", "crop:0.5,flip", "rotate,flip-vertical", "zoom", "translate:0.2"]
)
def test_images_and_masks_are_moved_alike(spec):
    # Broad stripes whose grey level is their class: inside, they must still agree.
    across = np.repeat([0, 1, 2, 3], 8)
    truth = np.broadcast_to(across, (6, 32, 32)).astype(np.uint8)
    images = truth[..., None].astype(np.float32) / 4
    augment = jax.jit(paired_augment(spec))
    moved, marks = augment(jax.random.key(1), jnp.asarray(images), jnp.asarray(truth))
    level = 4 * np.asarray(moved)[..., 0]
    inside = np.abs(level - np.round(level)) < 0.01
    assert inside.mean() > 0.5
    assert (np.round(level)[inside] == np.asarray(marks)[inside]).all()
    assert (np.asarray(marks) != truth).any()
    assert marks.dtype == truth.dtype


def test_colours_change_the_image_alone():
    images = jnp.asarray(RNG.random((2, 8, 8, 3)), jnp.float32)
    truth = jnp.asarray(RNG.integers(0, 3, (2, 8, 8)), jnp.uint8)
    moved, marks = paired_augment("brightness")(jax.random.key(0), images, truth)
    assert (marks == truth).all()
    assert (moved != images).any()


@pytest.mark.parametrize("spec", ["elastic", "flip,shift"])
def test_what_moves_images_in_its_own_way_is_refused(spec):
    with pytest.raises(UserError, match=spec.split(",")[-1]):
        paired_augment(spec)
