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
from jax import lax
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
_AT_ONCE = 2**21
"""Numbers that the products of an image may have at a time: 8 MiB."""


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
    pixel, where `resample` shows the image. Marks are exact up to 2**24."""
    values = marks[..., None].astype(jnp.float32)
    beyond = _continued if continues else _mirrored
    found = _sampled(values, move, Sampling(size, beyond, _closest))
    return jnp.round(found[..., 0]).astype(marks.dtype)


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
    beyond = _continued if continues else _mirrored
    found = _sampled(images, move, Sampling(size, beyond, _triangle))
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


Taps = list[tuple[Array, Array]]
"""Lines of the image and their weights, for each pixel of the result."""


class Sampling(NamedTuple):
    """How the pixels of a result are made."""

    size: Size
    """Of the result."""
    beyond: Callable[[Array, int], Array]
    """The pixel that is shown for one that may be beyond the border."""
    spread: Callable[[Array, Array, int], Taps]
    """(place in pixels, pixels from one of the result to the next, at most how many) ->
    lines and weights."""


def _sampled(
    images: Float[Array, "b h w c"], move: Affine, how: Sampling
) -> Float[Array, "b _h _w c"]:
    """Each pixel as a weighted sum of those around its place."""
    gathers, products = _forms(how)
    found = lax.platform_dependent(images, move, tpu=products, default=gathers)
    return found.astype(images.dtype)


@functools.cache
def _forms(how: Sampling) -> tuple[Any, Any]:
    """The two forms, the same functions each time: JAX caches by their identity."""
    forms = (_by_gathers, _by_products)
    gathers, products = (functools.partial(form, how=how) for form in forms)
    return gathers, products


def _triangle(place: Array, step: Array, most: int) -> Taps:
    """Linear interpolation, antialiased."""
    radius = jnp.clip(step, 1, most)
    first = jnp.floor(place)
    taps = [first + tap for tap in range(1 - most, most + 1)]
    own = [jnp.maximum(0, 1 - jnp.abs(tap - place) / radius) for tap in taps]
    total = functools.reduce(jnp.add, own)
    return [(tap, one / total) for tap, one in zip(taps, own, strict=True)]


def _closest(place: Array, step: Array, most: int) -> Taps:
    """The nearest line; half a pixel further is the next one, as for numbers that are
    rounded."""
    del step, most
    return [(jnp.floor(place + 0.5), jnp.ones_like(place))]


def _taps(
    move: Affine, down: Float[Array, " i"], sides: Size, how: Sampling
) -> tuple[Taps, Taps]:
    """The rows, and the columns, for pixels of the result in the rows at `down`."""
    across, size, found = _places(how.size[1])[None, None], how.size, []
    for axis, side in ((1, sides[0]), (0, sides[1])):
        a, b = (move.linear[:, axis, i][:, None, None] for i in (0, 1))
        offset = move.offset[:, axis][:, None, None]
        place = _pixels(a * across + b * down[None, :, None] + offset, side)
        step = side * jnp.hypot(a / size[1], b / size[0])
        most = math.ceil(max(1, side / size[1 - axis]))
        taps = how.spread(place, step, most)
        found.append([(how.beyond(x.astype(jnp.int32), side), w) for x, w in taps])
    return found[0], found[1]


def _by_gathers(
    images: Float[Array, "b h w c"], move: Affine, how: Sampling
) -> Float[Array, "b _h _w c"]:
    count, height, width, channels = images.shape
    rows, columns = _taps(move, _places(how.size[0]), (height, width), how)
    flat = images.reshape(count, height * width, channels)
    take = jax.vmap(lambda pixels, index: jnp.take(pixels, index, 0, mode="clip"))
    found = jnp.zeros((count, *how.size, channels), jnp.float32)
    for row, row_weight in rows:
        for column, weight in columns:
            pixel = take(flat, row * width + column)
            found += (row_weight * weight)[..., None] * pixel
    return found


def _by_products(
    images: Float[Array, "b h w c"], move: Affine, how: Sampling
) -> Float[Array, "b _h _w c"]:
    """The same by products of matrices. A TPU gathers pixels one by one, and stores
    each of them as a line of 128 numbers.

    Products of images have a TPU's own precision, bfloat16: about 1/255.
    """
    count, height, width, channels = images.shape
    flat = images.reshape(count, height, width * channels)
    # Marks are whole numbers, which stay exact.
    precision = lax.Precision.HIGHEST if how.spread is _closest else None
    product = functools.partial(
        jnp.einsum, precision=precision, preferred_element_type=jnp.float32
    )
    unite = jnp.tile(jnp.eye(channels), (width, 1))

    def some(down: Float[Array, " i"]) -> Float[Array, "b i j c"]:
        rows, columns = _taps(move, down, (height, width), how)
        above = _matrix(rows, jnp.arange(height)).astype(images.dtype)
        beside = _matrix(columns, jnp.arange(width * channels) // channels)
        lines = product("bijr,brx->bijx", above, flat) * beside
        return product("bijx,xc->bijc", lines, unite)

    down = _places(how.size[0])
    row = how.size[1] * (height + 2 * width * channels)
    together = max(1, _AT_ONCE // row)
    if together >= len(down):
        return some(down)
    blocks = -(-len(down) // together)
    together = -(-len(down) // blocks)
    padded = jnp.pad(down, (0, blocks * together - len(down)), mode="edge")
    found = lax.map(some, padded.reshape(blocks, together))
    found = jnp.moveaxis(found, 0, 1).reshape(count, -1, how.size[1], channels)
    return found[:, : len(down)]


def _matrix(taps: Taps, lines: Integer[Array, " x"]) -> Float[Array, "b i j x"]:
    """The weight of each line for each pixel of the result."""
    parts = (
        jnp.where(tap[..., None] == lines[None, None, None], weight[..., None], 0)
        for tap, weight in taps
    )
    return functools.reduce(jnp.add, parts)


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
