"""RandAugment: a few operations at random, each with one strength.

Cubuk et al. 2020, "RandAugment: Practical automated data augmentation with a reduced
search space", section 3: N operations in a row, each drawn from 14 with equal
probability, all at magnitude M of 30. Ranges are torchvision's. Every image draws its
own operations; beyond the border the last pixel continues.

All images go through one resampling and one change of tones for each of the N, inside
jit: an operation that was not drawn has no effect there.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from afterimage.data.augmentations.colours import blend, mean_grey, to_grey
from afterimage.data.augmentations.resampling import Affine, resample, takes
from afterimage.plugins import AUGMENTATIONS

Images = Float[Array, "b h w c"]
OPERATIONS = (
    *("identity", "rotate", "shear-x", "shear-y", "translate-x", "translate-y"),
    *("brightness", "contrast", "color", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)
_MOVES = len(("identity", "rotate", "shear", "shear", "translate", "translate"))
_MOST = 30
_DEGREES, _SHEAR, _TRANSLATE, _ENHANCE = 30.0, 0.3, 150 / 331, 0.9
_BITS = 4
"""Posterizing keeps 8 to 4 bits."""


@AUGMENTATIONS.add("randaugment")
@takes(number=(1, 4), magnitude=(0, 30))
def randaugment(
    key: Array, images: Images, number: float | int = 2.0, magnitude: float | int = 9.0
) -> Images:
    """NUMBER (2) random changes of MAGNITUDE (9 of 30): place, colour, tones.

    Each is one of 14: none, rotation, shear and translation both ways, brightness,
    contrast, colour, sharpness, posterizing, solarizing, stretched or equalised tones.
    torchvision's RandAugment, but beyond the border the last pixel continues.
    """
    for layer in range(round(number)):
        which, way = jax.random.split(jax.random.fold_in(key, layer))
        kind = jax.random.randint(which, (len(images),), 0, len(OPERATIONS))
        sign = jnp.where(jax.random.bernoulli(way, 0.5, kind.shape), 1.0, -1.0)
        images = changed(images, kind, sign * magnitude / _MOST)
        # Computed once: XLA would repeat the layer for each use of it on CPU.
        images = jax.lax.optimization_barrier(images)
    return images


def changed(images: Images, kind: Int[Array, " b"], m: Float[Array, " b"]) -> Images:
    """Each image under its operation of OPERATIONS, at m in -1 to 1."""
    _, height, width, _ = images.shape
    moved = resample(
        images, _movement(images, kind, m), (height, width), continues=True
    )
    one_each = kind[:, None, None, None]
    strength, size = m[:, None, None, None], jnp.abs(m)[:, None, None, None]
    made = {
        "brightness": jnp.zeros_like(images),
        "contrast": jnp.broadcast_to(mean_grey(images), images.shape),
        "color": jnp.broadcast_to(_colourless(images), images.shape),
        "sharpness": _smoothed(images),
    }
    made = {k: blend(images, x, 1 + _ENHANCE * strength) for k, x in made.items()}
    made |= {
        "posterize": _posterized(images, size),
        "solarize": jnp.where(images >= 1 - size, 1 - images, images),
        "autocontrast": _stretched(images),
        "equalize": _equalized(images),
    }
    found = jnp.where(one_each < _MOVES, moved, images)
    for name, result in made.items():
        found = jnp.where(one_each == OPERATIONS.index(name), result, found)
    return found


def _movement(images: Images, kind: Int[Array, " b"], m: Float[Array, " b"]) -> Affine:
    """Rotation, shear or translation, in places from -1 to 1."""
    _, height, width, _ = images.shape

    def of(name: str, values: Array) -> Array:
        return jnp.where(kind == OPERATIONS.index(name), values, 0)

    angle = of("rotate", math.radians(_DEGREES) * m)
    cos, sin, aspect = jnp.cos(angle), jnp.sin(angle), width / height
    across = sin / aspect + of("shear-x", _SHEAR * m) / aspect
    down = -sin * aspect + of("shear-y", _SHEAR * m) * aspect
    linear = jnp.stack([jnp.stack([cos, across], -1), jnp.stack([down, cos], -1)], -2)
    shift = [of(f"translate-{axis}", 2 * _TRANSLATE * m) for axis in "xy"]
    return Affine(linear, jnp.stack(shift, -1))


def _colourless(images: Images) -> Float[Array, "b h w _c"]:
    """Grey; images that are not RGB as they are."""
    return to_grey(images) if images.shape[-1] == 3 else images


def _smoothed(images: Images) -> Images:
    """The mean over 3x3 pixels, in which the middle counts five times; the border stays
    as it is (Pillow's SMOOTH)."""
    _, height, width, _ = images.shape
    total = 4 * images[:, 1:-1, 1:-1]
    for i in range(3):
        for j in range(3):
            total += images[:, i : height - 2 + i, j : width - 2 + j]
    return images.at[:, 1:-1, 1:-1].set(total / 13)


def _posterized(images: Images, size: Array) -> Images:
    """Only the highest bits of each of 256 levels."""
    step = 2.0 ** jnp.round(_BITS * size)
    return jnp.floor(jnp.round(images * 255) / step) * step / 255


def _stretched(images: Images) -> Images:
    """Each channel's tones stretched to 0 to 1; a flat channel as it is."""
    low, high = (f(images, (1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    wide = high - low
    return jnp.where(wide > 0, (images - low) / jnp.where(wide > 0, wide, 1), images)


def _equalized(images: Images) -> Images:
    """Each channel's 256 levels equally frequent, as Pillow's ImageOps.equalize."""
    count, height, width, channels = images.shape
    levels = jnp.round(images * 255).astype(jnp.int32)
    rows = levels.transpose(0, 3, 1, 2).reshape(count * channels, height * width)
    counts = lax.platform_dependent(rows, tpu=_compared, default=_scattered)
    last = jnp.take_along_axis(counts, rows.max(1, keepdims=True), 1)
    step = (height * width - last) // 255
    before = jnp.cumsum(counts, 1) - counts
    table = jnp.clip((before + step // 2) // jnp.maximum(step, 1), 0, 255)
    table = jnp.where(step > 0, table, jnp.arange(256)[None])
    found = lax.platform_dependent(
        table, rows, tpu=_looked_up_by_comparing, default=_looked_up
    )
    found = found.reshape(count, channels, height, width).transpose(0, 2, 3, 1)
    return found.astype(images.dtype) / 255


def _scattered(rows: Int[Array, "r n"]) -> Int[Array, "r 256"]:
    """How often each of 256 levels occurs in each row."""
    place = jnp.arange(len(rows))[:, None]
    return jnp.zeros((len(rows), 256), jnp.int32).at[place, rows].add(1)


def _compared(rows: Int[Array, "r n"]) -> Int[Array, "r 256"]:
    """The same by comparisons: a TPU scatters numbers one by one."""
    levels = jnp.arange(256)[None, :, None]
    return (rows[:, None] == levels).sum(2, dtype=jnp.int32)


def _looked_up(table: Int[Array, "r 256"], rows: Int[Array, "r n"]) -> Array:
    """The entry of each row's own table for each of its levels."""
    return jnp.take_along_axis(table, rows, 1)


def _looked_up_by_comparing(
    table: Int[Array, "r 256"], rows: Int[Array, "r n"]
) -> Array:
    """The same by comparisons."""
    levels = jnp.arange(256)[None, None]
    return jnp.where(rows[..., None] == levels, table[:, None], 0).sum(
        2, dtype=jnp.int32
    )
