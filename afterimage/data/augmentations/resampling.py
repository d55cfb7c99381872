"""Augmentations that only move pixels, composed so that pixels are interpolated once.

A movement is an affine map for each image, from places in the result to places in the
image. Places are (x, y) in [-1, 1] from edge to edge, whatever the size. Neighbouring
movements are multiplied. Without rotation or slant, the result is two small matrices
for each image, applied to rows and columns; otherwise each pixel is a weighted sum of
its neighbours.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

Size = tuple[int, int]
"""Height and width, in pixels."""
Sides = int | Float[Array, " b"]
_FINE = 4096
_PHOTO = 1024
"""Movements of a stretched photo are drawn as if it had this number squared of pixels,
in its own proportions."""
_SHRINK = 2
"""Images more than this many times the size of their views are reduced first."""


class Canvas(NamedTuple):
    """What a movement is drawn for."""

    images: int
    """How many images."""
    size: tuple[Sides, Sides]
    """Height and width, in pixels: of all images, or [b] of photos stretched to one
    size."""
    view: Size
    """The size of the result, for movements that cut."""


class Affine(NamedTuple):
    """x -> linear x + offset, from a place in the result to one in the image."""

    linear: Float[Array, "b 2 2"]
    offset: Float[Array, "b 2"]

    def after(self, later: "Affine") -> "Affine":
        """The map of this movement followed by a later one."""
        linear = jnp.einsum("bij,bjk->bik", self.linear, later.linear)
        offset = jnp.einsum("bij,bj->bi", self.linear, later.offset) + self.offset
        return Affine(linear, offset)


class Movement:
    """A registered augmentation that moves pixels: wraps `draw(key, canvas, *values)`.

    `straight`: it keeps rows and columns, and looks at nothing beyond the border.
    `cuts`: its result may have another size. `continues`: beyond the border, the last
    pixel continues; otherwise the image is mirrored.
    """

    def __init__(self, draw: Callable[..., Affine], **kind: bool):
        functools.update_wrapper(self, draw)
        self.draw = draw
        self.straight = kind.get("straight", False)
        self.cuts = kind.get("cuts", False)
        self.continues = kind.get("continues", False)

    def __call__(
        self, key: Array, images: Float[Array, "b h w c"], *values: float
    ) -> Float[Array, "b h w c"]:
        return moved([(self, values)], None)(key, images)


def movement(**kind: bool) -> Callable[[Callable[..., Affine]], Movement]:
    """Decorator that makes a `Movement`."""
    return functools.partial(Movement, **kind)


def takes(**ranges: tuple[float | int, float | int]) -> Callable[[Any], Any]:
    """Decorator: the numbers that a spec may give, (least, most) by parameter."""

    def mark(function: Any) -> Any:
        function.ranges = {k: (float(a), float(b)) for k, (a, b) in ranges.items()}
        return function

    return mark


def moved(
    moves: Sequence[tuple[Movement, tuple[float, ...]]], size: int | None
) -> Callable[..., Float[Array, "b _h _w c"]]:
    """These movements with their values, in order, as one resampling.

    (key, images, aspect=None): `aspect` is the width / height of photos before they
    were stretched to the images' size.
    """
    straight = all(move.straight for move, _ in moves)
    continues = any(move.continues for move, _ in moves)

    def augment(
        key: Array,
        images: Float[Array, "b h w c"],
        aspect: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b _h _w c"]:
        whole, now = composed(key, moves, len(images), _size(images), size, aspect)
        if straight:
            return straightly(images, whole, now)
        return resample(images, whole, now, continues=continues)

    return augment


def composed(
    key: Array,
    moves: Sequence[tuple[Movement, tuple[float, ...]]],
    images: int,
    now: Size,
    size: int | None,
    aspect: Float[Array, " b"] | None = None,
) -> tuple[Affine, Size]:
    """These movements, drawn for images of the size `now`, as one; and its result's
    size: `size` if they cut. For `aspect`, see `moved`."""
    view = now if size is None else (size, size)
    whole, sides = _unmoved(images), now
    if aspect is not None:
        sides = _PHOTO / jnp.sqrt(aspect), _PHOTO * jnp.sqrt(aspect)
    for number, (move, values) in enumerate(moves):
        own = jax.random.fold_in(key, number) if len(moves) > 1 else key
        whole = whole.after(move.draw(own, Canvas(images, sides, view), *values))
        now, sides = (view, view) if move.cuts else (now, sides)
    return whole, now


def central_squares(
    images: Float[Array, "b h w c"], aspect: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """The central parts of stretched photos that have the proportions of `images`, at
    the same size: squares. Images that were not stretched come back whole."""
    height, width = _size(images)
    wider = aspect * (height / width)
    shares = jnp.stack([jnp.minimum(1, 1 / wider), jnp.minimum(1, wider)], -1)
    linear = shares[..., None] * jnp.eye(2)[None]
    square = Affine(linear, jnp.zeros_like(shares))
    return straightly(images, square, _size(images))


def nearest(
    marks: Integer[Array, "b h w"], move: Affine, size: Size, *, continues: bool = False
) -> Integer[Array, "b _h _w"]:
    """A mark of each pixel, such as its class, under a movement: that of the nearest
    pixel, where `resample` shows the image."""
    count, *sides = marks.shape
    x, y = _places(size[1])[None, None], _places(size[0])[None, :, None]
    beyond, flat = _continued if continues else _mirrored, 0
    for axis in (1, 0):
        a, b = (move.linear[:, axis, i][:, None, None] for i in (0, 1))
        place = a * x + b * y + move.offset[:, axis][:, None, None]
        # Half a pixel further is the next one, as for numbers that are rounded.
        index = jnp.floor(_pixels(place, sides[1 - axis]) + 0.5).astype(jnp.int32)
        flat = flat * sides[1 - axis] + beyond(index, sides[1 - axis])
    found = jnp.take_along_axis(
        marks.reshape(count, -1), flat.reshape(count, -1), 1, mode="clip"
    )
    return found.reshape(count, *size)


def straightly(
    images: Float[Array, "b h w c"], move: Affine, size: Size
) -> Float[Array, "b _h _w c"]:
    """The images under a movement without rotation, at a size: linear, antialiased.

    Only pixels of the part that is cut are used.
    """
    for axis, which in ((1, 1), (2, 0)):
        form = "bij,bjwc->biwc" if axis == 1 else "bij,bhjc->bhic"
        scale, offset = move.linear[:, which, which], move.offset[:, which]
        weights = line_weights(scale, offset, images.shape[axis], size[axis - 1])
        images = jnp.einsum(form, weights.astype(images.dtype), images)
    return jnp.clip(images, 0, 1)


def resample(
    images: Float[Array, "b h w c"],
    move: Affine,
    size: Size,
    *,
    continues: bool = False,
) -> Float[Array, "b _h _w c"]:
    """The images under any movement, at a size: linear interpolation, antialiased.

    The triangle filter is as wide as a pixel of the result, at least one pixel of the
    image. The image is mirrored beyond its border, or its last pixel `continues`.
    """
    height, width = _size(images)
    less = min(height, _SHRINK * size[0]), min(width, _SHRINK * size[1])
    if less != (height, width):
        images = straightly(images, _unmoved(len(images)), less)
    found = _neighbours(images, move, size, _continued if continues else _mirrored)
    return jnp.clip(found, 0, 1).astype(images.dtype)


def line_weights(
    scale: Float[Array, " b"], offset: Float[Array, " b"], source: int, target: int
) -> Float[Array, "b target source"]:
    """Interpolation along one axis as a matrix for each image; rows sum to one.

    A product with few nonzero numbers per row is cheaper than a gather.
    """
    scale, offset = scale[:, None], offset[:, None]
    centre = _pixels(scale * _places(target)[None] + offset, source)[..., None]
    radius = jnp.maximum(1, jnp.abs(scale) * source / target)[..., None]
    # A thousandth of a pixel: the part's edges lie between pixels up to rounding.
    low = jnp.floor(_pixels(offset - jnp.abs(scale), source) + 0.501)[..., None]
    high = jnp.ceil(_pixels(offset + jnp.abs(scale), source) - 0.501)[..., None]
    place = jnp.arange(source, dtype=scale.dtype)[None, None]
    weights = jnp.maximum(0, 1 - jnp.abs(centre - place) / radius)
    weights = jnp.where((place >= low) & (place <= high), weights, 0)
    return weights / weights.sum(-1, keepdims=True)


def _neighbours(
    images: Float[Array, "b h w c"],
    move: Affine,
    size: Size,
    beyond: Callable[[Array, int], Array],
) -> Float[Array, "b _h _w c"]:
    """Each pixel as a weighted sum of those around its place, by gathers."""
    count, *sides, channels = images.shape
    across, down = _places(size[1])[None, None], _places(size[0])[None, :, None]
    indices, weights = [], []
    for axis, side in ((1, sides[0]), (0, sides[1])):
        a, b = (move.linear[:, axis, i][:, None, None] for i in (0, 1))
        place = _pixels(
            a * across + b * down + move.offset[:, axis][:, None, None], side
        )
        # How far the place moves from a pixel of the result to the next.
        radius = side * jnp.hypot(a / size[1], b / size[0])
        most = math.ceil(max(1, side / size[1 - axis]))
        radius = jnp.clip(radius, 1, most)
        first = jnp.floor(place)
        taps = [first + tap for tap in range(1 - most, most + 1)]
        own = [jnp.maximum(0, 1 - jnp.abs(tap - place) / radius) for tap in taps]
        total = functools.reduce(jnp.add, own)
        weights.append([one / total for one in own])
        indices.append([beyond(tap.astype(jnp.int32), side) for tap in taps])
    flat = images.reshape(count, sides[0] * sides[1], channels)
    take = jax.vmap(lambda pixels, index: jnp.take(pixels, index, 0, mode="clip"))
    found = jnp.zeros((count, *size, channels), images.dtype)
    for row, row_weight in zip(indices[0], weights[0], strict=True):
        for column, weight in zip(indices[1], weights[1], strict=True):
            pixel = take(flat, row * sides[1] + column)
            found += (row_weight * weight)[..., None] * pixel
    return found


def _mirrored(index: Array, side: int) -> Array:
    """The pixel that a pixel beyond the border shows: symmetric padding."""
    index = index % (2 * side)
    return jnp.minimum(index, 2 * side - 1 - index)


def _continued(index: Array, side: int) -> Array:
    """The same if the last pixel continues."""
    return jnp.clip(index, 0, side - 1)


def _places(side: int) -> Float[Array, " side"]:
    """The centres of a line's pixels in [-1, 1]."""
    return (2 * jnp.arange(side) + 1) / side - 1


def _pixels(place: Array, side: int) -> Array:
    """A place in [-1, 1] in pixels, 0 the centre of the first.

    To 1/4096, so that what falls on a pixel shows it exactly.
    """
    return jnp.round(((place + 1) * (side / 2) - 0.5) * _FINE) / _FINE


def _size(images: Float[Array, "b h w c"]) -> Size:
    _, height, width, _ = images.shape
    return height, width


def _unmoved(count: int) -> Affine:
    return Affine(jnp.broadcast_to(jnp.eye(2), (count, 2, 2)), jnp.zeros((count, 2)))
