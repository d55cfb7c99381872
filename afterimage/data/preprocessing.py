"""Preprocessing of an encoder's images: of user input, and inside jit."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from afterimage.data.pixels import (
    NotAnImage,
    change_channels,
    cover_and_crop,
    looks_channels_first,
    to_bytes,
    transposed_hint,
)
from afterimage.data.sets import ImageSet
from afterimage.errors import UserError

SMALLEST_STD = 1 / 255
"""One grey level: a constant channel becomes zeros instead of dividing by zero."""
FLAT = 0.1
"""Added to the RMS of an image, in standard deviations of the data: an image without
contrast is not turned into noise."""

Normalisation = Literal["data", "image"]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Size, channels, and the channel statistics used to normalise images.

    `mean` and `std` are per channel, for images in [0, 1]. `value_range` holds the
    values mapped to 0 and 1 in images of more than 8 bits: wide integers and floats.
    `normalisation` says whether the encoder's images are normalised by the statistics
    of the data alone, or then each by its own. `rendering` is that of the training
    images (`ImageSet`).
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int
    value_range: tuple[float, float] | None = None
    normalisation: Normalisation = "data"
    rendering: str = ""

    def __post_init__(self):
        if not len(self.mean) == len(self.std) == self.channels:
            raise UserError(
                f"{len(self.mean)} means and {len(self.std)} standard deviations for "
                f"{self.channels} channels; each channel needs one of each"
            )
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if min(self.image_size) < 1 or min(self.std) <= 0 or not finite:
            raise UserError(
                f"image size {self.image_size} and standard deviations {self.std} "
                f"must be greater than 0; they and the means {self.mean} must be "
                "finite"
            )

    def normalise(
        self,
        images: Num[Array, "*b h w c"] | Num[np.ndarray, "*b h w c"],
        visible: Bool[Array, "*b h w"] | None = None,
    ) -> Float[Array, "*b h w c"]:
        """An encoder's input: `standardise`, then `normalise_each` if so configured.

        Statistics of an image are those of its `visible` pixels, so that masked ones do
        not influence the others.
        """
        standardised = self.standardise(images)
        if self.normalisation == "data":
            return standardised
        return normalise_each(standardised, visible)

    def standardise(
        self, images: Num[Array, "*b h w c"] | Num[np.ndarray, "*b h w c"]
    ) -> Float[Array, "*b h w c"]:
        """(x - mean) / max(std, 1/255) as float32, inside jit.

        uint8 is scaled from [0, 255]; floats are assumed to be in [0, 1].
        """
        x = jnp.asarray(images)
        if jnp.issubdtype(x.dtype, jnp.integer) and x.dtype != jnp.uint8:
            raise UserError(
                f"images are {x.dtype}; expected uint8, or floats in [0, 1]"
            )
        mean = np.asarray(self.mean, np.float32)
        std = np.maximum(np.asarray(self.std, np.float32), np.float32(SMALLEST_STD))
        scale = np.float32(255) if x.dtype == jnp.uint8 else np.float32(1)
        # One multiply and one add per pixel: XLA fuses them into the next operation.
        rank = (1,) * (x.ndim - 1)
        gain = (1 / (scale * std)).reshape(*rank, -1)
        return x.astype(jnp.float32) * gain - (mean / std).reshape(*rank, -1)

    def denormalise(self, images: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """The inverse of `standardise`: images in [0, 1] if the input was."""
        rank = (1,) * (images.ndim - 1)
        std = np.maximum(np.asarray(self.std, np.float32), np.float32(SMALLEST_STD))
        mean = np.asarray(self.mean, np.float32).reshape(*rank, -1)
        return images * std.reshape(*rank, -1) + mean

    def fit(self, images: Num[np.ndarray, "n h w c"]) -> Num[np.ndarray, "n hh ww cc"]:
        """Images of any size -> the trained size and channels; uint8 stays uint8.

        Grey becomes RGB by repetition, RGB grey by ITU-R 601 luma. With a
        `value_range`, integers other than uint8, and floats, are numbers in that range,
        as in the training images. Without it, such integers and floats outside [0, 1]
        raise UserError; other channel counts always do.
        """
        images = _checked(_in_range(np.asarray(images), self.value_range))
        images = change_channels(images, self.channels)
        if images.shape[1:3] == self.image_size:
            return images
        if not len(images):
            return np.empty((0, *self.image_size, self.channels), images.dtype)
        return np.stack([cover_and_crop(image, self.image_size) for image in images])

    def other_range(self, other: "Preprocessing") -> str | None:
        """The warning for images scaled like `other`'s that pass through this one.

        None if both have the same range. 8-bit images do not depend on the range.
        """
        if self.value_range == other.value_range:
            return None
        own, given = (
            "the range of their type" if r is None else f"{r[0]:g} to {r[1]:g}"
            for r in (self.value_range, other.value_range)
        )
        return (
            f"was trained on images with black and white at {own}, but this data has "
            f"them at {given}; images of more than 8 bits would look different to it"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "image_size": list(self.image_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "channels": self.channels,
            "value_range": self.value_range and list(self.value_range),
            "normalisation": self.normalisation,
            "rendering": self.rendering,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`."""
        height, width = values["image_size"]
        value_range = values.get("value_range")
        return cls(
            (int(height), int(width)),
            tuple(float(v) for v in values["mean"]),
            tuple(float(v) for v in values["std"]),
            int(values["channels"]),
            value_range and (float(value_range[0]), float(value_range[1])),
            values.get("normalisation", "data"),
            values.get("rendering", ""),
        )


def normalise_each(
    images: Float[Array, "*b h w c"], visible: Bool[Array, "*b h w"] | None = None
) -> Float[Array, "*b h w c"]:
    """(x - m) / (RMS(x - m) + 0.1): m the mean of each channel of an image, the RMS
    over all its pixels and channels.

    A change of an image's brightness, contrast or tint then hardly changes the result.
    Both statistics are of the `visible` pixels alone, if given; values elsewhere follow
    the same formula.
    """
    if visible is None:
        share = jnp.float32(1 / math.prod(images.shape[-3:-1]))
        counted = lambda x: x * share  # noqa: E731
    else:
        shown = visible[..., None]
        share = 1 / jnp.maximum(shown.sum((-3, -2), keepdims=True), 1)
        counted = lambda x: jnp.where(shown, x, 0) * share  # noqa: E731
    centred = images - counted(images).sum((-3, -2), keepdims=True)
    power = counted(jnp.square(centred)).sum((-3, -2), keepdims=True)
    # The tiny number keeps the derivative of a flat image finite.
    rms = jnp.sqrt(power.mean(-1, keepdims=True) + 1e-12)
    return centred / (rms + FLAT)


def _in_range(
    images: np.ndarray, value_range: tuple[float, float] | None
) -> np.ndarray:
    """Convert images of more than 8 bits to bytes; leave others unchanged."""
    if (
        value_range is None
        or images.dtype == np.uint8
        or images.dtype.kind not in "iuf"
    ):
        return images
    low, high = value_range
    if images.dtype.kind == "f" and images.size and high > 2 and 0 < images.max() <= 1:
        raise UserError(
            f"float images reach {images.max():g}, but this encoder expects values "
            f"from {low:g} to {high:g}; scale them to that range, or pass uint8"
        )
    try:
        return to_bytes(images, 8 * images.dtype.itemsize, value_range)
    except NotAnImage as error:
        raise UserError(str(error)) from error


def _checked(images: np.ndarray) -> np.ndarray:
    if images.ndim != 4:
        raise UserError(f"images have shape {images.shape}; expected [N, H, W, C]")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise UserError(
            f"images are {images.dtype}; expected uint8, or floats in [0, 1]"
        )
    if images.size:
        low, high = float(images.min()), float(images.max())
        # Not `low < 0`: NaN must fail too.
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise UserError(
                f"float images range from {low:g} to {high:g}; expected [0, 1] "
                "(divide by 255, or pass uint8)"
            )
    return images.astype(np.float32, copy=False)


MOST_VALUES = 2**28
"""Most pixel values read; a larger set is represented by evenly spaced images."""
_CHUNK = 2**24


def channel_statistics(
    images: ImageSet,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of each channel, images scaled to [0, 1].

    mean = Σ v·n(v) / Σ n(v) over grey levels v, so the result depends neither on order
    nor on rounding. A constant channel gets the deviation 1/255, one grey level, to
    avoid dividing by zero. Sets of more than 2²⁸ values are sampled at even spacing
    (error below 10⁻⁴ of the range unless the order is adversarial).
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


Batch = np.ndarray | list[np.ndarray]

_EXPECTED = (
    "expected uint8, or float in [0, 1], as [N, H, W, C], one [H, W, C], or a list of "
    "[H, W, C]"
)


def image_batches(images: Any, batch_size: int) -> tuple[Iterator[Batch], int]:
    """(batches of at most `batch_size`, number of images), without copying.

    An empty input gives one empty batch. Raises UserError for anything but images.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1.")
    rows = _as_list(images) if isinstance(images, list | tuple) else _as_array(images)
    starts = range(0, max(1, len(rows)), batch_size)
    return (rows[start : start + batch_size] for start in starts), len(rows)


def _as_list(images: list[Any] | tuple[Any, ...]) -> list[np.ndarray]:
    rows = [_unmasked(image) for image in images]
    wrong = [f"{i}: {row.shape}" for i, row in enumerate(rows) if row.ndim != 3]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"a list of images with the shapes {', '.join(wrong[:5])}{more}; "
            f"{_EXPECTED} (add a channel axis to grey images: image[..., None])."
        )
    return rows


def _as_array(images: Any) -> np.ndarray:
    array = _unmasked(images)
    if array.ndim == 3:
        return array[None]
    if array.ndim != 4:
        raise UserError(f"images are {array.dtype} {array.shape}; {_EXPECTED}.")
    return array


def _unmasked(images: Any) -> np.ndarray:
    """A plain array; UserError if a mask marks some of its values as missing."""
    if np.ma.is_masked(images):
        raise UserError(
            f"{np.ma.count_masked(images)} values are masked; fill them first, e.g. "
            "images.filled(0)"
        )
    return np.asarray(images)


def prepare(
    batch: Batch, preprocessing: Preprocessing, *, resize: bool = True
) -> Num[np.ndarray, "b h w c"]:
    """One array with the trained channels and, unless `resize=False`, the trained size.

    Raises UserError that names what cannot be converted: channels, types, floats
    outside [0, 1] or NaN, different sizes without resizing.
    """
    if isinstance(batch, np.ndarray):
        return _fit(batch, preprocessing, resize)
    if not batch:
        empty = (0, *preprocessing.image_size, preprocessing.channels)
        return np.zeros(empty, np.uint8)
    sizes = sorted({image.shape[:2] for image in batch})
    if not resize and len(sizes) > 1:
        raise UserError(
            f"images of the sizes {', '.join(map(str, sizes))} in one list cannot be "
            "processed together with resize=False; pass one size at a time."
        )
    rows = [_fit(image[None], preprocessing, resize) for image in batch]
    if len({row.dtype for row in rows}) > 1:
        rows = [_as_float(row) for row in rows]
    return np.concatenate(rows)


def _fit(images: np.ndarray, preprocessing: Preprocessing, resize: bool) -> np.ndarray:
    if 0 in images.shape[1:]:
        raise UserError(f"images {images.shape} have no pixels; {_EXPECTED}.")
    if looks_channels_first(images.shape, preprocessing.channels):
        raise UserError(
            f"{transposed_hint(images.shape)}. If the images are grey and have no "
            "channel axis, add one: images[..., None]."
        )
    if images.ndim == 4 and images.shape[-1] not in (1, 3, preprocessing.channels):
        raise UserError(
            f"images of shape {images.shape}, as [N, H, W, C], have "
            f"{images.shape[-1]} channels; this encoder needs "
            f"{preprocessing.channels} (only grey and RGB are converted). If grey "
            "images have no channel axis, add one: images[..., None]; if channels "
            "come first, use images.transpose(0, 2, 3, 1)."
        )
    numbers = "f" if preprocessing.value_range is None else "iuf"
    if images.dtype != np.uint8 and images.dtype.kind not in numbers:
        raise UserError(f"images are {images.dtype}; {_EXPECTED}.")
    if images.dtype.kind == "f" and np.isnan(images).any():
        raise UserError(
            f"{np.isnan(images).any(axis=(1, 2, 3)).sum()} of {len(images)} images in "
            "a batch contain NaN; expected floats in [0, 1]."
        )
    if not resize:
        own = (int(images.shape[1]), int(images.shape[2]))
        preprocessing = dataclasses.replace(preprocessing, image_size=own)
    return preprocessing.fit(images)


def _as_float(images: np.ndarray) -> np.ndarray:
    scale = np.float32(255 if images.dtype == np.uint8 else 1)
    return images.astype(np.float32) / scale
