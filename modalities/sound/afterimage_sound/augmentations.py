"""Augmentations of spectrograms, on the device: masks, shifts in time, and a set."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from afterimage.data.augmentations import AugmentationSet, takes
from afterimage.plugins import AUGMENTATIONS

_MASKS = 2  # along each axis


@AUGMENTATIONS.add("spec-augment")
@takes(frequency=(0, 1), time=(0, 1))
def spec_augment(
    key: Array,
    images: Float[Array, "b h w c"],
    frequency: float = 0.2,
    time: float = 0.2,
) -> Float[Array, "b h w c"]:
    """Hide two bands of FREQUENCY (0.2) and two spans of TIME (0.2) in each image.

    Widths are uniform from 0 to these shares of the height and the width; what is
    hidden gets the image's mean. Park et al. 2019, "SpecAugment", without warping.
    """
    mean = images.mean((1, 2), keepdims=True)
    high, wide = jax.random.split(key)
    rows = _hidden(high, len(images), images.shape[1], frequency)
    columns = _hidden(wide, len(images), images.shape[2], time)
    hidden = rows[:, :, None, None] | columns[:, None, :, None]
    return jnp.where(hidden, mean, images)


def _hidden(key: Array, count: int, side: int, share: float) -> Bool[Array, "b n"]:
    """Which of the lines of each image are hidden."""
    long, place = jax.random.uniform(key, (2, count, _MASKS, 1))
    width = jnp.floor(long * (share * side + 1))
    first = jnp.floor(place * (side - width + 1))
    line = jnp.arange(side)[None, None]
    return ((line >= first) & (line < first + width)).any(1)


@AUGMENTATIONS.add("time-shift")
@takes(share=(0, 1))
def time_shift(
    key: Array, images: Float[Array, "b h w c"], share: float = 0.2
) -> Float[Array, "b h w c"]:
    """Move each image by up to SHARE (0.2) of its width to either side.

    Whole columns, uniform; black, that is silence, comes in.
    """
    width = images.shape[2]
    most = round(share * width)
    offsets = jax.random.randint(key, (len(images), 1, 1, 1), -most, most + 1)
    source = jnp.arange(width)[None, None, :, None] - offsets
    moved = jnp.take_along_axis(images, jnp.clip(source, 0, width - 1), axis=2)
    return jnp.where((source >= 0) & (source < width), moved, 0)


@AUGMENTATIONS.add("sounds")
class Sounds(AugmentationSet):
    """For spectrograms: when a sound begins and parts of its spectrum do not matter.

    Never mirrors, and never moves tones far.
    """

    spec = "crop:0.5:1.2,time-shift,spec-augment"
