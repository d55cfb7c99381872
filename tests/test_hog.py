"""The HOG descriptor: pixel by pixel, and what it ignores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.models.hog import hog_vectors, joined_hog, joined_hog_size
from tests.test_pretrain_hog import by_hand


def images(shape=(3, 12, 12, 1), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def blocks_by_hand(image: np.ndarray, cell: int) -> np.ndarray:
    """L2-Hys over overlapping 2x2 blocks of one grey image."""
    cells = by_hand(image / 255, cell, normalised=False)[:, :, 0]
    found = []
    for y in range(len(cells) - 1):
        for x in range(cells.shape[1] - 1):
            block = cells[y : y + 2, x : x + 2].reshape(-1)
            block = block / np.sqrt((block**2).sum() + (0.01 * cell) ** 2)
            block = np.minimum(block, 0.2)
            found.append(block / np.sqrt((block**2).sum() + 1e-12))
    return np.concatenate(found)


def test_it_is_the_published_formula():
    x = images()
    want = np.stack([blocks_by_hand(image, 2) for image in x])
    np.testing.assert_allclose(hog_vectors(x), want, atol=1e-4)


def test_the_strongest_channel_votes():
    grey = images()
    weak = (grey // 4 + 90).astype(np.uint8)
    both = np.concatenate([weak, grey, weak], axis=-1)
    np.testing.assert_allclose(hog_vectors(both), hog_vectors(grey), atol=1e-5)


@pytest.mark.parametrize(
    "size", [(2, 3), (16, 16), (28, 28), (33, 40), (64, 64), (64, 100), (100, 71)]
)
def test_the_joined_part_has_the_length_that_it_says(size):
    x = jnp.asarray(images((2, *size, 3)), jnp.float32) / 255
    assert joined_hog(x).shape == (2, joined_hog_size(size))
    # Contrast and brightness hardly matter, so neither does the normalisation.
    np.testing.assert_allclose(joined_hog(3 * x - 1), joined_hog(x), atol=0.02)


@pytest.mark.parametrize("side", [16, 96])
def test_the_joined_part_is_the_descriptor(side):
    """Of grey images; large ones are reduced to 48 px."""
    x = images((2, side, side, 1))
    small = np.asarray(x, np.float32)
    if side > 48:
        small = np.asarray(jax.image.resize(small, (2, 48, 48, 1), "linear"))
    want = hog_vectors(small.round().astype(np.uint8))
    found = joined_hog(jnp.asarray(x, jnp.float32) / 255)
    np.testing.assert_allclose(found, want, atol=0.03)
    # All channels vote, so three equal ones are as good as one.
    three = joined_hog(jnp.repeat(jnp.asarray(x, jnp.float32) / 255, 3, axis=3))
    np.testing.assert_allclose(three, found, atol=0.03)


def test_any_size_and_number_of_images():
    assert hog_vectors(images((2, 96, 80, 3))).shape == (2, 7 * 7 * 4 * 9)
    assert hog_vectors(images((2, 2, 3, 1))).shape == (2, 2 * 9)
    x = images((300, 8, 8, 1))  # more than one chunk
    whole = hog_vectors(x)
    assert len(whole) == 300
    np.testing.assert_allclose(hog_vectors(x[-7:]), whole[-7:], atol=1e-6)
    flat = hog_vectors(np.full((1, 16, 16, 3), 90, np.uint8))
    np.testing.assert_array_equal(flat, 0)
