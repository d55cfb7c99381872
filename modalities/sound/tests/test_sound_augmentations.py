"""Augmentations of spectrograms: what they hide, what they move, what they never do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.data import make_augment
from afterimage_sound.augmentations import spec_augment, time_shift


def pictures(count=200, height=20, width=30):
    rng = np.random.default_rng(0)
    return rng.uniform(0.2, 1, (count, height, width, 1)).astype(np.float32)


@pytest.mark.parametrize(("frequency", "time"), [(0.2, 0.0), (0.0, 0.3), (0.2, 0.3)])
def test_spec_augment_hides_whole_bands_and_spans(frequency, time):
    images = pictures()
    found = np.asarray(spec_augment(jax.random.key(0), images, frequency, time))
    hidden = (found != images)[..., 0]
    mean = np.broadcast_to(images.mean((1, 2), keepdims=True), images.shape)
    np.testing.assert_allclose(found[..., 0][hidden], mean[..., 0][hidden], rtol=1e-5)
    # Lines that are hidden whole; the others are hidden only where those cross them.
    rows, columns = hidden.all(2), hidden.all(1)
    np.testing.assert_array_equal(rows[:, :, None] | columns[:, None, :], hidden)
    for lines, share in ((rows, frequency), (columns, time)):
        side = lines.shape[1]
        assert lines.sum(1).max() <= 2 * round(share * side)
        if share:  # two widths, uniform from 0 to the share; they may overlap
            assert lines.any(0).all()
            assert 0.6 * share < lines.mean() < share


def test_spec_augment_of_nothing_is_nothing():
    images = pictures(8)
    found = spec_augment(jax.random.key(1), images, 0.0, 0.0)
    np.testing.assert_array_equal(found, images)


def test_time_shift_moves_and_fills_with_silence():
    images = pictures()
    found = np.asarray(time_shift(jax.random.key(0), images, 0.2))
    seen = set()
    for image, moved in zip(images, found, strict=True):
        black = moved[0, :, 0] == 0
        by = int(black.sum()) * (1 if black[0] else -1)
        seen.add(by)
        wanted = np.zeros_like(image)
        if by >= 0:
            wanted[:, by:] = image[:, : 30 - by]
        else:
            wanted[:, :by] = image[:, -by:]
        np.testing.assert_array_equal(moved, wanted)
    assert seen == set(range(-6, 7))


def test_the_set_never_mirrors():
    """A sound that grows stays one that grows, and a low one stays low."""
    ramp = jnp.linspace(0.1, 1, 32)
    growing = jnp.broadcast_to(ramp[None, None, :, None], (64, 32, 32, 1))
    augment = jax.jit(make_augment("sounds"))
    later = augment(jax.random.key(0), growing).mean((1, 3))
    assert (later[:, 20:].mean(1) > later[:, :12].mean(1)).mean() > 0.8
    lower = augment(jax.random.key(0), growing.swapaxes(1, 2)).mean((2, 3))
    assert (lower[:, 20:].mean(1) > lower[:, :12].mean(1)).all()
