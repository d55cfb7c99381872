"""Augmentations that move pixels, each one line of a spec: crop, flip, rotate, ….

Neighbours in a spec are composed before any pixel is interpolated (`resampling`).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.data.augmentations.resampling import Affine, Canvas, movement, takes
from afterimage.plugins import AUGMENTATIONS

_TRIES = 10
"""Draws of a part that fits into the image; then the middle is taken."""


@AUGMENTATIONS.add("crop")
@movement(straight=True, cuts=True)
@takes(area=(0.01, 1), aspect=(1, 4))
def crop(
    key: Array, canvas: Canvas, area: float = 0.2, aspect: float = 4 / 3
) -> Affine:
    """Cut a random part of at least AREA (0.2) of each image, and resize it.

    Its share of the area is uniform in AREA to 1, its width/height log-uniform in
    1/ASPECT to ASPECT (4/3) times that of the view. Where an object is and
    how large no longer matter. torchvision's RandomResizedCrop, antialiased.
    """
    one_each, view = (canvas.images,), canvas.view
    height, width = (jnp.full(one_each, side, jnp.float32) for side in canvas.size)
    share, form, down, across = jax.random.split(key, 4)
    tries = (_TRIES, canvas.images)
    pixels = (height * width)[None] * jax.random.uniform(share, tries, None, area, 1)
    most = math.log(aspect)
    ratio = jnp.exp(jax.random.uniform(form, tries, None, -most, most))
    ratio *= view[1] / view[0]
    w, h = jnp.round(jnp.sqrt(pixels * ratio)), jnp.round(jnp.sqrt(pixels / ratio))
    fits = (w > 0) & (w <= width[None]) & (h > 0) & (h <= height[None])
    first = jnp.argmax(fits, 0)[None]
    some = fits.any(0)
    widest = view[1] / view[0] * aspect
    narrowest = view[1] / view[0] / aspect
    middle = (
        jnp.minimum(height, jnp.maximum(1, jnp.round(width / narrowest))),
        jnp.minimum(width, jnp.maximum(1, jnp.round(height * widest))),
    )
    h = jnp.where(some, jnp.take_along_axis(h, first, 0)[0], middle[0])
    w = jnp.where(some, jnp.take_along_axis(w, first, 0)[0], middle[1])
    top = jnp.floor(jax.random.uniform(down, one_each) * (height - h + 1))
    left = jnp.floor(jax.random.uniform(across, one_each) * (width - w + 1))
    top = jnp.where(some, top, (height - middle[0]) // 2)
    left = jnp.where(some, left, (width - middle[1]) // 2)
    return part(left, top, w, h, canvas)


def part(
    left: Array, top: Array, width: Array, height: Array, canvas: Canvas
) -> Affine:
    """The movement that shows these parts of the images; in pixels, [b] each."""
    rows, columns = canvas.size
    x, y = 2 * left + width, 2 * top + height
    offset = jnp.stack([x / columns, y / rows], -1) - 1
    return Affine(_diagonal(width / columns, height / rows), offset)


@AUGMENTATIONS.add("flip")
@movement(straight=True)
def flip(key: Array, canvas: Canvas) -> Affine:
    """Mirror half of the images left to right; not for letters and digits."""
    return _centred(_diagonal(_sign(key, canvas), jnp.ones(canvas.images)))


@AUGMENTATIONS.add("flip-vertical")
@movement(straight=True)
def flip_vertical(key: Array, canvas: Canvas) -> Affine:
    """Mirror half of the images top to bottom."""
    return _centred(_diagonal(jnp.ones(canvas.images), _sign(key, canvas)))


@AUGMENTATIONS.add("rotate")
@movement()
@takes(degrees=(0, 180))
def rotate(key: Array, canvas: Canvas, degrees: float = 15.0) -> Affine:
    """Rotate each image by up to DEGREES (15) each way.

    Uniform. torchvision's RandomRotation with bilinear interpolation, but where that
    leaves black corners, the image is mirrored beyond its border; beside zoom, slant or
    translate, its last pixel continues.
    """
    most = math.radians(degrees)
    angle = jax.random.uniform(key, (canvas.images,), None, -most, most)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    aspect = canvas.size[1] / canvas.size[0]
    return _centred(_matrix(cos, sin / aspect, -sin * aspect, cos))


@AUGMENTATIONS.add("zoom")
@movement(continues=True)
@takes(amount=(0, 1.5))
def zoom(key: Array, canvas: Canvas, amount: float = 0.3) -> Affine:
    """Enlarge or shrink each image by a factor of up to e^AMOUNT (0.3).

    The factor is log-uniform in e^-AMOUNT to e^AMOUNT. Beyond the border, the last
    pixel continues.
    """
    factor = jnp.exp(jax.random.uniform(key, (canvas.images,), None, -amount, amount))
    return _centred(_diagonal(factor, factor))


@AUGMENTATIONS.add("slant")
@movement(continues=True)
@takes(slope=(0, 1))
def slant(key: Array, canvas: Canvas, slope: float = 0.3) -> Affine:
    """Slant each image like italics, by up to SLOPE (0.3) pixels per row.

    Uniform, to either side. Beyond the border, the last pixel continues.
    """
    lean = jax.random.uniform(key, (canvas.images,), None, -slope, slope)
    one, none = jnp.ones(canvas.images), jnp.zeros(canvas.images)
    return _centred(_matrix(one, lean * canvas.size[0] / canvas.size[1], none, one))


@AUGMENTATIONS.add("translate")
@movement(continues=True)
@takes(share=(0, 1))
def translate(key: Array, canvas: Canvas, share: float = 0.1) -> Affine:
    """Move each image by up to SHARE (0.1) of its side each way.

    By fractions of pixels too, uniform. Beyond the border, the last pixel continues.
    """
    most = 2 * share  # places run from -1 to 1
    offset = jax.random.uniform(key, (canvas.images, 2), None, -most, most)
    return Affine(_diagonal(*jnp.ones((2, canvas.images))), offset)


@AUGMENTATIONS.add("quarter-turns")
def quarter_turns(
    key: Array, images: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """Turn each image by 0, 90, 180 or 270 degrees; not square: by 0 or 180."""
    half, quarter = _halves(key, len(images), 2)
    images = jnp.where(half, images[:, ::-1, ::-1], images)
    if images.shape[1] != images.shape[2]:
        return images
    return jnp.where(quarter, images.swapaxes(1, 2)[:, ::-1], images)


@AUGMENTATIONS.add("symmetries")
def symmetries(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Turn and mirror each image in one of the eight ways to put a square down.

    Four ways if it is not square. For images without up and down, left and right.
    """
    across, down, diagonal = _halves(key, len(images), 3)
    images = jnp.where(across, images[:, :, ::-1], images)
    images = jnp.where(down, images[:, ::-1], images)
    if images.shape[1] != images.shape[2]:
        return images
    return jnp.where(diagonal, images.swapaxes(1, 2), images)


def _halves(key: Array, count: int, times: int) -> Array:
    """Whether each image is chosen, with probability 1/2: [times, b, 1, 1, 1]."""
    return jax.random.bernoulli(key, 0.5, (times, count, 1, 1, 1))


def _sign(key: Array, canvas: Canvas) -> Float[Array, " b"]:
    return jnp.where(jax.random.bernoulli(key, 0.5, (canvas.images,)), -1.0, 1.0)


def _centred(linear: Float[Array, "b 2 2"]) -> Affine:
    return Affine(linear, jnp.zeros(linear.shape[:2]))


def _diagonal(x: Float[Array, " b"], y: Float[Array, " b"]) -> Float[Array, "b 2 2"]:
    return _matrix(x, jnp.zeros_like(x), jnp.zeros_like(x), y)


def _matrix(a: Array, b: Array, c: Array, d: Array) -> Float[Array, "b 2 2"]:
    return jnp.stack([jnp.stack([a, b], -1), jnp.stack([c, d], -1)], -2)
