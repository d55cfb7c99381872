"""Histograms of oriented gradients: a target that ignores brightness and contrast.

As a target for masked prediction: Wei et al., "Masked Feature Prediction for
Self-Supervised Visual Pre-Training" (2022, MaskFeat), section 3.2: separate histograms
per channel, cells of 8 pixels, every histogram divided by its norm, no blocks.

A target has the shape of the image: in every cell and channel, the first nine pixels
(rows first) hold the histogram and the others are 0. So cells have sides of at least 3
pixels. Histograms are positive; their mean over the training images is subtracted, as
pixels are standardised. Otherwise a decoder must first learn to output this mean, and
switches off most of its units on the way (docs/design/representations.md).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from afterimage.data import ImageSet
from afterimage.models import ops
from afterimage.models.hog import FLOOR, ORIENTATIONS, gradients, in_cells
from afterimage.training.batches import subsample

_CELLS = range(8, 2, -1)
# As many images give the mean to two decimals.
_MEAN_IMAGES = 512

Mean = tuple[tuple[float, ...], ...]
"""The mean histogram of each channel, [c][9]; plain numbers, so that it hashes."""


def cell_size(patch: int) -> int | None:
    """Side of a cell in pixels: the largest of 8 to 3 that divides a patch, or None."""
    return next((cell for cell in _CELLS if patch % cell == 0), None)


def histograms(pixels: Float[Array, "b h w c"], cell: int) -> Float[Array, "b H W c 9"]:
    """Orientations 0 to 180 degrees (the first around 10) in squares of `cell` pixels.

    `pixels` are in [0, 1]. Norms are sqrt(sum of squares + (0.01 cell)^2) / 3: a cell
    with an edge has a mean square of 1.
    """
    cells = in_cells(*gradients(pixels), cell)
    squares = jnp.square(cells).sum(-1, keepdims=True) + (FLOOR * cell) ** 2
    return cells * (ORIENTATIONS**0.5 / jnp.sqrt(squares))


def mean_histogram(images: ImageSet, cell: int) -> Mean:
    """The mean over all cells of at most 512 images, to two decimals.

    Rounded, so that a run that resumes on another device has the same.
    """
    some = subsample(images, _MEAN_IMAGES)
    pixels = some.gather(np.arange(len(some)))

    @jax.jit
    def mean(pixels: Array) -> Array:
        return histograms(pixels.astype(jnp.float32) / 255, cell).mean((0, 1, 2))

    return tuple(tuple(row) for row in np.asarray(mean(pixels)).round(2).tolist())


def hog_target(
    pixels: Float[Array, "b h w c"], cell: int, mean: Mean | None = None
) -> Float[Array, "b h w c"]:
    """The histograms of pixels in [0, 1], less their mean if it is given.

    In the layout of the module docstring.
    """
    _, height, width, c = pixels.shape
    found = histograms(pixels, cell)
    if mean is not None:
        found = found - jnp.asarray(mean, found.dtype)[None, None, None]
    found = jnp.swapaxes(found, -1, -2)
    room = ((0, 0), (0, 0), (0, 0), (0, cell**2 - ORIENTATIONS), (0, 0))
    found = jnp.pad(found, room)
    laid = ops.depth_to_space(found.reshape(*found.shape[:3], cell**2 * c), cell)
    return laid[:, :height, :width]


def hog_picture(
    target: Float[Array, "b h w c"], cell: int, mean: Mean | None = None
) -> Float[Array, "b h w c"]:
    """A target or a prediction of it, as strokes along the edges, white on black."""
    _, height, width, c = target.shape
    blocks = ops.space_to_depth(ops.pad_to_multiple(target, cell), cell)
    blocks = blocks.reshape(*blocks.shape[:3], cell**2, c)[..., :ORIENTATIONS, :]
    if mean is not None:
        blocks = blocks + jnp.asarray(mean, blocks.dtype).T[None, None, None]
    strength = jnp.maximum(blocks, 0) / ORIENTATIONS**0.5
    drawn = jnp.einsum("bhwkc,kp->bhwpc", strength, _strokes(cell))
    drawn = ops.depth_to_space(drawn.reshape(*drawn.shape[:3], cell**2 * c), cell)
    return jnp.clip(drawn[:, :height, :width], 0, 1)


def _strokes(cell: int) -> np.ndarray:
    """[9, cell^2]: for each orientation, a line across a cell perpendicular to it."""
    angle = (np.arange(ORIENTATIONS)[:, None, None] + 0.5) * np.pi / ORIENTATIONS
    places = np.arange(cell) - (cell - 1) / 2
    away = np.cos(angle) * places[None, None] + np.sin(angle) * places[None, :, None]
    return np.maximum(1 - np.abs(away), 0).reshape(ORIENTATIONS, -1).astype(np.float32)
