"""One run on one page, with charts: in the run folder, or shorter in a notebook."""

import base64
import dataclasses
import functools
import html
import io
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from afterimage.checkpoints.files import replace_file
from afterimage.checkpoints.names import printable

Points = Sequence[tuple[float | int, float]]
Grid = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""A header, and rows that start with their label."""
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
    headline: Mapping[str, str] = {},
    curves: Mapping[str, Mapping[str, Points]] = {},
    logarithmic: Collection[str] = (),
    pictures: Mapping[str, tuple[str, pathlib.Path]] = {},
    probes: Mapping[str, Mapping[str, float]] = {},
    probe_note: str = "",
    grids: Mapping[str, Grid] = {},
    tables: Mapping[str, Mapping[str, Any]] = {},
    opened: Collection[str] = (),
    unfinished: tuple[int, int] | None = None,
    fragment: bool = False,
) -> str:
    """The HTML of a page, or with `fragment` of part of one.

    `headline`: values by label, shown large. `curves`: for each chart its named series
    of (step, value); charts in `logarithmic` may have a log axis. `pictures`: (caption,
    PNG file) by heading. `probes`: a row for each kind of features, accuracies in [0,
    1] by column. `grids`: tables by heading, (header, rows), whose rows begin with
    their label. `tables`: two-column tables by heading, collapsed unless in `opened`.
    `unfinished`: (step reached, total steps) of an unfinished run. Empty parts are left
    out.
    """
    columns = list(dict.fromkeys(name for row in probes.values() for name in row))
    charts = [
        (name, Markup(line_chart(series, name, logarithmic=name in logarithmic)))
        for name, series in curves.items()
        if any(series.values())
    ]
    return _template().render(
        title=title,
        lead=lead,
        headline=headline,
        charts=charts,
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
        opened=opened,
        unfinished=unfinished,
        fragment=fragment,
    )


def logged(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) of the lines of metrics.jsonl that have this key."""
    found = ((row["step"], row.get(key)) for row in rows)
    return [(s, v) for s, v in found if isinstance(v, int | float)]


@functools.cache
def _template() -> jinja2.Template:
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


def _picture(file: pathlib.Path, widest: int | None) -> str:
    """A PNG file in base64, reduced if it is wider than `widest` pixels."""
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


_COLOURS = ("#2563a8", "#d9730d", "#4d7c3a", "#8b4fa8")
_WIDTH, _HEIGHT, _RIGHT, _TOP, _BOTTOM = 840, 300, 28, 34, 40  # of a chart, pixels


def line_chart(
    series: Mapping[str, Points], label: str, *, logarithmic: bool = False
) -> str:
    """Named series of (x, y) as one inline SVG; values that are not finite are gaps.

    With `logarithmic` the y axis is logarithmic if all values are positive and span a
    factor of ten.
    """
    finite = {
        name: [(float(x), float(y)) for x, y in points if math.isfinite(y)]
        for name, points in series.items()
    }
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    if not xs:
        return '<p class="note">Nothing has been logged yet.</p>'
    frame = _Frame.around(xs, ys, logarithmic)
    marks = _axes(frame)
    key_x = frame.left
    for i, (name, points) in enumerate(finite.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        marks += _key(key_x, name, colour) + _line(frame, points, colour)
        key_x += 40 + 8 * len(name)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(printable(label))}" '
        'font-family="system-ui, sans-serif" '
        f'font-size="13" fill="#5c6470">{"".join(marks)}</svg>'
    )


@dataclasses.dataclass(frozen=True)
class _Frame:
    """The ranges shown, y as a logarithm if requested, and their place in the chart."""

    x: tuple[float, float]
    y: tuple[float, float]
    logarithmic: bool
    y_ticks: list[float]
    left: int

    @classmethod
    def around(cls, xs: list[float], ys: list[float], logarithmic: bool) -> "_Frame":
        logarithmic = logarithmic and min(ys) > 0 and max(ys) / min(ys) >= 10
        scale = math.log10 if logarithmic else float
        low, high = scale(min(ys)), scale(max(ys))
        if high - low < 1e-12:
            margin = 0.5 * (abs(low) or 1)
            low, high = low - margin, high + margin
        if logarithmic:
            ticks = [10 ** (low + i * (high - low) / 4) for i in range(5)]
        else:
            ticks = _round_ticks(low, high)
        # A digit is about 8 units wide at this font size.
        left = 24 + 8 * max(len(number(tick)) for tick in ticks)
        x = min(xs), max(max(xs), min(xs) + 1)
        return cls(x, (low, high), logarithmic, ticks, left)

    def across(self, x: float) -> float:
        share = (x - self.x[0]) / (self.x[1] - self.x[0])
        return self.left + share * (_WIDTH - self.left - _RIGHT)

    def up(self, y: float) -> float:
        y = math.log10(y) if self.logarithmic else y
        share = (y - self.y[0]) / (self.y[1] - self.y[0])
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _axes(frame: _Frame) -> list[str]:
    marks = []
    for tick in frame.y_ticks:
        y = frame.up(tick)
        marks.append(
            f'<line x1="{frame.left}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" '
            f'y2="{y:.1f}" stroke="#eceef1"/><text x="{frame.left - 8}" '
            f'y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    marks += [
        f'<text x="{frame.across(tick):.1f}" y="{_HEIGHT - _BOTTOM + 20}" '
        f'text-anchor="middle">{tick:,.0f}</text>'
        for tick in _round_ticks(*frame.x, least=1.0)
    ]
    middle = (frame.left + _WIDTH - _RIGHT) / 2
    end = f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">step</text>'
    return [*marks, end]


def _key(x: int, name: str, colour: str) -> list[str]:
    return [
        f'<rect x="{x}" y="10" width="14" height="4" rx="2" fill="{colour}"/>',
        f'<text x="{x + 20}" y="17">{html.escape(printable(name))}</text>',
    ]


def _line(frame: _Frame, points: Points, colour: str) -> list[str]:
    places = [(frame.across(x), frame.up(y)) for x, y in _thin(points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = [
        f'<polyline points="{path}" fill="none" stroke="{colour}" '
        'stroke-width="2" stroke-linejoin="round"/>'
    ]
    if len(places) <= 40:
        marks += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
            for x, y in places
        ]
    return marks


def _round_ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """Up to seven round numbers from low to high, at least `least` apart."""
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = max(next(m * power for m in (1, 2, 5, 10) if m * power >= rough), least)
    first = math.ceil(low / step)
    return [float(n * step) for n in range(first, math.floor(high / step) + 1)]


def _thin(points: Points, most: int = 400) -> Points:
    """At most about `most` points, each the mean of neighbours."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (group[-1][0], math.fsum(y for _, y in group) / len(group)) for group in groups
    ]


def number(value: float) -> str:
    """A number with three digits, or with commas between thousands."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
