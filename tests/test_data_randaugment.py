"""RandAugment: each operation against Pillow, and how often each is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from afterimage.data import make_augment
from afterimage.data.augmentations import randaugment
from afterimage.data.augmentations.randaugment import OPERATIONS, changed

RNG = np.random.default_rng(0)
# Not all levels, so that tones can be stretched.
NOISE = RNG.integers(30, 200, (3, 20, 24, 3), np.uint8)
IMAGES = jnp.asarray(NOISE, jnp.float32) / 255


def done(name, m, images=IMAGES):
    count = len(images)
    kind = jnp.full(count, OPERATIONS.index(name))
    return np.asarray(jax.jit(changed)(images, kind, jnp.full(count, float(m))))


def pillow(function, images=NOISE):
    shown = [np.asarray(function(Image.fromarray(image))) for image in images]
    return np.stack(shown) / 255


@pytest.mark.parametrize(
    ("name", "m", "function", "levels"),
    [
        ("posterize", 0.5, lambda i: ImageOps.posterize(i, 6), 0.01),
        ("posterize", -1.0, lambda i: ImageOps.posterize(i, 4), 0.01),
        ("solarize", 0.3, lambda i: ImageOps.solarize(i, 178.5), 0.01),
        ("autocontrast", 0.3, ImageOps.autocontrast, 1.01),
        ("equalize", 0.3, ImageOps.equalize, 0.01),
        ("brightness", 0.5, lambda i: ImageEnhance.Brightness(i).enhance(1.45), 1.01),
        ("brightness", -0.5, lambda i: ImageEnhance.Brightness(i).enhance(0.55), 1.01),
        ("contrast", 0.5, lambda i: ImageEnhance.Contrast(i).enhance(1.45), 1.51),
        ("color", -1.0, lambda i: ImageEnhance.Color(i).enhance(0.1), 1.51),
        ("sharpness", 0.5, lambda i: ImageEnhance.Sharpness(i).enhance(1.45), 1.51),
    ],
)
def test_an_operation_is_pillows(name, m, function, levels):
    assert np.abs(done(name, m) - pillow(function)).max() <= levels / 255


def test_a_movement_is_that_of_whole_pixels():
    share = 150 / 331
    m = 6 / 24 / share  # a quarter of the width
    moved = done("translate-x", m)
    np.testing.assert_allclose(moved[:, :, :18], IMAGES[:, :, 6:], atol=1e-3)
    m = 5 / 20 / share
    moved = done("translate-y", -m)
    np.testing.assert_allclose(moved[:, 5:], IMAGES[:, :15], atol=1e-3)
    # A slant moves rows far from the middle by 0.3 pixels a row.
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 24)[None, None, :, None], (1, 20, 24, 1))
    slanted = done("shear-x", 1.0, ramp)[0, :, 8:16, 0]
    expected = 0.3 * (np.arange(20) - 9.5) / 23
    np.testing.assert_allclose(
        slanted - np.asarray(ramp)[0, :, 8:16, 0],
        np.broadcast_to(expected[:, None], slanted.shape),
        atol=2e-3,
    )


def test_without_strength_nothing_moves():
    for name in ("identity", "rotate", "shear-y", "translate-x", "brightness", "color"):
        np.testing.assert_allclose(done(name, 0.0), IMAGES, atol=1e-6, err_msg=name)


def test_every_operation_is_drawn_alike(monkeypatch):
    drawn = []

    def seen(images, kind, m):
        drawn.append((np.asarray(kind), np.asarray(m)))
        return images

    monkeypatch.setattr(randaugment, "changed", seen)
    images = jnp.zeros((7000, 1, 1, 1))
    randaugment.randaugment(jax.random.key(0), images, 3, 15)
    assert len(drawn) == 3
    for kind, m in drawn:
        counts = np.bincount(kind, minlength=len(OPERATIONS))
        assert stats.chisquare(counts).pvalue > 1e-4
        np.testing.assert_array_equal(np.abs(m), 0.5)
        assert (m > 0).mean() == pytest.approx(0.5, abs=0.03)
    assert (drawn[0][0] != drawn[1][0]).mean() > 0.8


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_number_of_channels(channels):
    images = jnp.asarray(RNG.uniform(size=(16, 12, 12, channels)), jnp.float32)
    found = jax.jit(make_augment("randaugment:2:30"))(jax.random.key(1), images)
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    same = np.asarray(found == images).all((1, 2, 3)).mean()
    assert same < 0.5


def test_a_tpus_comparisons_are_the_tables_of_others():
    rows = jnp.asarray(RNG.integers(0, 200, (5, 300)), jnp.int32)
    table = jnp.asarray(RNG.integers(0, 256, (5, 256)), jnp.int32)
    counts, tones = randaugment._scattered(rows), randaugment._looked_up(table, rows)
    assert counts.sum() == rows.size
    np.testing.assert_array_equal(randaugment._compared(rows), counts)
    np.testing.assert_array_equal(
        randaugment._looked_up_by_comparing(table, rows), tones
    )


def test_a_tpu_scatters_no_levels():
    traced = jax.jit(randaugment._equalized).trace(IMAGES)
    programs = (
        traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("tpu", "cpu")
    )
    assert ["stablehlo.scatter" in program for program in programs] == [False, True]
