"""Images as a user has them: arrays or lists, any size, checked, cut into batches."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Num

from afterimage.data import Preprocessing
from afterimage.data.pixels import looks_channels_first, transposed_hint
from afterimage.errors import UserError

Batch = np.ndarray | list[np.ndarray]

_EXPECTED = (
    "expected uint8, or float in [0, 1], as [N, H, W, C], one [H, W, C], or a list of "
    "[H, W, C]"
)


def image_batches(images: Any, batch_size: int) -> tuple[Iterator[Batch], int]:
    """(batches of at most `batch_size`, number of images); nothing is copied.

    No images at all are one batch of none. Raises UserError for what is no image.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}; it must be at least 1.")
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
            f"{_EXPECTED} (a grey image needs a channel axis: image[..., None])."
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
    """An array; UserError where a mask says that some of its numbers are none."""
    if np.ma.is_masked(images):
        raise UserError(
            f"{np.ma.count_masked(images)} values are masked; fill them first, e.g. "
            "images.filled(0)"
        )
    return np.asarray(images)


def prepare(
    batch: Batch, preprocessing: Preprocessing, *, resize: bool = True
) -> Num[np.ndarray, "b h w c"]:
    """One array of the trained channels and, unless `resize=False`, the trained size.

    Raises UserError naming what cannot become that: channels, types, floats outside
    [0, 1] or NaN, differing sizes where nothing is resized.
    """
    if isinstance(batch, np.ndarray):
        return _fit(batch, preprocessing, resize)
    if not batch:
        empty = (0, *preprocessing.image_size, preprocessing.channels)
        return np.zeros(empty, np.uint8)
    sizes = sorted({image.shape[:2] for image in batch})
    if not resize and len(sizes) > 1:
        raise UserError(
            f"images of the sizes {', '.join(map(str, sizes))} in one list cannot go "
            "through together with resize=False; pass one size at a time."
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
            f"{transposed_hint(images.shape)}. Grey images without a channel axis need "
            "one: images[..., None]."
        )
    if images.ndim == 4 and images.shape[-1] not in (1, 3, preprocessing.channels):
        raise UserError(
            f"images {images.shape} are read as [N, H, W, C] with {images.shape[-1]} "
            f"channels, and this encoder takes {preprocessing.channels} (grey and RGB "
            "turn into each other). Grey images without a channel axis need one: "
            "images[..., None]; channels first need images.transpose(0, 2, 3, 1)."
        )
    numbers = "f" if preprocessing.value_range is None else "iuf"
    if images.dtype != np.uint8 and images.dtype.kind not in numbers:
        raise UserError(f"images are {images.dtype}; {_EXPECTED}.")
    if images.dtype.kind == "f" and np.isnan(images).any():
        raise UserError(
            f"{np.isnan(images).any(axis=(1, 2, 3)).sum()} of {len(images)} images in "
            "a batch hold NaN; expected floats in [0, 1]."
        )
    if not resize:
        own = (int(images.shape[1]), int(images.shape[2]))
        preprocessing = dataclasses.replace(preprocessing, image_size=own)
    return preprocessing.fit(images)


def _as_float(images: np.ndarray) -> np.ndarray:
    scale = np.float32(255 if images.dtype == np.uint8 else 1)
    return images.astype(np.float32) / scale
