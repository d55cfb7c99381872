"""Data given as Python objects: arrays, mappings of arrays, sequences of records.

An array is used in place. A sequence has `len` and `[i]`; each record is a mapping with
"image" and optionally "label", "id" and the labels of tasks; a pair (image, label); or
just an image. An image is an array [H, W] or [H, W, C], a Pillow image, or the bytes of
an encoded file. Random-access data sets of Hugging Face, TFDS, Grain and PyTorch
therefore work unchanged.

Opening the data reads each record once, one at a time, for its label, size and image
digest. Up to 1 GiB of decoded images stay in memory; others are read again whenever
needed and compared with their digest. If labels have their own columns
(`datasets.Dataset`) and the images take more than 1 GiB, only 1,024 evenly spaced
records are read; the fingerprint then covers these, the length and all labels.
"""

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from afterimage.checkpoints.names import class_name
from afterimage.console import say_once
from afterimage.data.arrays import array_splits, as_uint8, names_arrays
from afterimage.data.decode import decode, from_pillow, read_header_of, some_values
from afterimage.data.labels import Indexed, index_values, say_alike, task_labels
from afterimage.data.layout import exact
from afterimage.data.numbers import value_numbers
from afterimage.data.pixels import (
    NotAnImage,
    change_channels,
    check_seen,
    looks_channels_first,
    range_of,
    spaced,
    transposed_hint,
)
from afterimage.data.sets import (
    BadImage,
    Images,
    ImageSet,
    Range,
    Request,
    Sizes,
    Splits,
    content_fingerprint,
)
from afterimage.data.whole_photos import fitted, shown
from afterimage.data.workers import allowance, windows
from afterimage.errors import DataError, UserError

_IN_MEMORY = 2**30
"""Maximum bytes of decoded images of one split kept in memory."""
_SAMPLE = 1024
"""Number of records sampled from a large split, or to find an automatic range."""
_TABLES = ("pandas", "polars", "pyarrow")
ACCEPTED = (
    "a spec or a path; an array [N, H, W] or [N, H, W, C]; a mapping of arrays "
    '{"x_train": …, "y_train": …, "x_test": …}, or of splits {"train": …, "test": …}; '
    "or a sequence of records with len and [i], such as a list, datasets.Dataset, "
    'tfds.data_source, grain.MapDataset or a map-style torch Dataset: {"image": …, '
    '"label": …}, (image, label) or an image each'
)


def _called(data: Any) -> str:
    """The name for an object that has none."""
    if _is_array(data):
        return "array"
    return "arrays" if isinstance(data, Mapping) else type(data).__name__


def open_object(data: Any, name: str | None, request: Request) -> Splits:
    """The splits of an object; UserError for an unsupported type.

    `name` identifies it in messages and reports; by default its type.
    """
    name = name or _called(data)
    if request.reading.split_folders and request.strict:
        raise UserError(
            f"{name} has no folders; pass the splits of an object as a mapping, "
            '{"train": …, "test": …}'
        )
    if _is_array(data):
        data = {"images": data}
    if not isinstance(data, Mapping):
        return _record_splits({"train": data}, name, request)
    if not names_arrays(data):
        splits = {str(key): exact(str(key)) for key in data}
        _check_splits(splits, name)
        data = {splits[str(key)]: data[key] for key in data if splits[str(key)]}
        if not all(map(_is_array, data.values())):
            return _record_splits(data, name, request)
        short = {"train": "x_train", "validation": "x_val", "test": "x_test"}
        data = {short[split]: images for split, images in data.items()}
    arrays = {
        str(key): _array(values, f"{name}, {key}") for key, values in data.items()
    }
    return array_splits(arrays, name, request)


def _check_splits(splits: Mapping[str, str | None], name: str) -> None:
    named = [split for split in splits.values() if split]
    if "train" not in named or len(set(named)) < len(named):
        raise UserError(
            f"data ({name}) has the keys {', '.join(splits) or '(none)'}; expected "
            "the splits train, validation and test, each once, or arrays named "
            "x_train, y_train, x_test, y_test, or images, labels"
        )
    rest = [key for key, split in splits.items() if not split]
    if rest:
        say_once(f"{name}: splits that are ignored: {', '.join(rest)}")


def _is_array(data: Any) -> bool:
    return all(hasattr(data, what) for what in ("shape", "dtype", "__array__"))


def _array(values: Any, name: str) -> np.ndarray:
    """As a NumPy array, without a copy if possible."""
    if np.ma.is_masked(values):
        raise DataError(
            f"{name}: {np.ma.count_masked(values)} values are masked; fill them "
            "first, e.g. images.filled(0)"
        )
    try:
        return values if isinstance(values, np.ndarray) else np.asarray(values)
    except Exception as error:  # ragged lists, tensors on a device or with a gradient
        raise DataError(
            f"{name}: {type(values).__name__} cannot be converted to a NumPy array "
            f"({error})"
        ) from error


def _refused(data: Any) -> UserError:
    root, kind = type(data).__module__.partition(".")[0], type(data).__qualname__
    if root in _TABLES:
        cure = (
            "save it as a table of image files, csv:PATH, or pass its records: "
            'data.to_dict("records")'
        )
    elif root == "tensorflow":
        cure = "pass tfds.data_source(…), or list(data.as_numpy_iterator())"
    elif hasattr(data, "__iter__"):
        cure = "it can only be read in order; pass list(data) if that fits in memory"
    else:
        cure = "convert it to one of these"
    return UserError(
        f"data is a {root}.{kind}; expected {ACCEPTED}. In this case: {cure}"
    )


@dataclasses.dataclass
class _Record:
    pixels: np.ndarray
    """uint8 [H, W, C], in the requested size and channels."""
    digest: bytes
    values: Mapping[str, Any]
    """The record's other values, with "label" and "id" under these names."""


class _Records:
    """One split: a sequence of records, read one at a time even with threads."""

    def __init__(self, data: Any, name: str, request: Request):
        kind = type(data)
        lacks = not (hasattr(kind, "__len__") and hasattr(kind, "__getitem__"))
        if lacks or isinstance(data, str | bytes | Mapping):
            raise _refused(data)
        if kind.__module__.partition(".")[0] in _TABLES:
            raise _refused(data)
        self.data, self.name, self.request = data, name, request
        self.value_range: Range | None = None
        try:
            self.length = len(data)
        except Exception as error:
            raise _refused(data) from error
        if not 0 < self.length < 2**31:
            most = "it is endless: remove repeat()" if self.length else "empty"
            raise DataError(f"{name} is {most}")
        info = getattr(data, "dataset_info", data)  # TFDS, or Hugging Face
        features: Any = getattr(info, "features", None)
        # TFDS uses its own class, which is not quite a mapping.
        self.features = dict(features.items()) if hasattr(features, "items") else {}
        self.image = self._feature("Image", "image")
        self.label = self._feature("ClassLabel", "label")
        self._lock = threading.Lock()

    def _feature(self, kind: str, usual: str) -> str:
        """The key `usual` if it exists, otherwise the first feature of this kind."""
        found = [k for k, f in self.features.items() if type(f).__name__ == kind]
        return usual if usual in self.features or not found else found[0]

    def class_names(self, key: str) -> Sequence[str] | None:
        """The class names for the numbers under `key`, if known."""
        key = self.label if key == "label" else key
        names = getattr(self.features.get(key), "names", None)
        if names is None and key == "label":
            names = getattr(self.data, "classes", None)  # as in torchvision
        if isinstance(names, Sequence) and not isinstance(names, str):
            return [class_name(str(name)) for name in names]
        return None

    def column(self, key: str) -> list[Any] | None:
        """A column stored separately from the images, e.g. in `datasets.Dataset`."""
        key = self.label if key == "label" else key
        if key in (getattr(self.data, "column_names", None) or ()):
            return list(self.data[key])
        return None

    def numbers(self, row: int) -> np.ndarray:
        """The image's unscaled values of any type, for an automatic range."""
        with self._lock:
            image, _ = self._take(row)
            if isinstance(image, bytes):
                return some_values(image)
            return _numbers(image, self.request.channels)

    def extent(self, row: int) -> tuple[int, int] | None:
        """(height, width) of a record's image; None if it cannot be read."""
        try:
            with self._lock:
                image, _ = self._take(row)
                if isinstance(image, bytes):
                    header = read_header_of(image)
                    return header.height, header.width
                height, width, _ = _numbers(image, self.request.channels).shape
                return height, width
        except (NotAnImage, UserError):
            return None

    def read(self, row: int) -> _Record:
        """Read a record; DataError that names it if it does not fit the request."""
        try:
            with self._lock:
                image, values = self._take(row)
                if isinstance(image, bytes):
                    pixels = self._decode(image)
                else:
                    numbers = _numbers(image, self.request.channels)
                    pixels = self._fit(numbers)
        except (NotAnImage, UserError) as error:
            raise DataError(f"{self.name}, record {row}: {error}") from error
        return _Record(pixels, hashlib.sha256(pixels.data).digest(), values)

    def _take(self, row: int) -> tuple[Any, Mapping[str, Any]]:
        try:
            record = self.data[row]
        except Exception as error:  # whatever a third-party data set raises
            said = f"{type(error).__name__}: {error}"
            raise NotAnImage(f"cannot be read ({said})") from error
        if isinstance(record, Mapping):
            if self.image not in record:
                raise NotAnImage(
                    f"has no {self.image!r}; it has {', '.join(map(str, record))}"
                )
            values = {**record, "label": record.get(self.label)}
            image = values.pop(self.image)
        elif isinstance(record, tuple) and len(record) == 2:
            image, values = record[0], {"label": record[1]}
        else:
            image, values = record, {}
        if isinstance(image, Mapping) and image.get("bytes"):
            image = image["bytes"]  # Hugging Face, not decoded
        return image, values

    def _decode(self, data: bytes) -> np.ndarray:
        channels = self.request.channels
        if channels is None:
            header = read_header_of(data)
            check_seen(header)
            channels = header.channels
        size, whole = self.request.size, self.request.whole
        return decode(data, size, channels, self.value_range, whole=whole)

    def _fit(self, numbers: np.ndarray) -> np.ndarray:
        channels, size = self.request.channels, self.request.size
        if looks_channels_first((1, *numbers.shape), channels):
            hint = transposed_hint(numbers.shape).replace("(0, 2, 3, 1)", "(1, 2, 0)")
            raise NotAnImage(hint.replace("[N, H, W, C]", "[H, W, C]"))
        bands = numbers.shape[2]
        if channels is None and bands not in (1, 3):
            raise NotAnImage(
                f"{bands} bands, but grey has 1 and RGB 3; set channels={bands} to "
                "use them unchanged"
            )
        pixels = as_uint8(numbers[None], "its values", self.value_range)[0]
        if channels is not None:
            pixels = change_channels(pixels, channels)
        return fitted(pixels, size, whole=self.request.whole)

    @functools.cached_property
    def first(self) -> _Record:
        """The reference record, read twice to detect random transformations."""
        row, record = 0, None
        while record is None:
            try:
                record = self.read(row)
            except DataError as error:
                if self.request.on_bad_image == "fail" or row + 1 == self.length:
                    raise DataError(f"{error}. Expected {ACCEPTED}") from error
                row += 1
        if self.read(row).digest != record.digest:
            raise DataError(
                f"{self.name}, record {row}: two reads give different images, so a "
                "run could not be resumed. Remove random transformations (images are "
                "augmented on the device)"
            )
        return record

    def check_shape(self, record: _Record, row: int) -> None:
        """Raise DataError if an image's shape differs from the first one's."""
        shape, first = record.pixels.shape, self.first.pixels.shape
        if shape != first:
            raise DataError(
                f"{self.name}: images have different shapes, {first} and {shape} "
                f"(record {row}); set image_size and channels to convert them to one"
            )


def _numbers(image: Any, channels: int | None) -> np.ndarray:
    """[H, W, C] of any type."""
    if isinstance(image, str):
        raise NotAnImage(
            "is a string; paths are not opened. List them in a table, csv:PATH, or "
            "pass PIL.Image.open(path)"
        )
    pillow = hasattr(image, "getexif")
    values = from_pillow(image, channels) if pillow else _array(image, "it")
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or 0 in values.shape or values.dtype == object:
        raise NotAnImage(
            f"is {type(image).__name__} {values.dtype} {values.shape}; expected an "
            "image [H, W] or [H, W, C]"
        )
    return values


class _Lazy:
    """Reads records on demand."""

    def __init__(self, records: _Records, rows: np.ndarray, digests: dict[int, bytes]):
        self._records, self._rows, self._digests = records, rows, digests

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._rows), *self._records.first.pixels.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any, /) -> np.ndarray:
        rows = self._rows[index]
        out = np.empty((*rows.shape, *self.shape[1:]), np.uint8)
        for target, row in zip(out.reshape(-1, *self.shape[1:]), rows.ravel().tolist()):
            record = self._records.read(row)
            self._records.check_shape(record, row)
            if self._digests.get(row, record.digest) != record.digest:
                raise DataError(
                    f"{self._records.name}, record {row} has changed since the run "
                    "began. Records must not change"
                )
            target[:] = record.pixels
        return out


@dataclasses.dataclass
class _Read:
    """The result of one pass over a split."""

    images: Images
    digests: Sequence[bytes]
    values: Mapping[str, list[Any]]
    ids: list[str]
    skipped: tuple[BadImage, ...] = ()


def _read(records: _Records, keys: Sequence[str]) -> _Read:
    """Read every record once, into memory if the images fit."""
    count, shape = records.length, records.first.pixels.shape
    each = records.first.pixels.nbytes
    fits = count * each <= min(_IN_MEMORY, allowance() // 4)
    kept = np.empty((count, *shape), np.uint8) if fits else None

    def read(row: int) -> _Record | DataError:
        try:
            record = records.read(row)
            records.check_shape(record, row)
            return record
        except DataError as error:
            return error

    digests: dict[int, bytes] = {}
    values: dict[str, list[Any]] = {key: [] for key in (*keys, "id")}
    skipped = []
    for row, found in windows(read, range(count), f"reading {records.name}", each):
        if isinstance(found, DataError):
            if records.request.on_bad_image == "fail":
                raise found
            skipped.append(BadImage(f"record {row}", str(found)))
            continue
        if kept is not None:
            kept[len(digests)] = found.pixels
        digests[row] = found.digest
        for key in values:
            values[key].append(found.values.get(key))
    rows = np.array(list(digests), np.int64)
    images = _Lazy(records, rows, digests) if kept is None else kept[: len(rows)]
    ids = [_id(i, row) for i, row in zip(values.pop("id"), rows.tolist(), strict=True)]
    return _Read(images, list(digests.values()), values, ids, tuple(skipped))


def _sampled(records: _Records, keys: Sequence[str]) -> _Read | None:
    """Read a sample of a large split with labels in columns; None for other splits."""
    large = records.length * records.first.pixels.nbytes > _IN_MEMORY
    if not large or records.request.on_bad_image == "skip":
        return None
    columns = {key: records.column(key) for key in (*keys, "id")}
    if not getattr(records.data, "column_names", None):
        return None
    rows = np.arange(0, records.length, -(-records.length // _SAMPLE))
    images = _Lazy(records, np.arange(records.length), {})
    found = windows(records.read, rows.tolist(), f"reading {records.name}")
    digests = {row: record.digest for row, record in found}
    images = _Lazy(records, np.arange(records.length), digests)
    empty = [None] * records.length
    ids = [_id(i, row) for row, i in enumerate(columns.pop("id") or empty)]
    values = {key: column or empty for key, column in columns.items()}
    return _Read(images, list(digests.values()), values, ids)


def _id(given: Any, row: int) -> str:
    if given is None:
        return str(row)
    return given.decode(errors="replace") if isinstance(given, bytes) else str(given)


def _sizes(records: "_Records") -> Sizes:
    """The sizes of evenly spaced records."""
    rows = range(0, records.length, -(-records.length // _SAMPLE))
    return [size for size in map(records.extent, rows) if size is not None]


def _record_splits(data: Mapping[str, Any], name: str, request: Request) -> Splits:
    request = request.sized(lambda: _sizes(_Records(data["train"], name, request)))
    splits = {s: _Records(d, f"{name} [{s}]", request) for s, d in data.items()}
    value_range = request.value_range
    if value_range == "auto":
        value_range = _measured(splits["train"])
    for records in splits.values():
        records.value_range = value_range
    shapes = {split: r.first.pixels.shape for split, r in splits.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(
            f"{name}: the splits have different shapes, {shapes}; set image_size and "
            "channels to convert them to one"
        )
    wanted = request.numbers
    keys = ("label", *request.tasks, *(wanted.columns if wanted else ()))
    read = {s: _sampled(r, keys) or _read(r, keys) for s, r in splits.items()}
    labels, classes, numbers = dict.fromkeys(read), None, {}
    if wanted is None:
        labels, classes = _indexed("label", splits, read, name)
    else:
        given = {s: _given(part, wanted.columns) for s, part in read.items()}
        numbers = value_numbers(given, wanted, name, request.reading)
    say_alike(classes, name)
    tasks = {task: _indexed(task, splits, read, name) for task in request.tasks}
    more = task_labels(tasks)
    sets = {}
    for split, part in read.items():
        own = more.get(split, {})
        sets[split] = ImageSet(
            images=shown(part.images, request),
            labels=labels[split],
            ids=part.ids,
            class_names=classes,
            name=splits[split].name,
            fingerprint=content_fingerprint(
                part.digests,
                labels[split],
                part.ids,
                part.images.shape,
                own,
                numbers.get(split),
            ),
            tasks=own,
            value_range=value_range,
            skipped=part.skipped,
            numbers=numbers.get(split),
        )
    return Splits(**sets)


def _given(part: _Read, columns: Sequence[str]) -> dict[str, list[Any]] | list[Any]:
    """The records' labels, or by column, for `value_numbers`."""
    if not columns:
        return part.values["label"]
    every = {name: part.values[name] for name in columns}
    return {k: v for k, v in every.items() if any(one is not None for one in v)}


def _measured(records: _Records) -> Range:
    rows = range(0, records.length, -(-records.length // _SAMPLE))
    parts = [values for values in map(records.numbers, rows) if values.size]
    if not any(values.dtype != np.uint8 for values in parts):
        raise DataError(
            f"{records.name}: value_range='auto' (--value-range auto) applies to "
            "images of more than 8 bits, but all training images have 8. Leave it out"
        )
    wide = [values for values in parts if values.dtype != np.uint8]
    return range_of([spaced(values.reshape(-1, 1)) for values in wide], records.name)


def _indexed(
    key: str, splits: Mapping[str, _Records], read: Mapping[str, _Read], name: str
) -> Indexed:
    """(class indices by split, class names) of the labels under `key`."""
    arrays = {}
    for split, part in read.items():
        where = f"{splits[split].name}, {key}"
        names = splits[split].class_names(key)
        values = [_label(value, names, where) for value in part.values[key]]
        if all(value is None for value in values):
            arrays[split] = None
        elif any(isinstance(value, str) for value in values):
            arrays[split] = np.array(["" if v is None else str(v) for v in values])
        else:
            arrays[split] = np.array([-1 if v is None else v for v in values])
    source = name if key == "label" else f"{name}, task {key}"
    return index_values(arrays, source, next(iter(splits.values())).request.reading)


def _label(value: Any, names: Sequence[str] | None, where: str) -> Any:
    """A string or a number; None if there is no label."""
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    if value is None or isinstance(value, str):
        return value
    number = _array(value, where)
    if number.size != 1 or number.dtype.kind not in "biuf":
        raise DataError(
            f"{where}: {str(value)[:60]} of shape {number.shape}; expected one number "
            "or string per image (convert one-hot rows with label.argmax())"
        )
    number = number.item()
    if number != number or (names and number == -1):
        return None
    if names and not (number == int(number) and 0 <= number < len(names)):
        raise DataError(
            f"{where}: {number}, but there are {len(names)} classes (0 to "
            f"{len(names) - 1})"
        )
    return names[int(number)] if names else number
