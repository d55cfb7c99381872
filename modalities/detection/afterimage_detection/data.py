"""Images and boxes: COCO or YOLO annotations -> squares of one size, padded boxes."""

import collections
import dataclasses
import hashlib
import math
import os
import pathlib
import posixpath
import tempfile
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float32, UInt8

from afterimage.checkpoints.files import read_bytes, reason
from afterimage.checkpoints.names import spelling
from afterimage.console import say_once, say_reading
from afterimage.data.decode import decode, read_header_of
from afterimage.data.layout import layout
from afterimage.data.pixels import NotAnImage, takes_bands
from afterimage.data.sets import Columns, with_held_out
from afterimage.data.sources.folder import Folder, OnDisk, walk
from afterimage.data.workers import (
    Decoder,
    allowance,
    budget,
    or_reason,
    read,
    windows,
)
from afterimage.errors import DataError, UserError, refuse
from afterimage.runtime import cache_dir
from afterimage_detection.config import DetectConfig

PADDING = -1
"""The class of a place without a box. A crowd of class k has the class -2 - k."""


class Annotations(NamedTuple):
    """What a COCO file or a folder of labels says."""

    names: Sequence[str]
    """The files of the images."""
    boxes: Sequence[np.ndarray]
    """(x1, y1, x2, y2, class) of each image's objects, as shares of its sides."""
    classes: tuple[str, ...]
    numbers: tuple[int, ...]
    """What the annotations call the classes."""
    sizes: Mapping[str, tuple[int, int]]
    """(height, width) by name, where it is stated."""


class Data(NamedTuple):
    """The sets of a run: `image` uint8 [n, s, s, c], `boxes` float32 [n, m, 4] (x1, y1,
    x2, y2 in pixels of the squares), `classes` int32 [n, m]."""

    sets: Mapping[str, Columns]
    """`train`, and `validation` and `test` if there are any."""
    classes: tuple[str, ...]
    numbers: tuple[int, ...]
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Letterbox(Decoder):
    """Bytes -> the whole image, scaled to fit into a square."""

    fill: tuple[int, ...] = ()

    def __call__(self, data: bytes) -> np.ndarray:
        image = decode(data, None, self.shape[2], self.value_range)
        return letterboxed(image, self.shape[0], self.fill)


def scaled_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The largest size of the same proportions that fits into a square."""
    factor = side / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def letterboxed(
    image: UInt8[np.ndarray, "h w c"], side: int, fill: Sequence[int]
) -> UInt8[np.ndarray, "s s c"]:
    """The image at `scaled_size`, at the top left of a square of one colour."""
    import cv2

    out = np.empty((side, side, image.shape[2]), np.uint8)
    out[:] = fill
    height, width = scaled_size(image.shape[0], image.shape[1], side)
    how = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR
    for i in range(0, image.shape[2], 4):  # OpenCV takes up to four channels
        part = np.ascontiguousarray(image[..., i : i + 4])
        part = cv2.resize(part, (width, height), interpolation=how)
        out[:height, :width, i : i + 4] = part.reshape(height, width, -1)
    return out


def open_boxes(config: DetectConfig, decoder: Letterbox) -> Data:
    """The images and boxes of a run.

    Raises DataError for files that are missing, damaged or not what they should be, and
    for boxes that do not fit their images.
    """
    files, found = _open(config, "data", "boxes", config.classes)
    parts = layout(found.names, config.data, config.split_folders)
    apart = config.test_data is not None
    if apart and "test" in parts:
        raise UserError(
            f"test_data={config.test_data}: {config.data} has test images already, in "
            "test/; leave this out, or name the folder train/ as data"
        )
    rows = with_held_out(
        {name: np.array(part) for name, (part, _) in parts.items()},
        {"test": 0.0 if apart else config.hold_out, "validation": config.validation},
        config.seed,
        np.take,
        source=f"data={config.data}",
    )
    sets = {
        name: _read(files, part, found, decoder, config.data)
        for name, part in rows.items()
    }
    if apart:
        # A COCO file names its classes itself.
        names = config.classes or (() if _is_coco(config.boxes) else found.classes)
        files, other = _open(config, "test_data", "test_boxes", names)
        other = _as_known(other, found, f"test_boxes={config.test_boxes}")
        every = np.arange(len(other.names))
        sets["test"] = _read(files, every, other, decoder, str(config.test_data))
    names = [part.ids for part in sets.values()]
    digest = hashlib.sha256(repr((names, found.classes)).encode())
    for part in sets.values():
        for array in part.arrays.values():
            digest.update(np.ascontiguousarray(array).data)
    return Data(sets, found.classes, found.numbers, digest.hexdigest())


def _open(
    config: DetectConfig, data: str, boxes: str, classes: tuple[str, ...]
) -> tuple[OnDisk, Annotations]:
    """The images and annotations that two settings name."""
    given, where = getattr(config, data), f"{boxes}={getattr(config, boxes)}"
    say_reading(given)
    place = os.path.expanduser(given.removeprefix("folder:"))
    if not os.path.isdir(place):
        raise DataError(f"{data}={given}: there is no such folder")
    notes = os.path.expanduser(getattr(config, boxes))
    if _is_coco(notes):
        found = _coco(notes, where, classes, outside=config.outside_images)
    else:
        found = _yolo(notes, place, classes)
    if not any(map(len, found.boxes)):
        raise DataError(f"{where}: no image has a box")
    return OnDisk(pathlib.Path(place), found.names), found


def _is_coco(boxes: str) -> bool:
    return not os.path.isdir(os.path.expanduser(boxes))


def _as_known(other: Annotations, known: Annotations, where: str) -> Annotations:
    """The same annotations, with the classes of others; DataError for further ones."""
    names = other.classes
    unknown = [f"{name!r}" for name in names if name not in known.classes]
    if unknown:
        raise DataError(
            f"{where}: no training image has the class {', '.join(unknown[:8])}; there "
            f"are: {', '.join(known.classes[:20])}"
        )
    to = np.array([known.classes.index(name) for name in names], float)
    moved = []
    for rows in other.boxes:
        kind = rows[:, 4].astype(int)
        crowd = kind < 0  # of class k: -2 - k
        new = to[np.where(crowd, -2 - kind, kind)]
        new = np.where(crowd, -2 - new, new)
        moved.append(np.concatenate([rows[:, :4], new[:, None]], 1))
    return other._replace(boxes=moved, classes=known.classes, numbers=known.numbers)


def _read(
    files: OnDisk,
    rows: np.ndarray,
    found: Annotations,
    decoder: Letterbox,
    source: str,
) -> Columns:
    """The images at these rows and their boxes, padded to equally many."""
    shape, most = (len(rows), *decoder.shape), max(1, *map(len, found.boxes))

    def one(row: int) -> tuple[np.ndarray, tuple[int, int]]:
        data = read(files, row)
        header = read_header_of(data)
        takes_bands(header.channels, header.samples, shape[3])
        size = header.height, header.width
        if (stated := found.sizes.get(files.names[row], size)) != size:
            raise NotAnImage(
                f"is displayed with {size[1]}x{size[0]} pixels, but the annotations "
                f"say {stated[1]}x{stated[0]}"
            )
        with budget.hold(header.cost + len(data)):
            return decoder(data), scaled_size(*size, shape[1])

    images = np.empty(shape, np.uint8)
    if math.prod(shape) > allowance() // 2:  # then on disk
        cache_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_dir()) as file:
            images = np.memmap(file, np.uint8, "w+", shape=shape)
    boxes = np.zeros((len(rows), most, 4), np.float32)
    classes = np.full((len(rows), most), PADDING, np.int32)
    problems, each = [], math.prod(shape[1:])
    every = windows(or_reason(one), rows.tolist(), "images", each)
    for n, (row, got) in enumerate(every):
        if isinstance(got, str):
            problems.append(f"{spelling(files.names[row])}: {got}")
            continue
        own = found.boxes[row]
        images[n], (height, width) = got
        boxes[n, : len(own)] = own[:, :4] * [width, height, width, height]
        classes[n, : len(own)] = own[:, 4]
    refuse(problems, source, "Repair these images, or leave them out")
    arrays = {"image": images, "boxes": boxes, "classes": classes}
    return Columns(source, arrays, [files.names[int(row)] for row in rows])


# The formats of annotations.


class _Image(msgspec.Struct):
    id: int | str
    file_name: str
    height: int
    width: int


class _Annotation(msgspec.Struct):
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: Literal[0, 1] | bool = 0


class _Category(msgspec.Struct):
    id: int
    name: str


class _Coco(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


def _coco(
    place: str, where: str, classes: Sequence[str], *, outside: bool
) -> Annotations:
    """The annotations of a COCO file."""
    if classes:
        raise UserError("classes: a COCO file names its categories; leave this out")
    try:
        data = read_bytes(place)
        found = msgspec.json.decode(data, type=_Coco)
    except OSError as error:
        raise DataError(f"{where} {reason(error)}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(
            f"{where} is no COCO file with images, categories and annotations that "
            f"have a bbox: {error}"
        ) from error
    names = [image.file_name for image in found.images]
    images = {image.id: row for row, image in enumerate(found.images)}
    kinds = {category.id: k for k, category in enumerate(found.categories)}
    refuse([*_coco_problems(found, images, kinds, outside)], where)
    rows = [images[one.image_id] for one in found.annotations]
    boxes = np.array([one.bbox for one in found.annotations]).reshape(-1, 4)
    sides = np.array([(i.width, i.height) for i in found.images])[rows].reshape(-1, 2)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    beyond = int((corners[:, 2:] > sides + 1).any(1).sum())
    if 2 * beyond > len(rows):
        raise DataError(
            f"{where}: {beyond:,} of {len(rows):,} boxes end outside of their images; "
            "expected [x, y, width, height] in pixels. Are these two corners?"
        )
    corners = np.clip(corners / np.tile(sides, 2), 0, 1)
    kept = (corners[:, 2:] > corners[:, :2]).all(1)
    if not kept.all():
        say_once(f"{where}: {(~kept).sum():,} boxes without pixels are left out")
    kind = [
        -2 - kinds[one.category_id] if one.iscrowd else kinds[one.category_id]
        for one in found.annotations
    ]
    every = np.concatenate([corners, np.reshape(kind, (-1, 1))], 1)[kept]
    order = np.argsort(np.array(rows, int)[kept], kind="stable")
    counts = np.bincount(np.array(rows, int)[kept], minlength=len(names))
    own = np.split(every[order], np.cumsum(counts)[:-1])
    sizes = {image.file_name: (image.height, image.width) for image in found.images}
    labels = tuple(category.name for category in found.categories)
    return Annotations(names, own, labels, tuple(kinds), sizes)


def _coco_problems(
    found: _Coco, images: Mapping, kinds: Mapping, allowed: bool
) -> list[str]:
    names = [image.file_name for image in found.images]
    listed = {
        "file_name": names,
        "id of images": [image.id for image in found.images],
        "id of categories": [category.id for category in found.categories],
        "name of categories": [category.name for category in found.categories],
    }
    wrong = []
    for what, values in listed.items():
        counts = collections.Counter(values)
        wrong += [f"{what}: {v} twice" for v, n in counts.items() if n > 1]
        wrong += [] if values else [f"{what}: there is none"]
    for name in names:
        outside = os.path.isabs(name) or ".." in name.split("/")
        if outside and not allowed:
            wrong.append(f"{name} is outside of data; --outside-images allows this")
    for image in found.images:
        if min(image.height, image.width) < 1:
            wrong.append(f"{image.file_name}: {image.width}x{image.height} pixels")
    for n, one in enumerate(found.annotations):
        if one.image_id not in images:
            wrong.append(f"annotation {n}: no image has the id {one.image_id}")
        if one.category_id not in kinds:
            wrong.append(f"annotation {n}: no category has the id {one.category_id}")
    return wrong


def _yolo(folder: str, place: str, classes: tuple[str, ...]) -> Annotations:
    """The annotations in a folder of labels."""
    root, names = pathlib.Path(folder), Folder(place).names
    listed = root / "classes.txt"
    if not classes and listed.is_file():
        classes = tuple(filter(None, map(str.strip, _lines(listed))))
    if not classes:
        raise UserError(f"classes: name them, or list them in {listed}")
    labels = {name[:-4] for name in walk(root) if name.endswith(".txt")} - {"classes"}
    stems = [posixpath.splitext(name)[0] for name in names]
    problems = [f"{stem}.txt has no image" for stem in sorted(labels - set(stems))]
    boxes = []
    for stem in stems:
        lines = _lines(root / f"{stem}.txt") if stem in labels else []
        rows = [_values(line, len(classes)) for line in lines if line.strip()]
        if None in rows:
            wrong = [line for line in lines if line.strip()][rows.index(None)]
            problems.append(f"{stem}.txt: {wrong.strip()[:60]}")
        boxes.append(np.array([row for row in rows if row]).reshape(-1, 5))
    refuse(
        problems,
        folder,
        "An image and its labels have the same path but for the ending. A line has a "
        f"class from 0 to {len(classes) - 1}, then the centre's x and y, width and "
        "height, as shares of the image's sides",
    )
    if without := len(set(stems) - labels):
        say_once(
            f"{without:,} of {len(names):,} images have no file of labels: no objects"
        )
    return Annotations(names, boxes, classes, tuple(range(len(classes))), {})


def _values(line: str, classes: int) -> tuple[float, ...] | None:
    """(x1, y1, x2, y2, class) of a line; None if it is no such line."""
    try:
        k, x, y, w, h = map(float, line.split())
    except ValueError:
        return None
    if k not in range(classes) or not (0 <= x <= 1 and 0 <= y <= 1):
        return None
    if not (0 < w <= 1 and 0 < h <= 1):
        return None
    low, high = (x - w / 2, y - h / 2), (x + w / 2, y + h / 2)
    return (*(max(v, 0.0) for v in low), *(min(v, 1.0) for v in high), k)


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return read_bytes(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{spelling(str(path))} {reason(error)}") from error


def restored(
    found: np.ndarray, size: tuple[int, int], side: int
) -> Float32[np.ndarray, "n 6"]:
    """Rows of `peaks` -> (x, y, w, h, class, score) in pixels of an image of this size,
    without what lies outside of it."""
    scaled, full = np.array(scaled_size(*size, side)), np.array(size)
    corners = found[:, :4] / np.tile(scaled[::-1], 2)
    corners = np.clip(corners, 0, 1) * np.tile(full[::-1], 2)
    low, high = corners[:, :2], corners[:, 2:]
    rows = np.concatenate([low, high - low, found[:, 4:]], 1)
    return rows[(rows[:, 2:4] > 0).all(1)].astype(np.float32)
