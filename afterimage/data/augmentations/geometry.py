"""Augmentations that move pixels.

Written without gathers, which are slow on CPU: an offset is taken half by half, each a
choice between two slices, so a random crop is a few fused passes over the batch.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.plugins import AUGMENTATIONS

SLOPE = 0.3
"""`shear` leans by up to ± this many pixels a pixel: 17 degrees."""
ZOOM = 4 / 3
"""`affine` draws larger or smaller by up to this factor."""
BEND = 1 / 28
"""`elastic` moves its points by normal amounts of this share of a side."""
POINTS = 4
"""`elastic` moves this many points a side."""


@AUGMENTATIONS.add("none")
def none(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The images as they are."""
    del key
    return images


@AUGMENTATIONS.add("shift")
def shift(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Move each image by up to an eighth of its side each way, borders mirrored.

    Whole pixels, each as likely: -r … r, r an eighth rounded down, at least 1.
    """
    rows, columns = jax.random.split(key)
    return _shift_axis(columns, _shift_axis(rows, images, 1), 2)


@AUGMENTATIONS.add("crop-flip")
def crop_flip(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """`shift`, and half of the images mirrored left to right."""
    move, mirror = jax.random.split(key)
    images = shift(move, images)
    chosen = jax.random.bernoulli(mirror, 0.5, (len(images), 1, 1, 1))
    return jnp.where(chosen, images[:, :, ::-1], images)


@AUGMENTATIONS.add("shear")
def shear(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Each image leant both ways by slopes in ± 0.3, then `shift`; whole pixels.

    Turns among them: shears of opposite signs turn. For digits and letters.
    """
    wide, high, move = jax.random.split(key, 3)
    return shift(move, _lean(high, _lean(wide, images, 2), 1))


@AUGMENTATIONS.add("affine")
def affine(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Each image drawn larger or smaller by up to a third, then `shear`.

    The factor is log-uniform in [3/4, 4/3], the same for both axes; in between pixels
    are interpolated linearly, beyond the border mirrored.
    """
    size, lean = jax.random.split(key)
    most = math.log(ZOOM)
    factor = jnp.exp(jax.random.uniform(size, (len(images), 1), None, -most, most))
    for axis in (1, 2):
        weights = _zoom(factor, images.shape[axis]).astype(images.dtype)
        form = "bij,bjwc->biwc" if axis == 1 else "bij,bhjc->bhic"
        images = jnp.einsum(form, weights, images)
    return shear(lean, images)


@AUGMENTATIONS.add("elastic")
def elastic(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """`affine`, then bent as if drawn on rubber, of which 4 x 4 points are moved.

    By normal amounts of a twenty-eighth of a side, at most an eighth, cubic in between;
    pixels are interpolated linearly, first along the rows, then along the columns. For
    handwriting and tissue (Simard et al. 2003; Ronneberger et al. 2015).
    """
    bend, rest = jax.random.split(key)
    images = affine(rest, images)
    size = images.shape[1:3]
    points = jax.random.normal(bend, (2, len(images), POINTS, POINTS))
    shape = (2, len(images), *size)
    fields = BEND * jax.image.resize(points, shape, "cubic")
    for axis, field in ((2, fields[0]), (1, fields[1])):
        side = images.shape[axis]
        most = reach(side)
        images = _bent(images, jnp.clip(side * field, -most, most), most, axis)
    return images


def _zoom(factor: Float[Array, "b 1"], size: int) -> Float[Array, "b n n"]:
    """Linear interpolation along an axis, as one matrix an image.

    A product with two numbers a row that are not zero: cheaper than a gather.
    """
    place, middle = jnp.arange(size, dtype=factor.dtype), (size - 1) / 2
    source = (place - middle)[None] / factor + middle
    # Mirrored as symmetric padding is: the border lies half a pixel beyond the last.
    source = size - 0.5 - jnp.abs(size - jnp.abs(source + 0.5))
    source = jnp.clip(source, 0, size - 1)
    return jnp.maximum(0, 1 - jnp.abs(source[:, :, None] - place[None, None]))


def reach(side: int) -> int:
    """How far `shift` moves an image of this side, each way: an eighth of it, rounded
    down to whole pixels, but at least one."""
    return max(1, side // 8)


def _shift_axis(
    key: Array, images: Float[Array, "b h w c"], axis: int
) -> Float[Array, "b h w c"]:
    most = reach(images.shape[axis])
    offsets = jax.random.randint(key, (len(images), 1, 1, 1), -most, most + 1)
    return _moved(images, offsets, most, axis)


def _lean(
    key: Array, images: Float[Array, "b h w c"], axis: int
) -> Float[Array, "b h w c"]:
    """Lines along `axis` moved by a slope times their distance from the middle."""
    lines = images.shape[3 - axis]
    shape = [len(images), 1, 1, 1]
    slope = jax.random.uniform(key, shape, None, -SLOPE, SLOPE)
    place = jnp.arange(lines, dtype=slope.dtype) - (lines - 1) / 2
    shape[0], shape[3 - axis] = 1, lines
    offsets = jnp.round(slope * place.reshape(shape)).astype(jnp.int32)
    return _moved(images, offsets, math.ceil(SLOPE * (lines - 1) / 2), axis)


def _moved(
    images: Float[Array, "b h w c"], offsets: Array, most: int, axis: int
) -> Float[Array, "b h w c"]:
    """Each pixel taken from `offsets` (-most … most) further on, borders mirrored."""
    padding = [(0, 0)] * 4
    padding[axis] = (most, most)
    images = jnp.pad(images, padding, mode="symmetric")
    left, offsets = 2 * most, offsets + most
    while left:
        # Half of the way that is left, or none of it: every offset is reached.
        half = (left + 1) // 2
        size = images.shape[axis] - half
        far = jax.lax.slice_in_dim(images, half, size + half, axis=axis)
        near = jax.lax.slice_in_dim(images, 0, size, axis=axis)
        goes = offsets >= half
        images = jnp.where(goes, far, near)
        offsets, left = jnp.where(goes, offsets - half, offsets), left - half
    return images


def _bent(
    images: Float[Array, "b h w c"], field: Float[Array, "b h w"], most: int, axis: int
) -> Float[Array, "b h w c"]:
    """Each pixel taken from `field` pixels (±`most`) further along the axis.

    The sum over all whole offsets, at most two of which have a weight: one fused pass.
    """
    padding = [(0, 0)] * 4
    padding[axis] = (most, most)
    padded = jnp.pad(images, padding, mode="symmetric")
    side, bent = images.shape[axis], jnp.zeros_like(images)
    for offset in range(-most, most + 1):
        weight = jnp.maximum(0, 1 - jnp.abs(field - offset))[..., None]
        first = most + offset
        moved = jax.lax.slice_in_dim(padded, first, first + side, axis=axis)
        bent += weight.astype(images.dtype) * moved
    return bent
