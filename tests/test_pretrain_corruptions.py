"""Corruptions: exact statistics, per-image randomness, clean pixels untouched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.errors import UserError
from afterimage.pretrain.corruptions import CORRUPTIONS, erase, make_corruption

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
IMAGES = jnp.full((64, 32, 24, 3), 0.37)
STRENGTH = {"none": None, "gaussian": 0.5, "salt-and-pepper": 0.2, "erasing": 0.25}


def corrupt(name, key=0, images=IMAGES, strength=None):
    strength = STRENGTH[name] if strength is None else strength
    return make_corruption(name, strength, MEAN, STD)(jax.random.key(key), images)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_same_key_same_images_under_jit_and_dtype_kept(name):
    fn = make_corruption(name, STRENGTH[name], MEAN, STD)
    a = fn(jax.random.key(3), IMAGES)
    b = jax.jit(fn)(jax.random.key(3), IMAGES)
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert a.dtype == IMAGES.dtype
    assert a.shape == IMAGES.shape


@pytest.mark.parametrize("name", [n for n in CORRUPTIONS if n != "none"])
def test_every_image_and_every_key_draws_its_own(name):
    one, two = np.asarray(corrupt(name, 0)), np.asarray(corrupt(name, 1))
    assert len({image.tobytes() for image in one}) > 48
    assert (one != two).any(axis=(1, 2, 3)).mean() > 0.9


def test_none_changes_nothing():
    np.testing.assert_array_equal(corrupt("none"), IMAGES)


def test_gaussian_has_sigma_in_units_of_the_data_std():
    noise = np.asarray(corrupt("gaussian") - IMAGES)
    n = noise[..., 0].size
    np.testing.assert_allclose(noise.std((0, 1, 2)), 0.5 * np.array(STD), rtol=0.02)
    for c in range(3):
        assert abs(noise[..., c].mean()) < 4 * 0.5 * STD[c] / np.sqrt(n)
    # Independent channels.
    assert abs(np.corrcoef(noise.reshape(-1, 3).T)[0, 1]) < 4 / np.sqrt(n)


def test_salt_and_pepper_replaces_whole_pixels_at_the_stated_rate():
    out = np.asarray(corrupt("salt-and-pepper"))
    n = out[..., 0].size
    black, white = (out == 0).all(-1), (out == 1).all(-1)
    untouched = (out == np.float32(0.37)).all(-1)
    assert (black | white | untouched).all()
    tolerance = 4 * np.sqrt(0.1 * 0.9 / n)
    assert abs(black.mean() - 0.1) < tolerance
    assert abs(white.mean() - 0.1) < tolerance


@pytest.mark.parametrize("share", [0.02, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("size", [(32, 24), (8, 8), (9, 40)])
def test_erasing_fills_one_rectangle_of_the_stated_share_with_the_mean(size, share):
    height, width = size
    images = jnp.full((128, height, width, 3), 0.37)
    out = np.asarray(erase(jax.random.key(0), images, share, MEAN))
    erased = (out != np.float32(0.37)).all(-1)
    np.testing.assert_array_equal(out[erased], np.float32([MEAN] * erased.sum()))
    for mask in erased:
        rows, columns = mask.any(1), mask.any(0)
        # A rectangle: the outer product of a run of rows and a run of columns.
        np.testing.assert_array_equal(mask, rows[:, None] & columns[None])
        for run in (rows, columns):
            assert np.abs(np.diff(run.astype(int))).sum() <= 2
        assert abs(mask.sum() - share * height * width) <= max(rows.sum(), 1) / 2 + 1e-3


def test_erasing_reaches_every_place():
    images = jnp.ones((2000, 8, 8, 1))
    out = np.asarray(erase(jax.random.key(1), images, 0.1, (0.0,)))
    hits = (out == 0).mean(axis=(0, 3))
    assert hits.min() > 0.01
    # The distribution has the image's symmetries.
    np.testing.assert_allclose(hits, hits[::-1], atol=0.05)
    np.testing.assert_allclose(hits, hits[:, ::-1], atol=0.05)


@pytest.mark.parametrize(
    ("name", "strength", "message"),
    [
        ("blur", 1.0, "must be one of none, gaussian"),
        ("gaussian", 0.0, "standard deviations"),
        ("gaussian", float("nan"), "standard deviations"),
        ("salt-and-pepper", 1.0, "probability"),
        ("erasing", -0.1, "share"),
    ],
)
def test_impossible_settings_are_refused(name, strength, message):
    with pytest.raises(UserError, match=message):
        make_corruption(name, strength, MEAN, STD)
