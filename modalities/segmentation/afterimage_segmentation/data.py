"""Images and their masks: pairs of files -> uint8 images and classes of one size."""

import dataclasses
import hashlib
import io
import os
import pathlib
import posixpath
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32, UInt8

from afterimage.checkpoints.names import spelling
from afterimage.console import say_reading
from afterimage.data import ImageSet, open_data
from afterimage.data.decode import read_header
from afterimage.data.pixels import NotAnImage, check_extent, cover_box
from afterimage.data.sets import Empty, Range, with_held_out
from afterimage.data.sources import spec_of
from afterimage.data.sources.folder import Folder, OnDisk
from afterimage.data.workers import opened, or_reason, read, windows
from afterimage.errors import DataError, UserError, refuse
from afterimage.storage.urls import is_remote
from afterimage_segmentation.config import SegmentConfig, parse_value

IGNORED = 255
"""The class of pixels that do not count."""
MOST_CLASSES = 254
_MASK = "mask"
"""The column of a table that names the masks."""
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class Classes:
    """What the values in masks mean."""

    names: tuple[str, ...]
    values: tuple[int, ...]
    """The value of each class: a number or, of a colour, as in `parse_value`."""
    colours: tuple[tuple[int, int, int], ...]
    """How each class is shown."""
    coloured: bool
    """Whether values are colours."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Images and the class of every pixel; the `Rows` of a segmentation run."""

    images: ImageSet
    truth: UInt8[np.ndarray, "n h w"]
    """The classes; `IGNORED` where it is unknown."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def name(self) -> str:
        return self.images.name

    @property
    def ids(self) -> Sequence[str]:
        return self.images.ids

    @property
    def in_memory(self) -> bool:
        return self.images.in_memory

    @property
    def row_bytes(self) -> int:
        """Bytes of an image and its classes."""
        return self.images.row_bytes + self.truth[0].nbytes

    def inputs(
        self, rows: np.ndarray, empty: Empty | None = None
    ) -> dict[str, np.ndarray]:
        """{"image": uint8 [b, h, w, c], "truth": uint8 [b, h, w]}.

        Not `mask`: batches of an evaluation have one, of the rows that count.
        """
        return self.images.inputs(rows, empty) | {"truth": self.truth[rows]}

    def targets(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """None: the classes are inputs, so that they are scored on the device."""
        return {}

    def subset(self, rows: np.ndarray) -> "Pairs":
        """The pairs at these positions."""
        return Pairs(self.images.subset(rows), self.truth[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """The sets of a run, and its classes."""

    sets: Mapping[str, Pairs]
    """`train`, and `validation` and `test` if there are any."""
    classes: Classes
    fingerprint: str


def open_pairs(
    config: SegmentConfig, side: int | None, channels: int, value_range: Range | None
) -> Data:
    """The images and masks of a run, at `side` pixels, or at their own common size.

    Raises DataError for images without masks and the reverse, sizes that differ, files
    that are not what their names say, and values that are no class.
    """
    say_reading(config.images)
    kind, root = _place(config)
    splits = open_data(
        config.images,
        image_size=side,
        channels=channels,
        value_range=value_range,
        tasks=(_MASK,) if kind == "csv" else (),
        reading=config,
    )
    parts = {n: s for n in _SPLITS if (s := getattr(splits, n)) is not None}
    names = [name for part in parts.values() for name in part.ids]
    if kind == "csv":
        masks = OnDisk(root, _of_column(names, list(parts.values()), config))
    else:
        masks = _of_folder(config, names)
    size = splits.train.shape[:2]
    codes, values, palette = _read_masks(OnDisk(root, names), masks, size)
    given = len(names) - len(parts.get("test", ()))
    classes, of = _classes(config, values, np.unique(codes[:given]), palette)
    _check_known(codes, values, of, masks.names, classes)
    truth, pairs, start = np.array(of, np.uint8)[codes], {}, 0
    for name, part in parts.items():
        plain = dataclasses.replace(part, labels=None, class_names=None, tasks={})
        pairs[name] = Pairs(plain, truth[start : start + len(part)])
        start += len(part)
    marks = [part.images.fingerprint for part in pairs.values()]
    mark = hashlib.sha256(repr([marks, classes]).encode() + truth.tobytes())
    shares = {"test": config.hold_out, "validation": config.validation}
    sets = with_held_out(
        pairs, shares, config.seed, Pairs.subset, source=f"images={config.images}"
    )
    return Data(sets, classes, mark.hexdigest())


_SPLITS = ("train", "validation", "test")  # the test's masks come last


def _place(config: SegmentConfig) -> tuple[str, pathlib.Path]:
    """("folder" or "csv", the folder that names of images are relative to)."""
    kind, _, place = spec_of(config.images).partition(":")
    if kind not in ("folder", "csv") or is_remote(place):
        raise UserError(f"images={config.images}: give a folder or a table, csv:PATH")
    if kind == "csv" and config.masks is not None:
        raise UserError(
            f"masks={config.masks}: a table names its masks in the column {_MASK}; "
            "leave --masks out"
        )
    if kind == "folder" and config.masks is None:
        raise UserError("masks: give the folder of the masks, or a table as images")
    path = pathlib.Path(place).expanduser()
    return kind, path.parent if kind == "csv" else path


# Which mask belongs to an image.


def _of_folder(config: SegmentConfig, names: Sequence[str]) -> OnDisk:
    """The masks of these images, in their order: the same path but for the ending."""
    masks = Folder(str(config.masks).removeprefix("folder:"))
    images, found = by_stem(names, config.images), by_stem(masks.names, "masks")
    problems = [f"{images[stem]} has no mask" for stem in images if stem not in found]
    problems += [
        f"the mask {spelling(found[stem])} has no image"
        for stem in found
        if stem not in images and not config.split_folders  # which may leave some out
    ]
    cure = "An image and its mask have the same path but for the ending: a.jpg, a.png"
    refuse(problems, config.images, cure)
    masks.names = [found[stem] for stem in images]
    return masks


def by_stem(names: Sequence[str], where: str) -> dict[str, str]:
    """{path without the ending: path}; DataError if two are the same."""
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(posixpath.splitext(name)[0], name)
        if other != name:
            raise DataError(
                f"{where}: {spelling(other)} and {spelling(name)} differ only in their "
                "ending, so both would have the same mask; rename one"
            )
    return found


def _of_column(
    images: Sequence[str], parts: Sequence[ImageSet], config: SegmentConfig
) -> list[str]:
    """The masks that a table names for these images, those of `parts` in order."""
    names: list[str | None] = []
    for part in parts:
        if (column := part.tasks.get(_MASK)) is None:
            raise DataError(f"{config.images} has no column {_MASK}")
        known = (*column.class_names, None)  # -1: an empty cell
        names += [known[value] for value in column.values]
    problems = []
    for image, name in zip(images, names):
        if name is None:
            problems.append(f"{image} has no mask")
        elif not config.outside_images and (
            os.path.isabs(name) or ".." in name.split("/")
        ):
            problems.append(
                f"{name} is outside the table's folder; --outside-images allows this"
            )
    refuse(problems, config.images)
    return [str(name) for name in names]


# What is in the masks.

Value = tuple[bool, int]
"""(is a colour, its number)."""
Palette = dict[int, tuple[int, int, int]]


def decode_mask(data: bytes) -> tuple[Int32[np.ndarray, "h w"], bool, Palette]:
    """(values, whether they are colours, the palette of numbers) of a PNG.

    NotAnImage for other formats: JPEG changes values.
    """
    from PIL import Image

    if not data.startswith(_PNG):
        raise NotAnImage("is no PNG; other formats may change the numbers of classes")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            check_extent(*image.size)
            if image.mode in ("RGB", "RGBA"):
                red, green, blue = np.moveaxis(np.asarray(image, np.int32), 2, 0)[:3]
                return (red << 16) + (green << 8) + blue, True, {}
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                raise NotAnImage(f"has pixels of the kind {image.mode}")
            values = np.asarray(image).astype(np.int32)
            flat = image.getpalette() if image.mode == "P" else None
    except NotAnImage:
        raise
    except Exception as error:  # what Pillow raises on damaged bytes
        raise NotAnImage(f"damaged ({error})") from error
    colours = np.reshape(flat or [], (-1, 3)).tolist()
    return values, False, {n: (r, g, b) for n, (r, g, b) in enumerate(colours)}


def nearest(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Covered and cropped as images are (`cover_box`), each pixel the nearest one."""
    (h, w), (rows, columns) = values.shape, size
    top, left, height, width = cover_box(h, w, (rows, columns))
    down = top + ((np.arange(rows) + 0.5) * height / rows).astype(int)
    across = left + ((np.arange(columns) + 0.5) * width / columns).astype(int)
    return values[down[:, None], across]


def _read_masks(
    images: OnDisk, masks: OnDisk, size: tuple[int, ...]
) -> tuple[UInt8[np.ndarray, "n h w"], list[Value], Palette]:
    """(a code for every pixel, the value of each code, the first palette)."""

    def one(row: int) -> tuple[np.ndarray, bool, Palette]:
        values, coloured, palette = decode_mask(read(masks, row))
        with opened(images, row) as file:
            header = read_header(file)
        if (header.height, header.width) != values.shape:
            raise NotAnImage(
                f"has {values.shape[1]}x{values.shape[0]} pixels, and its image "
                f"{header.width}x{header.height}"
            )
        return nearest(values, size), coloured, palette

    every, codes = range(len(masks.names)), {}
    out, problems, first = np.zeros((len(every), *size), np.uint8), [], {}
    for row, found in windows(or_reason(one), every, "masks", unit="masks"):
        if isinstance(found, str):
            problems.append(f"{spelling(masks.names[row])}: {found}")
            continue
        values, coloured, palette = found
        first = first or palette
        own, places = np.unique(values, return_inverse=True)
        own = [codes.setdefault((coloured, int(v)), len(codes)) for v in own]
        if len(codes) > MOST_CLASSES:
            raise DataError(
                f"the masks up to {spelling(masks.names[row])} have more than "
                f"{MOST_CLASSES} different values. Numbers of objects are no classes, "
                "and smoothed edges give colours of their own"
            )
        out[row] = np.array(own, np.uint8)[places.reshape(size)]
    if len({colour for colour, _ in codes}) > 1:
        problems.append("some masks have numbers and others colours")
    refuse(problems, "masks")
    return out, list(codes), first


def _classes(
    config: SegmentConfig, found: list[Value], seen: np.ndarray, palette: Palette
) -> tuple[Classes, list[int | None]]:
    """(the classes, the class of each code), from the codes `seen` in training."""
    ignored, coloured = parse_value(config.ignore), found[0][0]
    values = sorted(found[code][1] for code in seen if found[code] != ignored)
    names = config.classes
    if names and not coloured and all(value < len(names) for value in values):
        values = list(range(len(names)))
    texts = tuple(_text((coloured, value)) for value in values)
    if len(values) < 2:
        text = f"the masks have only one class, {''.join(texts) or 'none'}"
        if ignored in found:
            text += f", beside {config.ignore}; if that is one too, add --ignore none"
        raise DataError(f"{text}. A segmenter needs at least two")
    if names and len(names) != len(values):
        raise DataError(
            f"classes: {len(names)} names, but the masks have {len(values)} values, "
            f"{', '.join(texts[:8])}"
        )
    colours = [
        (v >> 16, v >> 8 & 255, v & 255) if coloured else palette.get(v) or colour(v)
        for v in values
    ]
    number = {(coloured, value): n for n, value in enumerate(values)}
    of = [IGNORED if value == ignored else number.get(value) for value in found]
    return Classes(names or texts, tuple(values), tuple(colours), coloured), of


def _check_known(
    codes: np.ndarray,
    values: list[Value],
    of: list[int | None],
    names: Sequence[str],
    classes: Classes,
) -> None:
    """DataError for a value in the test masks that is no class."""
    if wrong := [code for code, number in enumerate(of) if number is None]:
        row = int(np.argmax((codes == wrong[0]).any((1, 2))))
        raise DataError(
            f"{spelling(names[row])} has the value {_text(values[wrong[0]])}, which no "
            f"training mask has: the classes are {', '.join(classes.names)}. Name all "
            "with --classes, or leave these pixels out with --ignore"
        )


def _text(value: Value) -> str:
    return f"#{value[1]:06x}" if value[0] else str(value[1])


def colour(number: int) -> tuple[int, int, int]:
    """The colour of a class without one: black, then hues a golden angle apart."""
    import colorsys

    bright = 0.95 * (number > 0)
    parts = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, bright)
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue
