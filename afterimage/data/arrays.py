"""Data that is already arrays: `npz:PATH` and `synthetic:HxWxC`."""

import math
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from afterimage.checkpoints.names import spelling
from afterimage.data.header import NotAnImage
from afterimage.data.labels import Indexed, index_values, say_alike, task_labels
from afterimage.data.npz import check_sizes
from afterimage.data.resize import (
    change_channels,
    cover_and_crop,
    looks_channels_first,
    transposed_hint,
)
from afterimage.data.samples import Range, range_of, spaced, to_bytes
from afterimage.data.sets import UNLABELLED, ImageSet, Splits, array_set
from afterimage.errors import DataError, UserError
from afterimage.notes import say_once
from afterimage.reading import ReadingOptions

_TRAIN, _TEST = 1024, 256
"""Synthetic images in each split."""
_CLASSES = 4
_MOST_BYTES = 2**31
"""The most memory that synthetic images may take: all are made at once."""
_KEYS = {
    "train": [
        ("x_train", "y_train"),
        ("train_images", "train_labels"),  # as MedMNIST's files have them
        ("images", "labels"),
    ],
    "validation": [
        ("x_val", "y_val"),
        ("x_valid", "y_valid"),
        ("val_images", "val_labels"),
    ],
    "test": [("x_test", "y_test"), ("test_images", "test_labels")],
}


def fit_arrays(
    images: np.ndarray, image_size: int | None, channels: int | None
) -> np.ndarray:
    """[N, H, W, C] in the asked size (square) and channels; as it is where None."""
    if channels is not None:
        images = change_channels(images, channels)
    if image_size is None or images.shape[1:3] == (image_size, image_size):
        return images
    out = np.empty((len(images), image_size, image_size, images.shape[3]), np.uint8)
    for row, image in zip(out, images, strict=True):
        row[:] = cover_and_crop(image, (image_size, image_size))
    return out


def open_npz(
    path: str,
    *,
    image_size: int | None,
    channels: int | None,
    value_range: Range | Literal["auto"] | None = None,
    reading: ReadingOptions,
    tasks: Sequence[str] = (),
    **_: Any,
) -> Splits:
    """`x_train, y_train[, x_val, y_val][, x_test, y_test]`, or `images[, labels]`.

    MedMNIST's `train_images, train_labels, val_images, …` are read as well.

    Labels of further `tasks` stand beside them as `y_train_NAME`, `y_test_NAME`, or
    `labels_NAME`; -1 or NaN is an image without a label of that task.

    Images are [N, H, W] or [N, H, W, C], uint8 (or wider integers within 0..255), or
    floats in [0, 1]; with a `value_range`, any integers and floats.
    """
    arrays, source = _load(path), f"npz:{spelling(path)}"
    found = {
        split: next((pair for pair in pairs if pair[0] in arrays), None)
        for split, pairs in _KEYS.items()
    }
    keys = {split: pair for split, pair in found.items() if pair}
    if "train" not in keys:
        raise DataError(
            f"{source} holds {', '.join(sorted(arrays)) or 'nothing'}; expected "
            "x_train (with y_train, x_test, y_test), train_images (with train_labels, "
            "test_images, test_labels) or images (with labels)"
        )
    _say_unread(arrays, keys, source)
    name = {split: f"{source} [{split}]" for split in keys}
    given = {
        split: _images(arrays.pop(pair[0]), channels, name[split])
        for split, pair in keys.items()
    }
    value_range = _resolved(value_range, given["train"], name["train"])
    pixels = {s: _pixels(x, name[s], value_range) for s, x in given.items()}
    labels, classes = index_values(
        {split: arrays.get(k[1]) for split, k in keys.items()}, source, reading
    )
    say_alike(classes, source)
    more = task_labels(
        {task: _task(task, arrays, keys, source, reading) for task in tasks}
    )
    shapes = {split: x.shape[1:] for split, x in pixels.items()}
    if len(set(shapes.values())) > 1 and (image_size is None or channels is None):
        raise DataError(
            f"{source}: the splits differ in shape, {shapes}; give image_size and "
            "channels to bring them together"
        )
    sets = {
        split: array_set(
            fit_arrays(pixels[split], image_size, channels),
            labels[split],
            classes,
            name[split],
            tasks=more.get(split, {}),
            value_range=value_range,
        )
        for split in keys
    }
    return Splits(**sets)


def _say_unread(
    arrays: Mapping[str, np.ndarray],
    keys: Mapping[str, tuple[str, str]],
    source: str,
) -> None:
    """A note of arrays that are not read: a split under another name, say."""
    labels = [label for _, label in keys.values()]
    further = tuple(f"{label}_" for label in labels)  # of tasks not asked for
    read = {name for pair in keys.values() for name in pair}
    rest = [n for n in sorted(arrays) if n not in read and not n.startswith(further)]
    if rest:
        shown = ", ".join(spelling(name) for name in rest[:8])
        say_once(f"{source}: arrays that are not read: {shown}")


def _task(
    name: str,
    arrays: dict[str, np.ndarray],
    keys: dict[str, tuple[str, str]],
    source: str,
    reading: ReadingOptions,
) -> Indexed:
    """(labels by split, class names) of one task, from the arrays LABELS_NAME."""
    given = {split: arrays.get(f"{pair[1]}_{name}") for split, pair in keys.items()}
    return index_values(
        {split: _missing(array) for split, array in given.items()},
        f"{source}, task {name}",
        reading,
    )


def _missing(values: np.ndarray | None) -> np.ndarray | None:
    """NaN, which stands for no label, as -1."""
    if values is None or values.dtype.kind != "f":
        return values
    return np.where(np.isnan(values), UNLABELLED, values)


def _load(path: str) -> dict[str, np.ndarray]:
    where, shown = os.path.expanduser(path), spelling(path)
    if not os.path.isfile(where):
        there = "it is not a regular file" if os.path.exists(where) else "no such file"
        raise DataError(f"npz:{shown}: {there}")
    try:
        check_sizes(where)
        if not zipfile.is_zipfile(where):
            raise ValueError("it is no zip archive")
        with np.load(where, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise DataError(
            f"npz:{shown} cannot be read ({error}); expected an archive written by "
            "numpy.savez, without Python objects"
        ) from error


def _images(images: np.ndarray, channels: int | None, name: str) -> np.ndarray:
    """[N, H, W, C]; DataError for other shapes, and for bands without `channels`."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(
            f"{name}: images have shape {images.shape}; expected [N, H, W] or "
            "[N, H, W, C], none of them 0"
        )
    if looks_channels_first(images.shape, channels):
        raise DataError(f"{name}: {transposed_hint(images.shape)}")
    bands = images.shape[3]
    if channels is None and bands not in (1, 3):
        raise DataError(
            f"{name}: images have {bands} bands, neither grey nor RGB; "
            f"channels={bands} (--channels {bands}) reads them as they are. If the "
            "channels come first, give images.transpose(0, 2, 3, 1)"
        )
    return images


def _resolved(
    value_range: Range | Literal["auto"] | None, images: np.ndarray, name: str
) -> Range | None:
    if value_range != "auto":
        return value_range
    if images.dtype.kind not in "iuf" or images.dtype == np.uint8:
        raise DataError(
            f"{name}: value_range='auto' (--value-range auto) is for integers of more "
            f"than 8 bits and for floats; these are {images.dtype}"
        )
    return range_of([spaced(images, 2**24)], name)


def _pixels(images: np.ndarray, name: str, value_range: Range | None) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    if images.dtype == bool:
        return images.astype(np.uint8) * 255
    if images.dtype.kind not in "iuf":
        raise DataError(f"{name}: {images.dtype} images; expected uint8 or floats")
    if value_range is not None:
        return _each(images, name, value_range)
    if images.dtype.kind == "f" and np.isnan(images.min()):
        raise DataError(f"{name}: some values are no numbers (NaN)")
    low, high = images.min(), images.max()
    top = 1 if images.dtype.kind == "f" else 255
    if low < 0 or high > top:
        raise DataError(
            f"{name}: {images.dtype} images range from {low:g} to {high:g}; expected "
            "uint8 in 0..255 or floats in [0, 1]; or set the values of black and "
            "white, value_range=(LOW, HIGH) or 'auto' (--value-range LOW,HIGH or auto)"
        )
    if top == 255:
        return images.astype(np.uint8)
    return _each(images, name, None)


def _each(images: np.ndarray, name: str, value_range: Range | None) -> np.ndarray:
    """As bytes, one by one: wider numbers of all would be much memory."""
    out = np.empty(images.shape, np.uint8)
    try:
        for row, image in zip(out, images, strict=True):
            row[:] = to_bytes(image, 8 * image.dtype.itemsize, value_range)
    except NotAnImage as error:
        raise DataError(f"{name}: {error}") from error
    return out


def open_synthetic(
    size: str, *, image_size: int | None, channels: int | None, **_: Any
) -> Splits:
    """Gratings with noise, 1,024 to train and 256 to test; 4 classes of orientation.

    The images depend on the size alone, so every run sees the same.
    """
    match = re.fullmatch(r"0*([0-9]+)x0*([0-9]+)x0*([0-9]+)", size)
    if not match or "0" in match.groups():
        raise UserError(
            f"synthetic:{size} is not a size; expected synthetic:HxWxC, for example "
            "synthetic:32x32x3"
        )
    if max(map(len, match.groups())) > 6 or (
        math.prod(map(int, match.groups())) * (_TRAIN + _TEST) > _MOST_BYTES
    ):
        raise UserError(
            f"synthetic:{size[:40]} does not fit into memory: {_TRAIN + _TEST:,} "
            f"images may take {_MOST_BYTES:,} bytes in all, e.g. synthetic:512x512x3"
        )
    height, width, depth = map(int, match.groups())
    names = tuple(f"{180 * k // _CLASSES} degrees" for k in range(_CLASSES))

    def split(name: str, count: int, seed: int) -> ImageSet:
        labels = np.arange(count, dtype=np.int32) % _CLASSES
        images = _gratings(labels, (height, width, depth), seed)
        images = fit_arrays(images, image_size, channels)
        return array_set(images, labels, names, f"synthetic:{size} [{name}]")

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
