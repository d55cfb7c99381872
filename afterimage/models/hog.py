"""Histograms of oriented gradients: of cells, and a descriptor of a whole image.

Dalal & Triggs, "Histograms of Oriented Gradients for Human Detection" (2005), section
6: nine unsigned orientations, with each pixel's vote split between the two nearest.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from afterimage.data.pixels import cover_and_crop
from afterimage.models import ops
from afterimage.runtime import jit

ORIENTATIONS = 9
# The noise level of a gradient (the difference of a pixel's two neighbours, at most 1):
# where a cell's mean is below it, it dominates the norm.
FLOOR = 0.01
_LARGEST, _CELLS, _CHUNK = 64, 5, 256
_CLIP = 0.2


def votes(pixels: Float[Array, "b h w c"]) -> Float[Array, "b h w c 9"]:
    """The magnitude of each pixel's gradient, split between its two orientations.

    `pixels` are in [0, 1]. Gradients are differences of a pixel's two neighbours, with
    borders repeated; orientations are 0 to 180 degrees, the first around 10.
    """
    x = jnp.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    across = x[:, 1:-1, 2:] - x[:, 1:-1, :-2]
    down = x[:, 2:, 1:-1] - x[:, :-2, 1:-1]
    turn = jnp.mod(jnp.arctan2(down, across), jnp.pi) * (ORIENTATIONS / jnp.pi)
    centres = jnp.arange(ORIENTATIONS, dtype=x.dtype) + 0.5
    apart = jnp.abs(turn[..., None] - centres[None, None, None, None])
    share = jnp.maximum(1 - jnp.minimum(apart, ORIENTATIONS - apart), 0)
    return share * jnp.hypot(across, down)[..., None]


def in_cells(found: Float[Array, "b h w c 9"], cell: int) -> Float[Array, "b H W c 9"]:
    """The sums of votes over squares of `cell` pixels.

    A last cell that extends beyond the image uses the pixels it has.
    """
    b, h, w, c, _ = found.shape
    found = ops.pad_to_multiple(found.reshape(b, h, w, c * ORIENTATIONS), cell)
    rows, columns = found.shape[1] // cell, found.shape[2] // cell
    found = found.reshape(b, rows, cell, columns, cell, c, ORIENTATIONS)
    return found.sum((2, 4))


def hog_vectors(images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n d"]:
    """The HOG descriptor of each image: features that need no training.

    Dalal & Triggs (2005): in every pixel the channel with the largest gradient votes;
    overlapping blocks of 2x2 cells are divided by their norm, clipped at 0.2 and
    divided again (L2-Hys). Cells have a side of a fifth of the image, 2 to 8 pixels;
    images above 64 pixels are reduced to 64 x 64 first.
    """
    if max(images.shape[1:3]) > _LARGEST:
        small = (_LARGEST, _LARGEST)
        images = np.stack([cover_and_crop(image, small) for image in images])
    cell = int(np.clip(round(max(images.shape[1:3]) / _CELLS), 2, 8))
    describe, found = _descriptor(cell), []
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK]
        # Padded to one shape, which is compiled once.
        missing = _CHUNK - len(part) if len(images) > _CHUNK else 0
        part = np.pad(part, ((0, missing), (0, 0), (0, 0), (0, 0)))
        found.append(np.asarray(describe(part))[: _CHUNK - missing])
    return np.concatenate(found)


@functools.cache
def _descriptor(cell: int):
    def describe(images: UInt8[Array, "b h w c"]) -> Float[Array, "b d"]:
        found = votes(images.astype(jnp.float32) / 255)
        size = found.sum(-1)
        strongest = size == size.max(-1, keepdims=True)
        found = jnp.where(strongest[..., None], found, 0)
        cells = in_cells(found, cell).sum(3)
        # An image of one cell a side has one block, of that cell alone.
        down, across = (min(2, n) for n in cells.shape[1:3])
        rows, columns = cells.shape[1] - down + 1, cells.shape[2] - across + 1
        blocks = jnp.concatenate(
            [
                cells[:, i : i + rows, j : j + columns]
                for i in range(down)
                for j in range(across)
            ],
            -1,
        )
        blocks = jnp.minimum(_unit(blocks, cell), _CLIP)
        return _unit(blocks, 0).reshape(len(images), -1)

    return jit(describe)


def _unit(blocks: Array, cell: int) -> Array:
    squares = jnp.square(blocks).sum(-1, keepdims=True)
    return blocks / jnp.sqrt(squares + (FLOOR * cell) ** 2 + 1e-12)
