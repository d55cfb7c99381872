"""A line chart as one inline SVG, for the report."""

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence

from afterimage.checkpoints.names import printable

Points = Sequence[tuple[float | int, float]]

_COLOURS = ("#2563a8", "#d9730d", "#4d7c3a", "#8b4fa8")
_WIDTH, _HEIGHT, _RIGHT, _TOP, _BOTTOM = 840, 300, 28, 34, 40


def line_chart(
    series: Mapping[str, Points], label: str, *, logarithmic: bool = False
) -> str:
    """Named series of (x, y) as one inline SVG; values that are not finite are gaps.

    With `logarithmic` the y axis is, where all values are positive and span a factor
    of ten.
    """
    finite = {
        name: [(float(x), float(y)) for x, y in points if math.isfinite(y)]
        for name, points in series.items()
    }
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    if not xs:
        return '<p class="note">Nothing was logged yet.</p>'
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
    """The ranges shown, y as a logarithm where so asked, and where they lie."""

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
        # A digit is about 8 units wide at this size of type.
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
    return [
        *marks,
        f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">step</text>',
    ]


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
    """Up to seven round numbers from low to high, `least` or more apart."""
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = max(next(m * power for m in (1, 2, 5, 10) if m * power >= rough), least)
    first = math.ceil(low / step)
    return [float(n * step) for n in range(first, math.floor(high / step) + 1)]


def _thin(points: Points, most: int = 400) -> Points:
    """At most about `most` points: means of neighbours, so that noise is not lost."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (group[-1][0], math.fsum(y for _, y in group) / len(group)) for group in groups
    ]


def number(value: float) -> str:
    """Three digits, or thousands with commas."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
