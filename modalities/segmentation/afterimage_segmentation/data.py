"""Images and their masks: pairs of files -> uint8 images and classes of one size."""

import dataclasses
import hashlib
import io
import pathlib
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int32, UInt8

from afterimage.checkpoints import files
from afterimage.checkpoints.names import spelling
from afterimage.console import say_reading
from afterimage.data import ImageSet, stratified
from afterimage.data.decode import read_header
from afterimage.data.images import image_sets
from afterimage.data.layout import by_split, exact, layout
from afterimage.data.pixels import MAX_BYTES, NotAnImage, check_extent, cover_box
from afterimage.data.sets import Empty, Range, Request
from afterimage.data.sources.folder import Folder, OnDisk
from afterimage.data.table import read_table
from afterimage.data.workers import opened, or_reason, read, windows
from afterimage.errors import DataError
from afterimage.reading import ReadingOptions
from afterimage_segmentation.config import SegmentConfig, parse_value

IGNORED = 255
"""The class of pixels that do not count."""
_LISTED = 5  # problems in one message
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class Classes:
    """What the numbers or colours in masks mean."""

    names: tuple[str, ...]
    values: tuple[int, ...]
    """The value of each class in a mask: a number, or a colour as in `parse_value`."""
    colours: tuple[tuple[int, int, int], ...]
    """How each class is shown."""
    coloured: bool
    """Whether masks hold colours."""


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

    train: Pairs
    validation: Pairs | None
    test: Pairs | None
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
    images, masks, groups = _listed(config)
    request = Request(
        image_size=side,
        channels=channels,
        value_range=value_range,
        reading=ReadingOptions(),
    )
    unnamed = {split: (rows, [None] * len(rows)) for split, rows in groups.items()}
    sets = image_sets(images, config.images, unnamed, request)
    codes, found, palette = _read_masks(images, masks, sets.train.shape[:2])
    coloured = any(colour for colour, _ in found)
    seen = np.unique(codes[groups["train"] + groups.get("validation", [])])
    classes, of = _classes(config, found, seen, palette, coloured)
    truth = np.array(of, np.uint8)[codes]
    held = groups.get("test", [])
    unknown = [v for code, v in enumerate(found) if of[code] == _UNKNOWN]
    if unknown:
        row = next(r for r in held if (truth[r] == _UNKNOWN).any())
        raise DataError(
            f"{spelling(masks.names[row])} has the value {_shown(*unknown[0])}, which "
            f"no training mask has; the classes are {', '.join(classes.names)}. Name "
            "all with --classes, or leave these pixels out with --ignore"
        )
    pairs = {
        split: Pairs(part, truth[groups[split]])
        for split in groups
        if (part := getattr(sets, split)) is not None
    }
    mark = hashlib.sha256(
        "".join(p.images.fingerprint for p in pairs.values()).encode()
    )
    mark.update(truth.tobytes())
    mark.update(repr(classes).encode())
    return _held_out(config, pairs, classes, mark.hexdigest())


_UNKNOWN = 254
"""Of a value that no training mask has: at most 254 classes, so it is never one."""


def _held_out(
    config: SegmentConfig, pairs: Mapping[str, Pairs], classes: Classes, mark: str
) -> Data:
    """The sets, with a test and then a validation set drawn by seed if not given."""
    parts = dict(pairs)
    for name, share in (("test", config.hold_out), ("validation", config.validation)):
        train = parts["train"]
        if name in parts or not share:
            continue
        kept, held = stratified(None, len(train), share, config.seed)
        if not len(held):
            raise DataError(
                f"{train.name}: {len(train)} images are too few to hold out {share:.0%}"
                f" for {name}; add images, or set this share to 0"
            )
        parts["train"], parts[name] = train.subset(kept), train.subset(held)
    if not (np.unique(parts["train"].truth) != IGNORED).any():
        raise DataError(f"{parts['train'].name}: every pixel of the masks is ignored")
    return Data(
        parts["train"], parts.get("validation"), parts.get("test"), classes, mark
    )


# Which files belong together.


def _listed(config: SegmentConfig) -> tuple[OnDisk, OnDisk, dict[str, list[int]]]:
    """(images, masks in the same order, rows of each split)."""
    if config.table is not None:
        return _of_table(config.table, config.outside_images)
    assert config.masks is not None
    images = Folder(config.images.removeprefix("folder:"))
    masks = Folder(config.masks.removeprefix("folder:"))
    of_masks = by_stem(masks.names, config.masks)
    own = by_stem(images.names, config.images)
    problems = [
        f"{spelling(own[stem])} has no mask" for stem in own if stem not in of_masks
    ]
    problems += [
        f"the mask {spelling(of_masks[stem])} has no image"
        for stem in of_masks
        if stem not in own
    ]
    _raise(
        problems,
        config.images,
        "An image and its mask have the same path but for the ending: a.jpg and a.png",
    )
    masks.names = [of_masks[posixpath.splitext(name)[0]] for name in images.names]
    rows = layout(images.names, config.images)
    return images, masks, {split: list(found) for split, (found, _) in rows.items()}


def by_stem(names: Iterable[str], where: str) -> dict[str, str]:
    """{path without the ending: path}; DataError if two are the same."""
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(posixpath.splitext(name)[0], name)
        if other != name:
            raise DataError(
                f"{where}: {spelling(other)} and {spelling(name)} differ only in their "
                "ending, so masks cannot be told apart; rename one"
            )
    return found


def _of_table(path: str, outside: bool) -> tuple[OnDisk, OnDisk, dict[str, list[int]]]:
    source = f"csv:{spelling(path)}"
    try:
        content = files.read_bytes(pathlib.Path(path).expanduser(), MAX_BYTES)
    except OSError as error:
        raise DataError(f"{source} {files.reason(error)}") from error
    table = read_table(content, source, json_lines=False)
    names = {
        "image": table.named("image", source),
        "mask": next((n for n in table.columns if n.casefold() == "mask"), None),
    }
    if None in names.values():
        raise DataError(
            f"{source} has the columns {', '.join(table.columns)}; expected image and "
            "mask, and optionally split"
        )
    problems, lists = [], []
    for what, name in names.items():
        cells = [posixpath.normpath(cell) for cell in table.columns[str(name)]]
        lists.append(cells)
        for line, cell in zip(table.lines, cells):
            if cell == ".":
                problems.append(f"line {line} names no {what}")
            elif not outside and (cell.startswith(("/", "../")) or cell == ".."):
                problems.append(
                    f"line {line}: {spelling(cell)} is outside the table's folder; "
                    "--outside-images allows this"
                )
    twice = [cell for cell, count in Counter(lists[0]).items() if count > 1]
    problems += [f"{spelling(cell)} is listed twice" for cell in twice]
    column = table.named("split", source)
    given = ["train"] * len(table.lines) if column is None else table.columns[column]
    splits = [exact(cell) for cell in given]
    problems += [
        f"line {line}: split {spelling(cell)!r} is none of train, validation, test"
        for line, cell, split in zip(table.lines, given, splits)
        if split is None
    ]
    _raise(problems or ([] if splits else ["it lists no images"]), source)
    folder = pathlib.Path(path).expanduser().parent
    images, masks = (OnDisk(folder, cells) for cells in lists)
    return images, masks, by_split([str(split) for split in splits], source)


def _raise(problems: Sequence[str], where: str, cure: str = "") -> None:
    if problems:
        more = len(problems) - _LISTED
        lines = [*problems[:_LISTED], *([f"and {more:,} more"] if more > 0 else [])]
        raise DataError(
            f"{where}: {len(problems):,} problems:\n  "
            + "\n  ".join(lines)
            + (f"\n{cure}" if cure else "")
        )


# What is in the masks.

Found = list[tuple[bool, int]]
"""(is a colour, its number) of every value, by code."""
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


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Covered and cropped as images are (`cover_box`), each pixel the nearest one."""
    top, left, height, width = cover_box(*values.shape, size)
    rows = top + ((np.arange(size[0]) + 0.5) * height / size[0]).astype(int)
    columns = left + ((np.arange(size[1]) + 0.5) * width / size[1]).astype(int)
    return values[rows[:, None], columns]


def _read_masks(
    images: OnDisk, masks: OnDisk, size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "n h w"], Found, Palette]:
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
    for row, found in windows(or_reason(one), every, "masks"):
        if isinstance(found, str):
            problems.append(f"{spelling(masks.names[row])}: {found}")
            continue
        values, coloured, palette = found
        first = first or palette
        own, places = np.unique(values, return_inverse=True)
        own = [codes.setdefault((coloured, int(v)), len(codes)) for v in own]
        if len(codes) > _UNKNOWN:
            raise DataError(
                f"{spelling(masks.names[row])}: the masks have more than {_UNKNOWN} "
                "different values. Numbers of objects are no classes, and smoothed "
                "edges give colours of their own; save masks without smoothing"
            )
        out[row] = np.array(own, np.uint8)[places.reshape(size)]
    if len({colour for colour, _ in codes}) > 1:
        problems.append("some masks have numbers and others colours")
    _raise(problems, "masks")
    return out, list(codes), first


def _classes(
    config: SegmentConfig,
    found: Found,
    seen: np.ndarray,
    palette: Palette,
    coloured: bool,
) -> tuple[Classes, list[int]]:
    """(the classes, the class of each code), from the codes `seen` in training."""
    ignored = parse_value(config.ignore)
    values = sorted(found[code][1] for code in seen if found[code] != ignored)
    names = config.classes
    if names and not coloured and all(value < len(names) for value in values):
        values = list(range(len(names)))
    elif names and len(names) != len(values):
        raise DataError(
            f"classes: {len(names)} names, but the masks have the {len(values)} values "
            f"{', '.join(_shown(coloured, v) for v in values[:8])}"
        )
    if len(values) < 2:
        one = _shown(coloured, values[0]) if values else "nothing"
        text = f"the masks have only one class, {one}, besides what is ignored"
        if ignored in found:
            text += f" ({config.ignore}). If that is a class too, add --ignore none"
        raise DataError(f"{text}; at least two are needed")
    colours = [
        (v >> 16, v >> 8 & 255, v & 255) if coloured else palette.get(v) or colour(v)
        for v in values
    ]
    shown = tuple(_shown(coloured, value) for value in values)
    number = {value: n for n, value in enumerate(values)}
    of = [
        IGNORED if value == ignored else number.get(value[1], _UNKNOWN)
        for value in found
    ]
    return Classes(names or shown, tuple(values), tuple(colours), coloured), of


def _shown(coloured: bool, value: int) -> str:
    return f"#{value:06x}" if coloured else str(value)


def colour(number: int) -> tuple[int, int, int]:
    """The colour of a class without one: black, then hues a golden angle apart."""
    import colorsys

    if number == 0:
        return 0, 0, 0
    parts = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, 0.95)
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue
