"""Mean and spread of each channel, from counts of grey levels: exact, in one pass."""

import numpy as np

from afterimage.data.preprocessing import SMALLEST_STD
from afterimage.data.sets import ImageSet

MOST_VALUES = 2**28
"""Pixel values looked at; a larger set is represented by evenly spaced images."""
_CHUNK = 2**24


def channel_statistics(
    images: ImageSet,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of each channel, images scaled to [0, 1].

    mean = Σ v·n(v) / Σ n(v) over grey levels v, so the result depends neither on order
    nor on rounding. The deviation of a constant channel is given as 1/255, one grey
    level, so that nothing is ever divided by zero. Sets of more than 2²⁸ values are
    sampled at even spacing (error below 10⁻⁴ of the range for anything but adversarial
    order).
    """
    height, width, channels = images.shape
    pixels = height * width * channels
    stride = max(1, -(-len(images) * pixels // MOST_VALUES))
    rows = np.arange(0, len(images), stride)
    counts = np.zeros((channels, 256), np.int64)
    step = max(1, _CHUNK // pixels)
    for start in range(0, len(rows), step):
        chunk = images.gather(rows[start : start + step])
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    total = counts.sum(1)
    levels = np.arange(256) / 255
    mean = counts @ levels / total
    variance = counts @ levels**2 / total - mean**2
    constant = (counts > 0).sum(1) == 1
    std = np.sqrt(np.maximum(variance, 0.0))
    std = np.where(constant | (std == 0), SMALLEST_STD, std)
    return tuple(mean.tolist()), tuple(std.tolist())
