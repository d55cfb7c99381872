"""The files of `afterimage label`: tables, contact sheets and pages.

The tables list images relative to their own folder, as `csv:` data do, so that one with
its labels filled in is data for fine-tuning.
"""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from afterimage.contact_sheet import label_of, write_sheet
from afterimage.data import Preprocessing
from afterimage.data.sources import spec_of
from afterimage.errors import UserError, disk_errors
from afterimage.evaluation.configs import LabelConfig
from afterimage.fields import output_file
from afterimage.reading import ReadingOptions
from afterimage.rows import WRITERS, every_image

ACROSS, MOST_ROWS = 8, 40
"""Images in a row of a contact sheet, and its rows."""
_KINDS = (*WRITERS, ".png", ".html")
_SHOWN = 128  # pixels of a picture
Row = dict[str, Any]


def check_outputs(config: LabelConfig) -> None:
    """UserError for a file that cannot be written, or whose labels would be lost."""
    for out in config.out:
        path = output_file(out, _KINDS)
        if config.suggest is None or path.suffix.lower() != ".csv":
            continue
        if path.exists() and _filled_in(path):
            raise UserError(
                f"out={out}: has labels that were filled in, which would be lost. Give "
                f"another name, and these labels as --labelled csv:{out}"
            )


def _filled_in(path: pathlib.Path) -> bool:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        try:
            return any(
                str(row.get("label") or "").strip() for row in csv.DictReader(file)
            )
        except csv.Error:
            return False


def _root(data: str) -> pathlib.Path | None:
    """The folder that images are named from; None if they are not files."""
    kind, _, rest = spec_of(data).partition(":")
    place = pathlib.Path(os.path.expanduser(rest))
    found = {"folder": place, "files": pathlib.Path(), "csv": place.parent}
    return found.get(kind)


def _seen_from(folder: pathlib.Path, root: pathlib.Path, name: str) -> str:
    """The path of an image relative to the folder of a table."""
    place = os.path.relpath(os.path.abspath(root / name), os.path.abspath(folder))
    return pathlib.Path(place).as_posix()


def notes_on(config: LabelConfig) -> tuple[str, ...]:
    """What to know before a table is given back as data."""
    tables = [out for out in config.out if not out.lower().endswith((".png", ".html"))]
    root = _root(config.data)
    if not tables:
        return ()
    if root is None:
        return (
            f"The images of {config.data} are not files, so the table only names "
            "them; to use it as data, unpack the images",
        )
    for out in tables:
        if _seen_from(pathlib.Path(out).parent, root, "x").startswith("../"):
            return (
                f"The images are outside the folder of {out}: as data, it needs "
                "--outside-images",
            )
    return ()


def write_files(
    config: LabelConfig,
    preprocessing: Preprocessing,
    title: str,
    caption: str,
    rows: Sequence[Row],
    columns: Sequence[str],
    sheet: Mapping[str, Sequence[str]],
) -> None:
    """Write what `config.out` asks for; `sheet` are {label: images} of its rows."""
    root, pictures = _root(config.data), None
    with disk_errors("the results were not written"):
        for out in map(pathlib.Path, config.out):
            out.parent.mkdir(parents=True, exist_ok=True)
            own = [dict(row) for row in rows]
            if root is not None:
                for row in own:
                    row["file"] = _seen_from(out.parent, root, row["file"])
            if out.suffix.lower() in WRITERS:
                partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
                WRITERS[out.suffix.lower()](partial, iter(own), columns)
                partial.replace(out)
                continue
            pictures = pictures or _pictures(config, preprocessing, sheet)
            table = [list(row.values()) for row in own]
            how: Any = {"title": title, "columns": columns, "table": table}
            write_sheet(out, caption, pictures, **how)


def _pictures(
    config: LabelConfig,
    preprocessing: Preprocessing,
    sheet: Mapping[str, Sequence[str]],
) -> dict[str, np.ndarray]:
    """{label: images in [0, 1]} of the rows of a contact sheet."""
    large = dataclasses.replace(preprocessing, image_size=(_SHOWN, _SHOWN))
    reading = ReadingOptions(**config.settings())
    images = every_image(config.data, large, reading=reading)
    place = {name: row for row, name in enumerate(images.ids)}
    rows: dict[str, np.ndarray] = {}
    for label, names in sheet.items():
        pixels = images.gather([place[name] for name in names])
        rows[label_of(label, rows)] = pixels.astype(np.float32) / 255
    return rows
