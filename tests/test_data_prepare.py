"""Statistics, preprocessing, resizing and augmentation: laws rather than examples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from afterimage.data import (
    Preprocessing,
    array_set,
    channel_statistics,
    make_augment,
    preprocessing,
)
from afterimage.data.augmentations import geometry, tones
from afterimage.data.pixels import cover_and_crop
from afterimage.errors import UserError
from afterimage.fields import field_problems
from afterimage.plugins import AUGMENTATIONS
from afterimage.pretrain import PretrainConfig

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (50, 9, 11, 3), np.uint8)


def image_set(images):
    return array_set(images, None, None, "set")


def test_statistics_are_numpys():
    mean, std = channel_statistics(image_set(PIXELS))
    scaled = PIXELS.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, scaled.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(0), rtol=1e-9)


def test_statistics_of_a_large_set_are_sampled(monkeypatch):
    monkeypatch.setattr(preprocessing, "MOST_VALUES", -(-PIXELS.size // 4))
    mean, _ = channel_statistics(image_set(PIXELS))
    np.testing.assert_allclose(mean, (PIXELS[::4] / 255).mean((0, 1, 2)), rtol=1e-12)


def test_a_constant_channel_is_safe():
    images = np.full((3, 8, 8, 1), 77, np.uint8)
    mean, std = channel_statistics(image_set(images))
    assert std == (1 / 255,)
    found = Preprocessing((8, 8), mean, std, 1).normalise(images)
    np.testing.assert_allclose(found, 0, atol=1e-4)


def prepared(size=(9, 11), channels=3):
    return Preprocessing(size, (0.5,) * channels, (0.25,) * channels, channels)


def test_normalise_is_the_formula_for_bytes_and_floats():
    rule = prepared()
    wanted = (PIXELS / 255 - 0.5) / 0.25
    normalise = jax.jit(rule.normalise)
    np.testing.assert_allclose(normalise(PIXELS), wanted, atol=1e-5)
    floats = (PIXELS / 255).astype(np.float32)
    np.testing.assert_allclose(normalise(floats), wanted, atol=1e-5)
    np.testing.assert_allclose(rule.denormalise(normalise(PIXELS)), floats, atol=1e-6)


def each(size=(9, 11), channels=3):
    return dataclasses.replace(prepared(size, channels), normalisation="image")


def test_each_image_is_normalised_by_its_own_means_and_contrast():
    x = (PIXELS / 255 - 0.5) / 0.25
    x = x - x.mean((1, 2), keepdims=True)
    wanted = x / (np.sqrt((x**2).mean((1, 2, 3), keepdims=True)) + 0.1)
    normalise = jax.jit(each().normalise)
    np.testing.assert_allclose(normalise(PIXELS), wanted, atol=1e-5)
    everything = np.ones(PIXELS.shape[:3], bool)
    np.testing.assert_allclose(normalise(PIXELS, everything), wanted, atol=1e-5)
    # Targets and pictures keep the statistics of the data.
    np.testing.assert_array_equal(
        each().standardise(PIXELS), prepared().normalise(PIXELS)
    )


def test_statistics_of_an_image_are_those_of_its_visible_pixels():
    visible = RNG.random(PIXELS.shape[:3]) < 0.3
    found = jax.jit(each().normalise)(PIXELS, visible)
    for image, seen, ours in zip(PIXELS, visible, np.asarray(found), strict=True):
        alone = each().normalise(image[seen][None, None])
        np.testing.assert_allclose(ours[seen], alone[0, 0], atol=2e-5)


def test_tint_and_brightness_leave_an_image_and_a_flat_one_is_zero():
    floats = 0.25 + PIXELS / np.float32(1000)
    tinted = floats + np.float32([0.1, -0.1, 0.3])
    normalise = each().normalise
    np.testing.assert_allclose(normalise(tinted), normalise(floats), atol=1e-4)
    flat = np.full((2, 9, 11, 3), 200, np.uint8)
    np.testing.assert_allclose(normalise(flat), 0, atol=1e-3)
    slope = jax.grad(lambda x: normalise(x)[0, 0, 0, 0])(flat / np.float32(255))
    assert np.isfinite(slope).all()


def test_preprocessing_survives_json():
    rule = each()
    stored = rule.to_dict()
    assert Preprocessing.from_dict(stored) == rule
    del stored["normalisation"]  # as written before images were normalised one by one
    assert Preprocessing.from_dict(stored) == prepared()


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    channels=st.sampled_from([1, 3]),
)
def test_fit_gives_the_trained_shape_and_keeps_constants(height, width, size, channels):
    images = np.full((2, height, width, 4 - channels), 90, np.uint8)
    found = prepared(size, channels).fit(images)
    assert found.shape == (2, *size, channels)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - 90).max() <= 1


def test_fit_leaves_alone_what_fits():
    np.testing.assert_array_equal(prepared().fit(PIXELS), PIXELS)
    assert prepared().fit(PIXELS[:0, :5]).shape == (0, 9, 11, 3)


def test_shrinking_averages():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[::2] = 200
    found = cover_and_crop(stripes, (16, 16)).astype(int)
    assert np.abs(found - 100).max() <= 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 4), np.uint8), "4 channels"),
        (np.zeros((2, 8, 8, 3), np.int32), "int32"),
        (np.full((2, 8, 8, 3), 200.0), "divide by 255"),
        (np.full((2, 8, 8, 3), np.nan), "nan"),
    ],
)
def test_images_that_cannot_fit(images, message):
    with pytest.raises(UserError, match=message):
        prepared().fit(images)


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match="2 means"):
        Preprocessing((8, 8), (0.5, 0.5), (0.2,), 1)


IMAGES = jnp.asarray(RNG.random((64, 16, 12, 3), np.float32))


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_settings_know_every_augmentation(name):
    assert field_problems(PretrainConfig(data="x", out="x", augment=name)) == []


def test_an_unknown_augmentation_in_settings_names_the_nearest():
    with pytest.raises(UserError, match="'shfit' is unknown; did you mean"):
        PretrainConfig(data="x", out="x", augment="shfit")


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_augmentations_keep_shape_range_and_repeat(name):
    change = jax.jit(make_augment(name))
    found = change(jax.random.key(0), IMAGES)
    assert (found.shape, found.dtype) == (IMAGES.shape, IMAGES.dtype)
    assert found.min() >= 0
    assert found.max() <= 1
    np.testing.assert_array_equal(found, change(jax.random.key(0), IMAGES))
    if name == "none":
        np.testing.assert_array_equal(found, IMAGES)
    else:
        assert not np.array_equal(found, change(jax.random.key(1), IMAGES))


@given(st.integers(8, 10_000))
def test_reach_is_an_eighth_rounded_down(side):
    assert geometry.reach(side) <= side / 8 < geometry.reach(side) + 1


@settings(deadline=None, max_examples=2)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
@example(height=28, width=96)
@example(height=224, width=8)
def test_shift_reaches_an_eighth_of_every_side_each_way(height, width):
    """Every whole number of pixels up to it, as often to either side, and no other."""
    rows, columns = jnp.indices((height, width), dtype=jnp.float32)
    places = jnp.stack([rows, columns], -1)[None].repeat(1500, 0)
    found = np.asarray(jax.jit(make_augment("shift"))(jax.random.key(0), places))
    middle = found[:, height // 2, width // 2].astype(int)
    for axis, side in enumerate((height, width)):
        far = max(1, side // 8)
        # Of so small a side that its mirror image shows, nothing can be told.
        if side < 4:
            continue
        apart, counts = np.unique(middle[:, axis] - side // 2, return_counts=True)
        assert apart.tolist() == list(range(-far, far + 1))
        expected = 1500 / (2 * far + 1)
        assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_each_image_is_shifted_on_its_own_by_whole_pixels():
    same = jnp.broadcast_to(IMAGES[:1], IMAGES.shape)
    found = np.asarray(make_augment("shift")(jax.random.key(0), same))
    padded = np.pad(np.asarray(same[0]), [(2, 2), (1, 1), (0, 0)], mode="symmetric")
    windows = {
        padded[r : r + 16, c : c + 12].tobytes() for r in range(5) for c in range(3)
    }
    assert len({image.tobytes() for image in found}) > 4
    assert {image.tobytes() for image in found} <= windows


def test_shear_leans_each_line_by_a_slope_of_its_own():
    """A line down the middle leans by up to 0.3 pixels a pixel, and stays a line."""
    line = jnp.zeros((200, 21, 21, 1)).at[:, :, 10].set(1.0)
    leaning = np.asarray(geometry._lean(jax.random.key(0), line, 2))[..., 0]
    assert (leaning.sum(2) == 1).all()
    places = leaning.argmax(2)
    np.testing.assert_array_equal(places[:, 10], 10)  # the middle stays
    lean = places[:, -1] - places[:, 0]
    assert set(lean) <= set(range(-6, 7))
    assert min(lean) < -3 < 3 < max(lean)


@pytest.mark.parametrize("factor", [0.75, 0.9, 1.0, 1.2, 4 / 3])
def test_drawing_larger_or_smaller_is_linear_interpolation(factor):
    """As scipy draws it, whose `reflect` mirrors beyond half a pixel too."""
    signal = RNG.random(11)
    source = (np.arange(11) - 5) / factor + 5
    wanted = ndimage.map_coordinates(signal, source[None], order=1, mode="reflect")
    (weights,) = np.asarray(geometry._zoom(jnp.array([[factor]]), 11))
    np.testing.assert_allclose(weights @ signal, wanted, atol=1e-5)


def test_tones_are_a_line_of_their_own_for_each_image_and_channel():
    ramp = np.linspace(0, 1, 16, dtype=np.float32)[None, None, :, None]
    images = jnp.asarray(np.broadcast_to(ramp, (200, 16, 16, 3)))
    key = jax.random.key(0)
    affine, tones = (jax.jit(make_augment(name)) for name in ("affine", "tones"))
    moved = np.asarray(affine(jax.random.split(key, 4)[0], images))
    found = np.asarray(tones(key, images))
    slopes = np.empty((200, 3))
    for i, channel in np.ndindex(slopes.shape):
        x, y = moved[i, ..., channel].ravel(), found[i, ..., channel].ravel()
        slopes[i, channel], low = np.polyfit(x, y, 1)
        np.testing.assert_allclose(low + slopes[i, channel] * x, y, atol=1e-5)
    assert 0.3 <= np.abs(slopes).min() < 0.35
    assert 0.95 < np.abs(slopes).max() <= 1
    # 600 draws of probability 1/2: deviation 0.02.
    assert (slopes < 0).mean() == pytest.approx(0.5, abs=0.08)


def test_affine_draws_each_image_at_a_size_of_its_own():
    square = jnp.zeros((100, 32, 32, 1)).at[:, 10:22, 10:22].set(1.0)
    found = np.asarray(jax.jit(make_augment("affine"))(jax.random.key(0), square))
    sides = np.sqrt(found.sum((1, 2, 3)))
    assert 12 * 0.7 < sides.min() < 10
    assert 14.5 < sides.max() < 12 * 1.4


@pytest.mark.parametrize("axis", [1, 2])
def test_bending_is_linear_interpolation_along_one_axis(axis):
    """As scipy draws it, whose `reflect` mirrors beyond half a pixel too."""
    image = RNG.random((9, 7))
    field = RNG.uniform(-2, 2, (9, 7))
    source = np.indices((9, 7)).astype(float)
    source[axis - 1] += field
    wanted = ndimage.map_coordinates(image, source, order=1, mode="reflect")
    found = geometry._bent(
        jnp.asarray(image, jnp.float32)[None, :, :, None],
        jnp.asarray(field, jnp.float32)[None],
        2,
        axis,
    )
    np.testing.assert_allclose(found[0, :, :, 0], wanted, atol=1e-5)


def test_elastic_bends_what_affine_leaves_straight():
    """A line across stays one by `affine`; `elastic` moves its parts each on its own,
    by at most an eighth of the side."""
    line = jnp.zeros((200, 32, 32, 1)).at[:, 15:17].set(1.0)
    key = jax.random.key(0)
    straight = make_augment("affine")(jax.random.split(key)[1], line)
    places = np.arange(32)[None, :, None]

    def heights(images):
        images = np.asarray(images)[..., 0]
        return (images * places).sum(1) / np.maximum(images.sum(1), 1e-6)

    def bends(images):
        """What a straight line through the heights leaves, in pixels."""
        each = heights(images)[:, 6:26]
        x = np.arange(20)
        fits = [np.polyval(np.polyfit(x, y, 1), x) for y in each]
        return np.abs(each - fits).max(1)

    bent = make_augment("elastic")(key, line)
    assert np.median(bends(straight)) < 0.5
    assert np.median(bends(bent)) > 0.8
    apart = np.abs(heights(bent) - heights(straight))[:, 6:26]
    assert 1 < apart.max() <= 32 // 8


@pytest.mark.parametrize(
    ("name", "moved"), [("strong", "shear"), ("strong-affine", "affine")]
)
def test_strong_views_are_in_other_tones_and_lack_a_square(name, moved):
    """But for a ninth or less each image is a line of what the move alone makes."""
    images = 0.4 + 0.2 * IMAGES[:, :12]  # never clipped
    key = jax.random.key(0)
    move = jax.jit(make_augment(moved))
    before = np.asarray(move(jax.random.split(key, 4)[0], images))
    found = np.asarray(jax.jit(make_augment(name))(key, images))
    gains, kept = [], []
    for x, y in zip(before, found, strict=True):
        apart = np.abs(np.diff(x, axis=0)) > 0.02
        gain = np.median(np.diff(y, axis=0)[apart] / np.diff(x, axis=0)[apart])
        offset = np.median(y - gain * x)
        kept.append(np.isclose(y, gain * x + offset, atol=1e-4).all(-1).mean())
        gains.append(gain)
    assert min(kept) >= 8 / 9
    assert min(kept) < 1
    assert 0.6 <= min(gains) < 0.7
    assert 1.3 < max(gains) <= 1.4


def test_strong_erases_a_ninth_or_less():
    found = np.asarray(tones._erase(jax.random.key(0), IMAGES))
    gone = (found != np.asarray(IMAGES)).any(-1).sum((1, 2))
    assert gone.max() <= 16
    assert gone.mean() > 8


def test_half_are_mirrored():
    plain = make_augment("shift")(jax.random.split(jax.random.key(0))[0], IMAGES)
    found = make_augment("crop-flip")(jax.random.key(0), IMAGES)
    mirrored = np.asarray((found == plain[:, :, ::-1]).all((1, 2, 3)))
    kept = np.asarray((found == plain).all((1, 2, 3)))
    assert (mirrored ^ kept).all()
    assert 16 < mirrored.sum() < 48


def test_an_unknown_augmentation_names_the_near_one():
    with pytest.raises(UserError, match="did you mean 'shift'"):
        make_augment("shfit")
