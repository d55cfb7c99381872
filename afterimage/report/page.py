"""One run on one page: the report in a run folder, and its short form in a notebook."""

import base64
import functools
import io
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from afterimage.checkpoints.files import replace_file
from afterimage.checkpoints.names import printable
from afterimage.report.chart import Points, line_chart, number

Grid = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""A header, and rows that begin with their label."""
_WIDEST = 720  # pixels of a picture in a notebook


def write_report(path: str | pathlib.Path, **content: Any) -> pathlib.Path:
    """Write the page, readable offline: no network, no script, no other file.

    `content` is what `render` takes.
    """
    return replace_file(pathlib.Path(path), (render(**content) + "\n").encode())


def notebook(
    *,
    title: str,
    lead: str = "",
    picture: tuple[str, pathlib.Path] | None = None,
    **content: Any,
) -> str:
    """HTML of a result for a notebook's cell: a `<div>` that needs nothing else.

    `picture` is (caption, PNG file), reduced to the width of a cell, and left out where
    the file is missing; the rest is what `render` takes.
    """
    pictures = {"": picture} if picture is not None and picture[1].is_file() else {}
    return render(title=title, lead=lead, pictures=pictures, fragment=True, **content)


def render(
    *,
    title: str,
    lead: str,
    headline: Mapping[str, str] = {},
    curves: Mapping[str, Mapping[str, Points]] = {},
    logarithmic: Collection[str] = (),
    pictures: Mapping[str, tuple[str, pathlib.Path]] = {},
    probes: Mapping[str, Mapping[str, float]] = {},
    probe_note: str = "",
    grids: Mapping[str, Grid] = {},
    tables: Mapping[str, Mapping[str, Any]] = {},
    unfinished: tuple[int, int] | None = None,
    fragment: bool = False,
) -> str:
    """The HTML of a page, or with `fragment` of a part of one.

    `headline`: figure by label, shown large. `curves`: for each chart its named
    series of (step, value); those in `logarithmic` may have a log axis. `pictures`:
    (caption, PNG file) by heading. `probes`: a row for each kind of features,
    accuracies in [0, 1] by column. `grids`: tables by heading, (header, rows), whose
    rows begin with their label. `tables`: two-column tables by heading, folded.
    `unfinished`: (step reached, steps in all) of a run that is not finished. What is
    empty is left out.
    """
    columns = list(dict.fromkeys(name for row in probes.values() for name in row))
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            lead=lead,
            headline=headline,
            charts=[
                (
                    name,
                    Markup(line_chart(series, name, logarithmic=name in logarithmic)),
                )
                for name, series in curves.items()
                if any(series.values())
            ],
            pictures=[
                (name, caption, _picture(file, _WIDEST if fragment else None))
                for name, (caption, file) in pictures.items()
            ],
            probes=probes,
            columns=columns,
            best={c: max(r[c] for r in probes.values() if c in r) for c in columns},
            probe_note=probe_note,
            grids=grids,
            tables=tables,
            unfinished=unfinished,
            fragment=fragment,
        )
    )


def logged(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) of the lines of metrics.jsonl that have this key."""
    found = ((row["step"], row.get(key)) for row in rows)
    return [(s, v) for s, v in found if isinstance(v, int | float)]


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("afterimage.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_plain,
    )


def _plain(value: Any) -> Any:
    """A value as a person reads it; text without control characters."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(k)}={_plain(v)}" for k, v in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(str(_plain(v)) for v in value) or "–"
    return printable(str(value))


def _picture(file: pathlib.Path, widest: int | None) -> str:
    """A PNG file in base64, reduced where it is wider than `widest` pixels."""
    data = file.read_bytes()
    if widest is not None:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            if image.width > widest:
                size = widest, max(1, round(image.height * widest / image.width))
                buffer = io.BytesIO()
                image.resize(size).save(buffer, format="PNG", optimize=True)
                data = buffer.getvalue()
    return base64.b64encode(data).decode()
