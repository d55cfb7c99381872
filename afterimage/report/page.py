"""One run on one page, with charts: in the run folder, or shorter in a notebook."""

import dataclasses
import functools
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from afterimage.checkpoints.files import replace_file
from afterimage.checkpoints.names import printable
from afterimage.report.chart import Points, colour, dashed, line_chart, number
from afterimage.report.parts import Figure, Part, Setting, image_uri, read_picture
from afterimage.settings import spelled

if TYPE_CHECKING:
    import jinja2

Grid = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""A header, and rows that start with their label."""
_WIDEST = 1400  # pixels of a picture on a page
_CELL = 720  # the same in a notebook
_NARROWEST = 300
_PICTURES = 1_000_000  # characters of all pictures of a page
_SIGNS = {"": "", "good": "✓ ", "bad": "! "}


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
    """HTML of a result for a notebook cell: a self-contained `<div>`.

    `picture` is (caption, PNG file), reduced to the width of a cell, and left out if
    the file is missing; the other arguments are those of `render`.
    """
    pictures = {"": picture} if picture is not None and picture[1].is_file() else {}
    return render(title=title, lead=lead, pictures=pictures, fragment=True, **content)


def render(
    *,
    title: str,
    lead: str,
    facts: Mapping[str, Any] = {},
    command: str = "",
    headline: Mapping[str, str | Figure] = {},
    parts: Mapping[str, Part] = {},
    curves: Mapping[str, Mapping[str, Points]] = {},
    logarithmic: Collection[str] = (),
    pictures: Mapping[str, tuple[str, pathlib.Path]] = {},
    probes: Mapping[str, Mapping[str, float]] = {},
    probe_note: str = "",
    grids: Mapping[str, Grid] = {},
    settings: Mapping[str, Setting] = {},
    tables: Mapping[str, Mapping[str, Any]] = {},
    opened: Collection[str] = (),
    unfinished: tuple[int, int] | None = None,
    fragment: bool = False,
) -> str:
    """The HTML of a page, or with `fragment` of part of one.

    `facts`: short facts by name, and `command` a line to copy. `headline`: figures by
    label, shown large. `parts`: galleries, matrices, diagrams and tables by heading.
    `curves`: for each chart its named series of (step, value); charts in `logarithmic`
    may have a log axis. `pictures`: (caption, PNG file) by heading; a damaged file is
    left out. `probes`: a row for each kind of features, accuracies in [0, 1] by column.
    `grids`: tables by heading, (header, rows), whose rows begin with their label.
    `settings`: those that differ
    from their default are shown first, the others folded. `tables`: two-column tables
    by heading, collapsed unless in `opened`. `unfinished`: (step reached, total steps)
    of an unfinished run. Empty parts are left out.
    """
    columns = list(dict.fromkeys(name for row in probes.values() for name in row))
    share = _PICTURES // max(1, len(pictures))
    figures = {
        label: value if isinstance(value, Figure) else Figure(value)
        for label, value in headline.items()
    }
    return _template().render(
        title=title,
        lead=lead,
        facts=facts,
        command=command,
        headline=figures,
        signs=_SIGNS,
        parts=parts,
        charts=[
            _chart(name, series, name in logarithmic)
            for name, series in curves.items()
            if any(series.values())
        ],
        pictures=[
            (name, caption, _picture(read[0], _CELL if fragment else _WIDEST, share))
            for name, (caption, file) in pictures.items()
            if (read := read_picture(file)) is not None
        ],
        probes=probes,
        columns=columns,
        best={c: max(r[c] for r in probes.values() if c in r) for c in columns},
        probe_note=probe_note,
        grids=grids,
        settings=_by_default(settings) if settings else None,
        tables=tables,
        opened=opened,
        unfinished=unfinished,
        fragment=fragment,
    )


def logged(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) of the lines of metrics.jsonl that have this key."""
    found = ((row["step"], row.get(key)) for row in rows)
    return [(s, float(v)) for s, v in found if isinstance(v, int | float)]


def _chart(name: str, series: Mapping[str, Points], logarithmic: bool) -> Any:
    """(name, SVG, the key of its lines)."""
    svg = Markup(line_chart(series, name, logarithmic=logarithmic))
    key = [(label, colour(i), dashed(i)) for i, label in enumerate(series)]
    return name, svg, [one for one in key if series[one[0]]]


def _by_default(settings: Mapping[str, Setting]) -> Mapping[str, Any]:
    """(changed, others): settings as flags spell them, with values and defaults."""
    changed, others = [], []
    for name, (value, usual) in settings.items():
        if usual is dataclasses.MISSING:
            changed.append((spelled(name), value, None))
        elif value != usual:
            changed.append((spelled(name), value, usual))
        else:
            others.append((spelled(name), value))
    return {"changed": changed, "others": others}


@functools.cache
def _template() -> "jinja2.Template":
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("afterimage.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_plain,
    ).get_template("page.html")


def _plain(value: Any) -> Any:
    """A value in readable form; text without control characters."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(k)}={_plain(v)}" for k, v in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(str(_plain(v)) for v in value) or "–"
    return printable(str(value))


def _picture(pixels: Any, widest: int, most: int) -> str:
    """A picture as a data URI, reduced to `widest` pixels and to `most` characters."""
    width = min(widest, pixels.width)
    while True:
        side = round(max(pixels.size) * width / pixels.width)
        uri = image_uri(pixels, side, large=most // 4)
        if len(uri) <= most or width < _NARROWEST:
            return uri
        width = round(0.7 * width)
