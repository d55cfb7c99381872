"""The parts of a page: figures with their meaning, galleries, matrices, diagrams."""

import base64
import dataclasses
import io
import pathlib
import struct
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from afterimage.pictures import displayable

Mark = Literal["", "good", "bad"]
_SIDE = 96
"""Most pixels of a side of a tile."""
_LARGE = 4_096
"""Bytes of a PNG above which a photo is smaller, and good enough, as JPEG."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of a run, shown large, with what it means."""

    value: str
    meaning: str = ""
    """One plain sentence."""
    mark: Mark = ""
    """Whether it is a good or a bad sign."""
    hint: str = ""
    """Why, in a few words."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """A small image, ready for a page."""

    uri: str
    """A data URI."""
    caption: str = ""
    mark: Mark = ""

    @classmethod
    def of(cls, pixels: np.ndarray, caption: str = "", mark: Mark = "") -> "Tile":
        """Of one image [H, W, C], uint8 or float in [0, 1], of any number of bands."""
        return cls(data_uri(pixels), caption, mark)


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Labelled rows of small images."""

    kind: ClassVar[str] = "gallery"
    note: str
    """What it shows, in a sentence or two."""
    rows: Sequence[tuple[str, Sequence[Tile]]]
    first_apart: bool = False
    """Leave a gap after the first image of every row."""
    aligned: bool = False
    """The images of a row stay in one line, in columns."""
    small: bool = False
    wide: bool = False
    """Each image is two, side by side."""

    @property
    def columns(self) -> int:
        """Images in the longest row."""
        return max((len(tiles) for _, tiles in self.rows), default=1)


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A confusion matrix, each row shaded by its shares."""

    kind: ClassVar[str] = "matrix"
    note: str
    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    """Rows are true classes, columns predicted classes."""

    @property
    def rows(self) -> list[tuple[str, list[tuple[int, float, bool]]]]:
        """(name, (count, its share of the row, whether it is right) by column)."""
        return [
            (
                name,
                [
                    (count, count / max(1, sum(row)), i == j)
                    for j, count in enumerate(row)
                ],
            )
            for i, (name, row) in enumerate(zip(self.names, self.counts))
        ]


@dataclasses.dataclass(frozen=True)
class Diagram:
    """An SVG with its caption."""

    kind: ClassVar[str] = "diagram"
    note: str
    svg: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose rows begin with their label."""

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    marked: Collection[str] = ()
    """Labels of rows to mark."""
    folded: bool = False


Part = Gallery | Matrix | Diagram | Table
Setting = tuple[Any, Any]
"""A value and its default; without a default, dataclasses.MISSING."""


def data_uri(pixels: np.ndarray, most: int = _SIDE) -> str:
    """An image of at most `most` pixels a side as a data URI, PNG or JPEG."""
    from PIL import Image

    if pixels.dtype != np.uint8:
        pixels = displayable(pixels[None])[0]
    elif pixels.shape[-1] not in (1, 3):
        pixels = displayable(pixels[None].astype(np.float32) / 255)[0]
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return image_uri(image, most)


def image_uri(image: Any, most: int, large: int = _LARGE) -> str:
    """The same of a Pillow image; a PNG of more than `large` bytes becomes a JPEG."""
    image = reduced(image, most)
    data, kind = encoded(image, "PNG", optimize=True), "png"
    if len(data) > large:
        smaller = encoded(image, "JPEG", quality=85)
        if len(smaller) < 0.7 * len(data):
            data, kind = smaller, "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def read_picture(file: pathlib.Path) -> Any:
    """(a picture file as a Pillow image in RGB, its text); None if it is damaged."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.convert("RGB"), dict(getattr(image, "text", {}))
    # What Pillow raises for damaged files, by format.
    except (OSError, ValueError, SyntaxError, EOFError, struct.error):
        return None
    except Image.DecompressionBombError:
        return None


def reduced(image: Any, most: int = _SIDE) -> Any:
    """A Pillow image of at most `most` pixels a side."""
    from PIL import Image

    side = max(image.size)
    if side <= most:
        return image
    size = [max(1, round(n * most / side)) for n in image.size]
    return image.resize(size, Image.Resampling.LANCZOS)


def encoded(image: Any, form: str, **options: Any) -> bytes:
    """A Pillow image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()
