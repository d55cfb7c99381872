"""Pictures for the page of a run: reconstructions over time, neighbours, filters."""

import contextlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from afterimage.checkpoints.files import replace_file
from afterimage.checkpoints.names import shortened
from afterimage.checkpoints.trees import flatten
from afterimage.data import ImageSet
from afterimage.evaluation.nearest import nearest
from afterimage.evaluation.probes import unit_rows
from afterimage.pictures import displayable
from afterimage.report.parts import Gallery, Tile, encoded, read_picture, reduced
from afterimage.training.batches import spaced

FOLDER = "reconstructions"
"""In the run folder: for each evaluation the rows of its picture, without labels."""
_EVALUATIONS, _COLUMNS = 6, 8
_QUERIES, _NEIGHBOURS = 6, 7
_FILTERS = 96
_CAPTION = 24  # characters
_NOTE = "Each column is one image that the network draws again after more training. "
_LEARNT = (
    "The last row should look like the first. Detail that is missing there may be "
    "missing in the features too."
)
_BESIDE = (
    "With this objective the drawing is only for you to look at: the features learn "
    "something else, and it shows what they keep of the image."
)


def write_rows(rows: Mapping[str, np.ndarray], place: pathlib.Path) -> None:
    """Writes images [n, h, w, c] in [0, 1] by row, reduced to the size of a page.

    As one PNG, whose text has the names of the rows and the number of columns.
    """
    from PIL import Image, PngImagePlugin

    lines, tiles = [], []
    for row in rows.values():
        pixels = displayable(np.asarray(row[:_COLUMNS]))
        tiles = [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]
        lines.append(np.concatenate([np.asarray(reduced(t)) for t in tiles], axis=1))
    text = PngImagePlugin.PngInfo()
    text.add_text("rows", json.dumps(list(rows)))
    text.add_text("columns", str(len(tiles)))
    sheet = Image.fromarray(np.concatenate(lines))
    place.parent.mkdir(exist_ok=True)
    replace_file(place, encoded(sheet, "PNG", optimize=True, pnginfo=text))


def reconstructions(
    folder: pathlib.Path, output: str, reached: int, *, beside: bool
) -> Gallery | None:
    """The images, what the network saw of them, and what it made of them over time.

    From the files that `write_rows` left in `folder`, up to step `reached`; a damaged
    one is left out. `output` names the row that the network draws; `beside` says that
    the features do not learn from it. None without any.
    """
    found: dict[int, dict[str, list[Tile]]] = {}
    for file in sorted(folder.glob("step-*.png")):
        with contextlib.suppress(ValueError, KeyError, TypeError, ZeroDivisionError):
            step = int(file.stem.removeprefix("step-"))
            if step <= reached and output in (rows := _read_rows(file)):
                found[step] = rows
    if not found:
        return None
    steps = [list(found)[i] for i in spaced(len(found), _EVALUATIONS)]
    last = found[steps[-1]]
    before = list(last)[: list(last).index(output)]
    rows = [(label, last[label]) for label in before]
    rows += [(f"after step {step:,}", found[step][output]) for step in steps]
    rows += [
        (f"{label} after step {steps[-1]:,}", tiles)
        for label, tiles in last.items()
        if label not in (*before, output)
    ]
    return Gallery(
        note=_NOTE + (_BESIDE if beside else _LEARNT),
        rows=rows,
        aligned=True,
    )


def _read_rows(file: pathlib.Path) -> dict[str, list[Tile]]:
    """{row: its images}; ValueError and the like for another picture."""
    if (found := read_picture(file)) is None:
        raise ValueError(f"{file} is damaged")
    image, text = found
    names, columns = json.loads(text["rows"]), int(text["columns"])
    pixels = np.asarray(image)
    tall, wide = pixels.shape[0] // len(names), pixels.shape[1] // columns
    parts = pixels.reshape(len(names), tall, columns, wide, 3).swapaxes(1, 2)
    return {str(n): list(map(Tile.of, row)) for n, row in zip(names, parts)}


def neighbours(
    queries: ImageSet, asked: np.ndarray, images: ImageSet, vectors: np.ndarray
) -> Gallery | None:
    """Some of the `queries`, each followed by the nearest of `images` by cosine.

    `asked` and `vectors` are their feature vectors [n, d]. If both sets are the same,
    an image is no neighbour of itself.
    """
    alone = queries is images
    if len(images) < 2 + alone or not np.isfinite(asked).all():
        return None
    some = spaced(len(queries), _QUERIES)
    count = _NEIGHBOURS + alone
    rows, _ = nearest(unit_rows(asked[some]), unit_rows(vectors), count)
    shown = []
    for query, near in zip(some, rows):
        near = near[near != query] if alone else near
        own = _tiles(queries, [query], None)
        same = _class(queries, query)
        shown.append(("", own + _tiles(images, near[:_NEIGHBOURS], same)))
    labelled = _class(queries, some[0]) is not None
    note = (
        "Left: an image. Right of it: the training images whose features are nearest "
        "to its own. They should show the same kind of thing."
        if not alone
        else "Left: an image. Right of it: the other images whose features are "
        "nearest to its own. They should show the same kind of thing."
    )
    if labelled:
        note += " Green: the same class; red: another. The encoder never saw a class."
    return Gallery(note=note, rows=shown, first_apart=True, aligned=True)


def _tiles(images: ImageSet, rows: Any, same: str | None) -> list[Tile]:
    pixels, found = images.gather(np.asarray(rows)), []
    for row, image in zip(rows, pixels):
        name = _class(images, row)
        mark = "" if same is None or name is None else "good" if name == same else "bad"
        found.append(Tile.of(image, shortened(name or "", _CAPTION), mark))
    return found


def _class(images: ImageSet, row: Any) -> str | None:
    if images.labels is None or images.labels[row] < 0:
        return None
    number = int(images.labels[row])
    return str(images.class_names[number] if images.class_names else number)


def filters(params: Mapping[str, Any], channels: int) -> Gallery | None:
    """The first layer's filters; None if no layer reads the image by a kernel."""
    kernel = _first_kernel(params, channels)
    if kernel is None:
        return None
    k = kernel[..., :_FILTERS]
    if channels not in (1, 3):
        k = k.mean(2, keepdims=True)
    # Mid grey is 0. All share one scale, so that filters that do nothing stay grey.
    scale = np.quantile(np.abs(k), 0.99) or 1.0
    tiles = [Tile.of(0.5 + 0.5 * k[..., i] / scale) for i in range(k.shape[-1])]
    height, width, _, total = kernel.shape
    bands = "" if channels in (1, 3) else f", as the mean of its {channels} bands"
    some = f"{total}" if len(tiles) == total else f"{len(tiles)} of {total}"
    return Gallery(
        note=f"The {some} patterns of {height}x{width} pixels that the first layer "
        f"looks for{bands}. Grey is zero. Edges, blobs and colours are a good sign; "
        "noise in all of them means that it has learned little.",
        rows=[("", tiles)],
        small=True,
    )


def _first_kernel(params: Mapping[str, Any], channels: int) -> np.ndarray | None:
    """The kernel [h, w, c, filters] that reads the image."""
    for path, leaf in flatten(dict(params)).items():
        if not path.endswith("kernel"):
            continue
        if leaf.ndim == 4 and leaf.shape[2] == channels and leaf.shape[0] > 1:
            return np.asarray(leaf, np.float32)
        if leaf.ndim == 2:  # of patches, flattened
            side = math.isqrt(leaf.shape[0] // channels)
            if side > 1 and side * side * channels == leaf.shape[0]:
                flat = np.asarray(leaf, np.float32)
                return flat.reshape(side, side, channels, -1)
    return None
