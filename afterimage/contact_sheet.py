"""A contact sheet: labelled rows of images as a picture, or on a page with a table."""

import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from afterimage.pictures import draw_rows
from afterimage.report import write_report
from afterimage.runs import write_png

_LABEL = 24  # characters


def label_of(name: str, taken: Collection[str] = ()) -> str:
    """The end of an image's name, short enough for a row, and unlike those `taken`."""
    label = pathlib.PurePath(name).name
    label = label if len(label) <= _LABEL else f"…{label[1 - _LABEL :]}"
    return label if label not in taken else f"{label} ({len(taken)})"


def write_sheet(
    out: pathlib.Path,
    caption: str,
    rows: Mapping[str, np.ndarray],
    *,
    title: str,
    columns: Sequence[str],
    table: Sequence[Sequence[Any]],
) -> None:
    """Write a .png, or an .html with the table below it.

    `rows` are {label: images [n, h, w, c] in [0, 1]}.
    """
    shown = rows or {"none": np.ones((1, 8, 8, 3), np.float32)}
    pixels = draw_rows(shown, caption=caption)
    if out.suffix.lower() == ".png":
        write_png(pixels, out)
        return
    picture = out.with_name(f".{out.name}.png")
    write_png(pixels, picture)
    try:
        write_report(
            out,
            title=title,
            lead=caption,
            pictures={"Images": (caption, picture)},
            grids={"Table": (columns, [list(row) for row in table])},
        )
    finally:
        picture.unlink(missing_ok=True)
