"""Images given as arrays: their names, types, ranges and shapes."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from afterimage.checkpoints.names import spelling
from afterimage.console import say_once
from afterimage.data.labels import Indexed, index_values, say_alike, task_labels
from afterimage.data.numbers import LABEL_NAMES, value_numbers
from afterimage.data.pixels import (
    NotAnImage,
    change_channels,
    looks_channels_first,
    range_of,
    spaced,
    to_bytes,
    transposed_hint,
)
from afterimage.data.sets import UNLABELLED, Range, Request, Splits, array_set
from afterimage.data.whole_photos import fitted, packed_shape, shown
from afterimage.errors import DataError
from afterimage.reading import NumberReading, ReadingOptions

_KEYS = {
    "train": [
        ("x_train", "y_train"),
        ("train_images", "train_labels"),  # MedMNIST's names
        ("images", "labels"),
    ],
    "validation": [
        ("x_val", "y_val"),
        ("x_valid", "y_valid"),
        ("val_images", "val_labels"),
    ],
    "test": [("x_test", "y_test"), ("test_images", "test_labels")],
}


def fit_arrays(images: np.ndarray, request: Request) -> np.ndarray:
    """[N, H, W, C] in the requested size and channels; copied only if they differ."""
    if request.channels is not None:
        images = change_channels(images, request.channels)
    size = request.sized(lambda: [images.shape[1:3]]).size
    if size is None or (images.shape[1:3] == size and not request.whole):
        return images
    shape = (*size, images.shape[3])
    shape = packed_shape(shape) if request.whole else shape
    out = np.empty((len(images), *shape), np.uint8)
    for row, image in zip(out, images, strict=True):
        row[:] = fitted(image, size, whole=request.whole)
    return out


def names_arrays(keys: Iterable[Any]) -> bool:
    """Whether a mapping with these keys is a mapping of arrays."""
    return bool({*keys} & {pair[0] for pairs in _KEYS.values() for pair in pairs})


def array_splits(given: Mapping[str, Any], source: str, request: Request) -> Splits:
    """The splits of `x_train, y_train[, x_val, y_val][, x_test, y_test]`.

    Or of `images[, labels]`, or of MedMNIST's `train_images, train_labels, …`. Further
    tasks have their labels in `y_train_NAME`, `y_test_NAME`, or `labels_NAME`; -1 or
    NaN means that an image has no label for that task. Labels that are numbers are [N]
    or [N, K], with NaN where unknown; `label_names` [K] names them.

    Images are [N, H, W] or [N, H, W, C], uint8 (or wider integers within 0..255), or
    floats in [0, 1]; with a `value_range`, any integers and floats.
    """
    arrays, channels, reading = dict(given), request.channels, request.reading
    found = {
        split: next((pair for pair in pairs if pair[0] in arrays), None)
        for split, pairs in _KEYS.items()
    }
    keys = {split: pair for split, pair in found.items() if pair}
    if "train" not in keys:
        raise DataError(
            f"{source} contains {', '.join(sorted(map(str, arrays))) or 'nothing'}; "
            "expected x_train (with y_train, x_test, y_test), train_images (with "
            "train_labels, test_images, test_labels) or images (with labels)"
        )
    _say_unread(arrays, keys, source)
    name = {split: f"{source} [{split}]" for split in keys}
    images = {
        split: _images(arrays.pop(pair[0]), channels, name[split])
        for split, pair in keys.items()
    }
    value_range = _resolved(request.value_range, images["train"], name["train"])
    pixels = {s: as_uint8(x, name[s], value_range) for s, x in images.items()}
    labels, classes, numbers = dict.fromkeys(keys), None, {}
    if request.numbers is not None:
        given = _number_arrays(arrays, keys, request.numbers)
        names = arrays.get(LABEL_NAMES)
        numbers = value_numbers(given, request.numbers, source, reading, names)
    else:
        labels, classes = index_values(
            {split: arrays.get(k[1]) for split, k in keys.items()}, source, reading
        )
    say_alike(classes, source)
    more = task_labels(
        {task: _task(task, arrays, keys, source, reading) for task in request.tasks}
    )
    shapes = {split: x.shape[1:] for split, x in pixels.items()}
    request = request.sized(lambda: [(h, w) for h, w, _ in shapes.values()])
    if len(set(shapes.values())) > 1 and None in (request.size, channels):
        raise DataError(
            f"{source}: the splits have different shapes, {shapes}; set image_size "
            "and channels to convert them to one"
        )
    sets = {
        split: array_set(
            fit_arrays(pixels[split], request),
            labels[split],
            classes,
            name[split],
            tasks=more.get(split, {}),
            value_range=value_range,
            numbers=numbers.get(split),
        )
        for split in keys
    }
    if request.packs:
        sets = {
            split: dataclasses.replace(made, images=shown(made.images, request))
            for split, made in sets.items()
        }
    return Splits(**sets)


def _say_unread(
    arrays: Mapping[str, np.ndarray],
    keys: Mapping[str, tuple[str, str]],
    source: str,
) -> None:
    """Print a note about arrays that are not read, e.g. a split under another name."""
    labels = [label for _, label in keys.values()]
    further = tuple(f"{label}_" for label in labels)  # of tasks not requested
    read = {name for pair in keys.values() for name in pair} | {LABEL_NAMES}
    rest = [n for n in sorted(arrays) if n not in read and not n.startswith(further)]
    if rest:
        shown = ", ".join(spelling(name) for name in rest[:8])
        say_once(f"{source}: arrays that are ignored: {shown}")


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


def _number_arrays(
    arrays: Mapping[str, np.ndarray],
    keys: Mapping[str, tuple[str, str]],
    wanted: NumberReading,
) -> dict[str, dict[str, np.ndarray] | np.ndarray | None]:
    """By split: the labels, or LABELS_NAME for each column."""
    if not wanted.columns:
        return {split: arrays.get(pair[1]) for split, pair in keys.items()}
    return {
        split: {
            name: arrays[f"{pair[1]}_{name}"]
            for name in wanted.columns
            if f"{pair[1]}_{name}" in arrays
        }
        for split, pair in keys.items()
    }


def _missing(values: np.ndarray | None) -> np.ndarray | None:
    """Replace NaN, which means no label, with -1."""
    if values is None or values.dtype.kind != "f":
        return values
    return np.where(np.isnan(values), UNLABELLED, values)


def _images(images: np.ndarray, channels: int | None, name: str) -> np.ndarray:
    """[N, H, W, C]; DataError for other shapes, and for bands without `channels`."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(
            f"{name}: images have shape {images.shape}; expected [N, H, W] or [N, H, "
            "W, C], without a 0"
        )
    if looks_channels_first(images.shape, channels):
        raise DataError(f"{name}: {transposed_hint(images.shape)}")
    bands = images.shape[3]
    if channels is None and bands not in (1, 3):
        raise DataError(
            f"{name}: images have {bands} bands, but grey has 1 and RGB 3. Set "
            f"channels={bands} (--channels {bands}) to use them unchanged. If "
            "channels come first, pass images.transpose(0, 2, 3, 1)"
        )
    return images


def _resolved(
    value_range: Range | Literal["auto"] | None, images: np.ndarray, name: str
) -> Range | None:
    if value_range != "auto":
        return value_range
    if images.dtype.kind not in "iuf" or images.dtype == np.uint8:
        raise DataError(
            f"{name}: value_range='auto' (--value-range auto) applies to integers of "
            f"more than 8 bits and to floats; these images are {images.dtype}. Leave "
            "it out"
        )
    return range_of([spaced(images, 2**24)], name)


def as_uint8(images: np.ndarray, name: str, value_range: Range | None) -> np.ndarray:
    """Images of any type as bytes; DataError for values outside their range."""
    if images.dtype == np.uint8:
        return images
    if images.dtype == bool:
        return images.astype(np.uint8) * 255
    if images.dtype.kind not in "iuf":
        raise DataError(f"{name}: images are {images.dtype}; expected uint8 or floats")
    if value_range is not None:
        return _each(images, name, value_range)
    if images.dtype.kind == "f" and np.isnan(images.min()):
        raise DataError(f"{name}: some values are NaN; replace them with numbers")
    low, high = images.min(), images.max()
    top = 1 if images.dtype.kind == "f" else 255
    if low < 0 or high > top:
        raise DataError(
            f"{name}: {images.dtype} images range from {low:g} to {high:g}; expected "
            "uint8 in 0..255 or floats in [0, 1]. Otherwise set the values of black "
            "and white, value_range=(LOW, HIGH), or 'auto' (--value-range LOW,HIGH "
            "or auto)"
        )
    if top == 255:
        return images.astype(np.uint8)
    return _each(images, name, None)


def _each(images: np.ndarray, name: str, value_range: Range | None) -> np.ndarray:
    """Convert to bytes one image at a time: wide numbers for all take much memory."""
    out = np.empty(images.shape, np.uint8)
    try:
        for row, image in zip(out, images, strict=True):
            row[:] = to_bytes(image, 8 * image.dtype.itemsize, value_range)
    except NotAnImage as error:
        raise DataError(f"{name}: {error}") from error
    return out
