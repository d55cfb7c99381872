"""Charts as inline SVG: lines over steps, calibration, predicted over true values.

Colours are the variables of the page (`page.html`), so that they follow its light or
dark mode; without a page, the values after the comma hold.
"""

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from afterimage.checkpoints.names import printable

Points = Sequence[tuple[float | int, float]]
Place = tuple[float | int, float | int]
"""Pixels across and down."""

COLOURS = 8
"""Colours of the page, `--c0` to `--c7`; further series are dashed."""
_FIRST = ("#2563a8", "#c2570c", "#3f7d20", "#8b4fa8")
_INK, _GRID = "var(--soft, #5c6470)", "var(--grid, #e6e9ed)"
_WIDTH, _HEIGHT, _RIGHT, _TOP, _BOTTOM = 440, 250, 14, 12, 42  # of a chart, pixels


def line_chart(
    series: Mapping[str, Points], label: str, *, logarithmic: bool = False
) -> str:
    """Named series of (x, y) as one inline SVG; values that are not finite are gaps.

    With `logarithmic` the y axis is logarithmic if all values are positive and span a
    factor of ten. The names belong in a key beside it: series `i` has `colour(i)`, and
    is dashed if `dashed(i)`.
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
    for i, (name, points) in enumerate(finite.items()):
        if points:
            marks += _line(frame, points, i, name)
    return _svg(_WIDTH, _HEIGHT, label, marks)


def colour(number: int) -> str:
    """The CSS colour of the series of this number."""
    number %= COLOURS
    return f"var(--c{number}, {_FIRST[number % len(_FIRST)]})"


def dashed(number: int) -> bool:
    """Whether the line of the series of this number is dashed."""
    return number >= COLOURS


def calibration_chart(bins: Sequence[Mapping[str, Any]], label: str) -> str:
    """A reliability diagram: accuracy over confidence, both in percent.

    `bins` are those of `afterimage.evaluation.calibration_bins`. A point has the area
    of its share of the images; on the diagonal, confidence equals accuracy.
    """
    square = _Square((0.0, 100.0), [0.0, 25.0, 50.0, 75.0, 100.0])
    full = sum(one["count"] for one in bins) or 1
    marks = square.marks("how sure it was, %", "how often it was right, %")
    used = [
        (one["count"], 100 * one["confidence"], 100 * one["accuracy"])
        for one in bins
        if one["count"]
    ]
    for _, sure, right in used:
        marks.append(_segment(square.at(sure, right), square.at(sure, sure), "gap"))
    marks.append(_polyline([square.at(sure, right) for _, sure, right in used], 0))
    for count, sure, right in used:
        said = f"{count} images: {sure:.1f} % sure on average, {right:.1f} % right"
        radius = 2.5 + 9 * math.sqrt(count / full)
        marks.append(_dot(square.at(sure, right), radius, said))
    return square.svg(label, marks)


def scatter_chart(points: Points, label: str) -> str:
    """Predicted over true values, as points (true, predicted) in one unit.

    On the diagonal a prediction is exact. Points that are not finite are left out.
    """
    every = [(float(x), float(y)) for x, y in points]
    finite = [point for point in every if all(map(math.isfinite, point))]
    if not finite:
        return '<p class="note">No value is known.</p>'
    low, high = min(map(min, finite)), max(map(max, finite))
    margin = 0.05 * (high - low) or 0.5 * (abs(low) or 1)
    low, high = low - margin, high + margin
    square = _Square((low, high), _round_ticks(low, high, most=4))
    marks = square.marks("true", "predicted")
    for x, y in finite:
        marks.append(_dot(square.at(x, y), 3.0, f"{number(x)}: predicted {number(y)}"))
    return square.svg(label, marks)


@dataclasses.dataclass(frozen=True)
class _Square:
    """A square chart with the same range and ticks on both axes."""

    range: tuple[float, float]
    ticks: Sequence[float]

    _SIZE: ClassVar[int] = 250
    _TOP: ClassVar[int] = 12

    @property
    def _left(self) -> int:
        return 20 + 8 * max([3, *(len(number(tick)) for tick in self.ticks)])

    def at(self, x: float | int, y: float | int) -> Place:
        low, high = self.range
        right, up = ((value - low) / (high - low) for value in (x, y))
        return self._left + right * self._SIZE, self._TOP + (1 - up) * self._SIZE

    def marks(self, across: str, up: str) -> list[str]:
        """The grid, the dashed diagonal, the numbers and names of both axes."""
        (low, high), left, bottom = self.range, self._left, self._TOP + self._SIZE
        found = []
        for tick in self.ticks:
            x, y = self.at(tick, tick)
            found += [
                _segment((left, y), (left + self._SIZE, y), _GRID),
                _text(left - 7, y + 4, number(tick), "end"),
                _text(x, bottom + 18, number(tick), "middle"),
            ]
        found.append(_segment(self.at(low, low), self.at(high, high), _INK, "5 4"))
        middle = self._TOP + self._SIZE / 2
        return [
            *found,
            _text(left + self._SIZE / 2, bottom + 38, across, "middle"),
            f'<text transform="translate(13 {middle}) rotate(-90)" '
            f'text-anchor="middle">{up}</text>',
        ]

    def svg(self, label: str, marks: Sequence[str]) -> str:
        width, height = self._left + self._SIZE + 16, self._TOP + self._SIZE + 46
        return _svg(width, height, label, marks)


def _dot(place: Place, radius: float, said: str) -> str:
    x, y = place
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" '
        f'style="fill:{colour(0)};fill-opacity:.75"><title>{said}</title></circle>'
    )


def _svg(
    width: float | int, height: float | int, label: str, marks: Sequence[str]
) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(printable(label))}" '
        f'font-family="system-ui, sans-serif" font-size="13" '
        f'style="fill:{_INK}">{"".join(marks)}</svg>'
    )


def _text(x: float | int, y: float | int, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _segment(one: Place, other: Place, stroke: str, dash: str = "") -> str:
    """A straight line; `gap` is the colour of a distance from what should be."""
    stroke = "var(--bad, #b42318)" if stroke == "gap" else stroke
    more = f' stroke-dasharray="{dash}"' if dash else ""
    (x1, y1), (x2, y2) = one, other
    return (
        f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"{more} '
        f'style="stroke:{stroke}"/>'
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
        left = 14 + 8 * max(len(number(tick)) for tick in ticks)
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
        marks += [
            _segment((frame.left, y), (_WIDTH - _RIGHT, y), _GRID),
            _text(frame.left - 7, y + 4, number(tick), "end"),
        ]
    for tick in _round_ticks(*frame.x, least=1.0, most=4):
        # The last label must not leave the chart.
        half = 4 * len(f"{tick:,.0f}")
        x = min(frame.across(tick), _WIDTH - half)
        marks.append(_text(x, _HEIGHT - _BOTTOM + 18, f"{tick:,.0f}", "middle"))
    middle = (frame.left + _WIDTH - _RIGHT) / 2
    return [*marks, _text(middle, _HEIGHT - 5, "step", "middle")]


def _line(frame: _Frame, points: Points, series: int, name: str) -> list[str]:
    places = [(frame.across(x), frame.up(y)) for x, y in _thin(points)]
    marks = [_polyline(places, series, name)]
    if len(places) <= 40:
        marks += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" style="fill:{colour(series)}"/>'
            for x, y in places
        ]
    return marks


def _polyline(places: Sequence[Place], series: int, name: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = ' stroke-dasharray="6 4"' if dashed(series) else ""
    title = f"<title>{html.escape(printable(name))}</title>" if name else ""
    return (
        f'<polyline points="{path}" fill="none" stroke-width="2" '
        f'stroke-linejoin="round"{dash} '
        f'style="stroke:{colour(series)};fill:none">{title}</polyline>'
    )


def _round_ticks(low: float, high: float, least: float = 0.0, most: int = 6) -> list:
    """Up to `most` + 1 round numbers from low to high, at least `least` apart."""
    rough = (high - low) / most
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


def number(value: float | int) -> str:
    """A number with three digits, or with commas between thousands."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
