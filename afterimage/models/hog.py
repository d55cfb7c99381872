"""Histograms of oriented gradients: of cells, and a descriptor of a whole image.

Dalal & Triggs, "Histograms of Oriented Gradients for Human Detection" (2005), section
6: nine unsigned orientations, with each pixel's vote split between the two nearest.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

from afterimage.data.pixels import cover_and_crop
from afterimage.models import ops
from afterimage.runtime import jit

ORIENTATIONS = 9
# The noise level of a gradient (the difference of a pixel's two neighbours, at most 1):
# where a cell's mean is below it, it dominates the norm.
FLOOR = 0.01
_LARGEST, _CELLS, _CHUNK = 64, 5, 256
_JOINED = 48  # the shorter side of images whose HOG is joined to a feature vector
_CLIP = 0.2


# arctan x = x (1 + Σ c_n x^2n) on [0, 1], to 2e-8: Abramowitz & Stegun, "Handbook of
# Mathematical Functions" (1964), 4.4.49. XLA:CPU's own arctan2 takes ten times as long.
_ARCTAN = (-0.3333314528, 0.1999355085, -0.1420889944, 0.1065626393)
_ARCTAN += (-0.0752896400, 0.0429096138, -0.0161657367, 0.0028662257)


def gradients(
    pixels: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """(direction, size) of each pixel's gradient.

    `pixels` are in [0, 1]. Gradients are differences of a pixel's two neighbours, with
    borders repeated. Directions are 0 to 180 degrees, in units of 20, and 0 for a
    gradient of size 0.
    """
    across, down = (_difference(pixels, axis) for axis in (2, 1))
    wide, high = jnp.abs(across), jnp.abs(down)
    longer = jnp.maximum(wide, high)
    ratio = jnp.minimum(wide, high) / jnp.where(longer > 0, longer, 1)
    square, series = jnp.square(ratio), jnp.zeros_like(ratio)
    for coefficient in reversed(_ARCTAN):
        series = (series + coefficient) * square
    turn = ratio * (1 + series) * (ORIENTATIONS / jnp.pi)
    turn = jnp.where(high > wide, ORIENTATIONS / 2 - turn, turn)
    turn = jnp.where(across * down < 0, ORIENTATIONS - turn, turn)
    squared = jnp.square(across) + jnp.square(down)
    # The slope of a root at 0 is infinite: 1 is in its place.
    some, one = squared > 0, jnp.ones_like(squared)
    size = jnp.sqrt(jnp.where(some, squared, one))
    return turn, jnp.where(some, size, jnp.zeros_like(size))


def _difference(x: Array, axis: int) -> Array:
    """Next minus previous along an axis; a border is its own neighbour."""
    # Not `jnp.pad`: the converter to ONNX has no edges.
    n = x.shape[axis]

    def part(start: int, stop: int) -> Array:
        return lax.slice_in_dim(x, start, stop, axis=axis)

    following = jnp.concatenate([part(1, n), part(n - 1, n)], axis)
    return following - jnp.concatenate([part(0, 1), part(0, n - 1)], axis)


def in_cells(
    turn: Float[Array, "b h w c"], size: Float[Array, "b h w c"], cell: int
) -> Float[Array, "b H W c 9"]:
    """Sums over squares of `cell` pixels of the sizes of the gradients, each split
    between the two nearest of nine directions, which are at 10, 30, … degrees.

    A last cell that extends beyond the image uses the pixels it has.
    """
    turn, size = (ops.pad_to_multiple(x, cell) for x in (turn, size))
    b, h, w, c = turn.shape
    # One direction after another, each over whole rows: 2 ms instead of 24 for 64
    # colour images of 64 pixels on one core. Without the barrier every direction would
    # compute the gradients again.
    turn, size = (x.reshape(b, h, w * c) for x in (turn, size))
    turn, size = lax.optimization_barrier((turn, size))

    def votes(direction: float) -> Array:
        apart = jnp.abs(turn - direction)
        share = jnp.maximum(1 - jnp.minimum(apart, ORIENTATIONS - apart), 0)
        return (share * size).reshape(b, h // cell, cell, w * c).sum(2)

    rows = jnp.stack([votes(n + 0.5) for n in range(ORIENTATIONS)], 1)
    found = rows.reshape(b, ORIENTATIONS, h // cell, w // cell, cell, c).sum(4)
    return jnp.moveaxis(found, 1, -1)


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
    found = []
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK]
        # Padded to one shape, which is compiled once.
        missing = _CHUNK - len(part) if len(images) > _CHUNK else 0
        part = np.pad(part, ((0, missing), (0, 0), (0, 0), (0, 0)))
        found.append(np.asarray(_compiled()(part))[: _CHUNK - missing])
    return np.concatenate(found)


def joined_hog(images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
    """HOG of normalised images, as a part of a feature vector; traceable.

    Images whose shorter side is above 48 px are reduced to it first, and all channels
    vote: rounding would decide which of two equal ones is the strongest. Brightness and
    contrast are divided out, so it hardly matters how images are normalised.
    """
    turn, size = gradients(ops.reduced(images.astype(jnp.float32), _JOINED))
    return _descriptor(turn, size)


def joined_hog_size(image_size: tuple[int, int]) -> int:
    """Length of `joined_hog` of images of this size."""
    size = ops.reduced_size(image_size, _JOINED)
    cell = _cell(size)
    down, across = (-(-n // cell) for n in size)
    block = min(2, down) * min(2, across) * ORIENTATIONS
    return max(1, down - 1) * max(1, across - 1) * block


def _cell(size: tuple[int, ...]) -> int:
    return int(np.clip(round(max(size) / _CELLS), 2, 8))


def _descriptor(
    turn: Float[Array, "b h w c"], size: Float[Array, "b h w c"]
) -> Float[Array, "b d"]:
    cell = _cell(turn.shape[1:3])
    cells = in_cells(turn, size, cell).sum(3)
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
    blocks = _unit(jnp.minimum(_unit(blocks, cell), _CLIP), 0)
    return blocks.reshape(turn.shape[0], math.prod(blocks.shape[1:]))


@functools.cache
def _compiled() -> Any:
    """When it is first called: importing a module does not start JAX's devices."""
    return jit(_described)


def _described(images: UInt8[Array, "b h w c"]) -> Float[Array, "b d"]:
    turn, size = gradients(images.astype(jnp.float32) / 255)
    strongest = size == size.max(-1, keepdims=True)
    return _descriptor(turn, jnp.where(strongest, size, 0))


def _unit(blocks: Array, cell: int) -> Array:
    squares = jnp.square(blocks).sum(-1, keepdims=True)
    return blocks / jnp.sqrt(squares + (FLOOR * cell) ** 2 + 1e-12)
