"""`synthetic:HxWxC`: noisy gratings, generated from the size alone."""

import math
import re

import numpy as np

from afterimage.data.arrays import fit_arrays
from afterimage.data.sets import ImageSet, Request, Splits, array_set
from afterimage.data.sources import Source
from afterimage.errors import UserError
from afterimage.plugins import SOURCES

_TRAIN, _TEST = 1024, 256
"""Synthetic images in each split."""
_CLASSES = 4
_MOST_BYTES = 2**31
"""Most bytes of synthetic images: all are generated at once."""


@SOURCES.add("synthetic")
class SyntheticSource(Source):
    """Gratings with noise: 1,024 to train, 256 to test; 4 classes of orientation.

    The images depend only on the size, so they are the same in every run.
    """

    form = "HxWxC"

    def open(self, rest: str, request: Request) -> Splits:
        match = re.fullmatch(r"0*([0-9]+)x0*([0-9]+)x0*([0-9]+)", rest)
        if not match or "0" in match.groups():
            raise UserError(
                f"synthetic:{rest} is not a size; expected synthetic:HxWxC, e.g. "
                "synthetic:32x32x3"
            )
        if max(map(len, match.groups())) > 6 or (
            math.prod(map(int, match.groups())) * (_TRAIN + _TEST) > _MOST_BYTES
        ):
            raise UserError(
                f"synthetic:{rest[:40]} does not fit in memory: {_TRAIN + _TEST:,} "
                f"images may use {_MOST_BYTES:,} bytes in all. Use a smaller size, "
                "e.g. synthetic:512x512x3"
            )
        height, width, depth = map(int, match.groups())
        names = tuple(f"{180 * k // _CLASSES} degrees" for k in range(_CLASSES))

        def split(name: str, count: int, seed: int) -> ImageSet:
            labels = np.arange(count, dtype=np.int32) % _CLASSES
            images = _gratings(labels, (height, width, depth), seed)
            images = fit_arrays(images, request)
            return array_set(images, labels, names, f"synthetic:{rest} [{name}]")

        return Splits(train=split("train", _TRAIN, 0), test=split("test", _TEST, 1))


def _gratings(labels: np.ndarray, shape: tuple[int, int, int], seed: int) -> np.ndarray:
    height, width, channels = shape
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    images = np.empty((len(labels), *shape), np.uint8)
    for image, label in zip(images, labels, strict=True):
        angle = np.pi * (label + rng.uniform(-0.3, 0.3)) / _CLASSES
        along = rows * np.cos(angle) + columns * np.sin(angle)
        wave = np.sin(2 * np.pi * (rng.uniform(2, 4) * along + rng.uniform()))
        colour = rng.uniform(30, 90, channels)
        noise = rng.standard_normal(shape, np.float32) * 12
        image[:] = np.clip(128 + wave[..., None] * colour + noise, 0, 255)
    return images
