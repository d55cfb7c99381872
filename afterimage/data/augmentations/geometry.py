"""Augmentations that move pixels.

They avoid gathers, which are slow on CPU: an offset is applied in halving steps, each a
choice between two slices, so a random crop takes a few fused passes over the batch.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.plugins import AUGMENTATIONS

SLOPE = 0.3
"""Largest slope of `shear`, in pixels per pixel: ± 17 degrees."""
ZOOM = 4 / 3
"""Largest factor by which `affine` enlarges or shrinks."""
BEND = 1 / 28
"""Standard deviation of the displacements in `elastic`, as a fraction of a side."""
POINTS = 4
"""Number of points per side that `elastic` moves."""


@AUGMENTATIONS.add("none")
def none(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The images as they are."""
    del key
    return images


@AUGMENTATIONS.add("shift")
def shift(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Shift each image by up to an eighth of its side each way, with mirrored borders.

    Offsets are whole pixels, uniform in -r … r; r is an eighth of the side, rounded
    down, at least 1.
    """
    rows, columns = jax.random.split(key)
    return _shift_axis(columns, _shift_axis(rows, images, 1), 2)


@AUGMENTATIONS.add("crop-flip")
def crop_flip(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """`shift`, then mirror half of the images left to right."""
    move, mirror = jax.random.split(key)
    images = shift(move, images)
    chosen = jax.random.bernoulli(mirror, 0.5, (len(images), 1, 1, 1))
    return jnp.where(chosen, images[:, :, ::-1], images)


@AUGMENTATIONS.add("shear")
def shear(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Shear each image along both axes by slopes in ± 0.3, then `shift`; whole pixels.

    Includes rotations: two shears of opposite signs rotate. For digits and letters.
    """
    wide, high, move = jax.random.split(key, 3)
    return shift(move, _lean(high, _lean(wide, images, 2), 1))


@AUGMENTATIONS.add("affine")
def affine(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Enlarge or shrink each image by up to a third, then `shear`.

    The factor is log-uniform in [3/4, 4/3] and the same for both axes. Pixels are
    interpolated linearly and mirrored beyond the border.
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
    """`affine`, then bend each image like a rubber sheet, displacing 4 x 4 points.

    Displacements are normal, with a standard deviation of 1/28 of a side, cubic between
    the points and at most an eighth of a side. Pixels are interpolated linearly, first
    along the rows, then along the columns. For handwriting and tissue (Simard et al.
    2003; Ronneberger et al. 2015).
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
    """Linear interpolation along an axis, as one matrix per image.

    A product with two nonzero numbers per row is cheaper than a gather.
    """
    place, middle = jnp.arange(size, dtype=factor.dtype), (size - 1) / 2
    source = (place - middle)[None] / factor + middle
    # Mirrored like symmetric padding: the border is half a pixel beyond the last one.
    source = size - 0.5 - jnp.abs(size - jnp.abs(source + 0.5))
    source = jnp.clip(source, 0, size - 1)
    return jnp.maximum(0, 1 - jnp.abs(source[:, :, None] - place[None, None]))


def reach(side: int) -> int:
    """Largest offset of `shift` for an image of this side: an eighth of it, rounded
    down to whole pixels, at least one."""
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
    """Move lines along `axis` by a slope times their distance from the middle."""
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
    """Take each pixel from `offsets` (-most … most) further on, mirroring borders."""
    padding = [(0, 0)] * 4
    padding[axis] = (most, most)
    images = jnp.pad(images, padding, mode="symmetric")
    left, offsets = 2 * most, offsets + most
    while left:
        # Move half of the remaining way, or not: this reaches every offset.
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
    """Take each pixel from `field` pixels (±`most`) further along the axis.

    Sums over all whole offsets, at most two with nonzero weight: one fused pass.
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
