"""The target of histograms: the published formula, its layout, what it ignores."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.data import open_data
from afterimage.data.preprocessing import Preprocessing
from afterimage.errors import UserError
from afterimage.pretrain import hog
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.hog import cell_size, mean_histogram
from afterimage.pretrain.losses import ReconstructionLoss
from afterimage.pretrain.run import pretrain

# Compiled once, not operation by operation.
histograms = jax.jit(hog.histograms, static_argnums=1)
hog_target, hog_picture = (
    jax.jit(function, static_argnums=(1, 2))
    for function in (hog.hog_target, hog.hog_picture)
)


def pixels(shape=(2, 12, 12, 3), seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def by_hand(image: np.ndarray, cell: int, *, normalised: bool = True) -> np.ndarray:
    """One image's histograms [H, W, C, 9], pixel by pixel."""
    height, width, channels = image.shape
    found = np.zeros((-(-height // cell), -(-width // cell), channels, 9))
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                right = image[y, min(x + 1, width - 1), c]
                across = float(right - image[y, max(x - 1, 0), c])
                below = image[min(y + 1, height - 1), x, c]
                down = float(below - image[max(y - 1, 0), x, c])
                degrees = math.degrees(math.atan2(down, across)) % 180
                # Between the centres at 10, 30, … 170 degrees, and round again.
                place = (degrees - 10) / 20
                low = math.floor(place)
                share = place - low
                size = math.hypot(across, down)
                into = found[y // cell, x // cell, c]
                into[low % 9] += size * (1 - share)
                into[(low + 1) % 9] += size * share
    if not normalised:
        return found
    norms = np.sqrt((found**2).sum(-1, keepdims=True) + (0.01 * cell) ** 2)
    return 3 * found / norms


@pytest.mark.parametrize(("side", "cell"), [(12, 4), (10, 4), (9, 3)])
def test_histograms_are_those_of_the_formula(side, cell):
    images = pixels((2, side, side + 1, 3))
    expected = np.stack([by_hand(image, cell) for image in images])
    np.testing.assert_allclose(histograms(jnp.array(images), cell), expected, atol=2e-4)


@pytest.mark.parametrize("degrees", range(0, 180, 10))
def test_an_edge_votes_for_its_own_direction(degrees):
    y, x = np.mgrid[:12, :12] / 24
    angle = math.radians(degrees)
    image = (math.cos(angle) * x + math.sin(angle) * y).astype(np.float32)
    # The cell in the middle: at borders one of the two differences is half.
    found = histograms(jnp.array(image[None, :, :, None]), 4)[0, 1, 1, 0]
    expected = np.zeros(9)
    nearest = {(degrees - 10) // 20 % 9, -(-(degrees - 10) // 20) % 9}
    expected[list(nearest)] = 3 / math.sqrt(len(nearest))
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_brightness_and_contrast_do_not_count():
    images = pixels()
    target = hog_target(jnp.array(images), 4)
    np.testing.assert_allclose(
        hog_target(jnp.array(images * 0.5 + 0.3), 4), target, atol=2e-3
    )
    flat = hog_target(jnp.full((1, 8, 8, 3), 0.7), 4)
    np.testing.assert_array_equal(flat, np.zeros((1, 8, 8, 3)))


def test_noise_below_a_grey_value_is_no_edge():
    noise = 0.5 + (pixels((4, 8, 8, 1)) - 0.5) / 255
    assert float(jnp.square(histograms(jnp.array(noise), 4)).mean()) < 0.2
    assert float(jnp.square(histograms(jnp.array(pixels()), 4)).mean()) > 0.9


def test_the_first_nine_pixels_of_a_cell_hold_its_histogram():
    images = jnp.array(pixels((2, 8, 12, 3)))
    target, found = np.asarray(hog_target(images, 4)), histograms(images, 4)
    assert target.shape == images.shape
    for k in range(16):
        there = target[:, k // 4 :: 4, k % 4 :: 4]
        expected = found[..., k] if k < 9 else np.zeros(there.shape)
        np.testing.assert_array_equal(there, expected)


def test_a_picture_of_a_target_has_strokes_along_the_edges():
    image = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (1, 8, 1))[..., None]
    picture = np.asarray(hog_picture(hog_target(jnp.array(image), 8), 8))[0, :, :, 0]
    assert picture.min() >= 0
    assert picture.max() <= 1
    columns, rows = picture.sum(0), picture.sum(1)
    assert columns[3:5].min() > 2 * columns[[0, 7]].max()
    assert rows.max() < 2 * rows.min()
    np.testing.assert_array_equal(hog_picture(jnp.zeros((1, 8, 8, 1)), 4), 0)


@pytest.mark.parametrize(
    ("patch", "cell"),
    [(1, None), (2, None), (3, 3), (4, 4), (10, 5), (11, None), (16, 8), (32, 8)],
)
def test_cells_fill_patches(patch, cell):
    assert cell_size(patch) == cell


def test_the_loss_of_masked_patches_is_of_their_own_cells():
    def loss(patch):
        return ReconstructionLoss(
            loss="mse",
            target="hog",
            preprocessing=Preprocessing((8, 8), (0.5,), (0.25,), 1),
            patch=patch,
        )

    target = loss(4).targets(jnp.array(pixels((1, 8, 8, 1))))
    mask = np.zeros((1, 8, 8), bool)
    mask[:, :4, 4:] = True
    wrong = target.at[:, 4:].add(5.0).at[:, :4, :4].add(5.0)
    assert float(loss(4).per_image(wrong, target, jnp.array(mask))[0]) == 0
    worse = target.at[:, 0, 4].add(2.0)
    found = loss(4).per_image(worse, target, jnp.array(mask))[0]
    np.testing.assert_allclose(found, 4 / 16, rtol=1e-6)
    np.testing.assert_array_equal(
        loss(4).pictures(target, target), hog_picture(target, 4)
    )


def test_patches_too_small_for_a_cell_are_refused_before_there_is_a_folder(tmp_path):
    config = PretrainConfig(
        data="digits",
        out=str(tmp_path / "run"),
        steps=2,
        objective={"name": "masked", "target": "hog"},
    )
    with pytest.raises(UserError, match=r"patch=2: target='hog'.*3 to 8 pixels"):
        pretrain(config)
    assert not (tmp_path / "run").exists()


def edges(count: int) -> np.ndarray:
    """Images of one edge each, most of them nearly upright, uint8 [n, 16, 16, 1]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16] - 7.5
    slope, place = rng.normal(size=(2, count, 1, 1))
    pixels = 127 * (1 + np.tanh(x + 0.3 * slope * y + 2 * place))
    return pixels.astype(np.uint8)[..., None]


def test_the_mean_histogram_is_that_of_the_images_and_centres_the_target():
    images = np.concatenate([edges(40)] * 3, -1)
    found = histograms(jnp.array(images / np.float32(255)), 4)
    source = open_data(images).train
    mean = mean_histogram(source, 4)
    np.testing.assert_allclose(mean, found.mean((0, 1, 2)), atol=0.006)
    target = hog_target(jnp.array(images / np.float32(255)), 4, mean)
    assert abs(float(target.mean())) < 0.01
    shown = hog_target(jnp.array(images / np.float32(255)), 4)
    np.testing.assert_allclose(
        hog_picture(target, 4, mean), hog_picture(shown, 4), atol=1e-5
    )


@pytest.mark.slow
def test_training_starts_at_the_loss_of_the_mean_not_above_it(tmp_path):
    """A new decoder outputs almost nothing, and the target is centred."""
    config = PretrainConfig(
        out=str(tmp_path / "run"),
        steps=1,
        batch_size=32,
        lr=1e-9,
        width=0.1,
        decoder="block",
        tensorboard=False,
        objective={"name": "masked", "target": "hog", "patch": 4},
    )
    result = pretrain(config, data=edges(400))
    assert 0.8 < result.metrics["relative_loss"] < 1.2
