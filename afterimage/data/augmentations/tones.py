"""Augmentations that also change brightness, contrast and colours."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.data.augmentations import Augment
from afterimage.data.augmentations.geometry import affine, shear, shift
from afterimage.plugins import AUGMENTATIONS

BRIGHTNESS = 0.2
"""`light` scales contrast by 1 ± this value and adds up to ± half of it."""
TONES = 0.3
"""`tones` keeps at least this fraction of a channel's range."""


@AUGMENTATIONS.add("light")
def light(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """`shift`, then change contrast and brightness of each image; clipped to [0, 1].

    x -> clip(m + g (x - m) + o), m the image's mean, g in 1 ± 0.2, o in ± 0.1. Safe for
    digits and letters: it never mirrors.
    """
    move, gain, offset = jax.random.split(key, 3)
    return _tone((gain, offset), shift(move, images), BRIGHTNESS)


@AUGMENTATIONS.add("tones")
def tones(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """`affine`, then map each channel's tones to a random range, half of them
    inverted: letters of any colour on any other.

    x -> a + (b - a) x for each image and channel, |b - a| uniform in [0.3, 1], a and b
    within [0, 1].
    """
    shape, extent, place, turn = jax.random.split(key, 4)
    images = affine(shape, images)
    each = (len(images), 1, 1, images.shape[-1])
    extent = jax.random.uniform(extent, each, images.dtype, TONES, 1)
    low = jax.random.uniform(place, each, images.dtype) * (1 - extent)
    inverted = jax.random.bernoulli(turn, 0.5, each)
    return low + extent * jnp.where(inverted, 1 - images, images)


@AUGMENTATIONS.add("strong")
def strong(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """`shear`, twice the tone changes of `light`, then erase a square.

    The square's side is a third of the shorter side. It lies anywhere (also partly
    outside the image) and is filled with the image's mean. Never mirrors. For the
    strongly augmented view in consistency training.
    """
    return _strengthened(shear, key, images)


@AUGMENTATIONS.add("strong-affine")
def strong_affine(
    key: Array, images: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """Like `strong`, but with `affine` instead of `shear`: also changes the size."""
    return _strengthened(affine, key, images)


def _strengthened(
    move: Augment, key: Array, images: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """Move pixels, then change tones, then erase a square."""
    shape, gain, offset, place = jax.random.split(key, 4)
    images = _tone((gain, offset), move(shape, images), 2 * BRIGHTNESS)
    return _erase(place, images)


def _tone(
    keys: tuple[Array, Array], images: Float[Array, "b h w c"], most: float
) -> Float[Array, "b h w c"]:
    """Change contrast by 1 ± `most`, brightness by ± half of it; clip to [0, 1]."""
    one_each = (len(images), 1, 1, 1)
    gain = 1 + jax.random.uniform(keys[0], one_each, None, -most, most)
    offset = jax.random.uniform(keys[1], one_each, None, -most / 2, most / 2)
    mean = images.mean((1, 2, 3), keepdims=True)
    return jnp.clip(mean + gain * (images - mean) + offset, 0, 1).astype(images.dtype)


def _erase(key: Array, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    _, height, width, _ = images.shape
    row, column = jax.random.uniform(key, (2, len(images), 1, 1, 1))
    half = min(height, width) / 6
    rows = jnp.abs(jnp.arange(height)[None, :, None, None] - row * height) < half
    columns = jnp.abs(jnp.arange(width)[None, None, :, None] - column * width) < half
    mean = images.mean((1, 2, 3), keepdims=True)
    return jnp.where(rows & columns, mean, images)
