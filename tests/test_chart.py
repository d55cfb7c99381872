"""A line chart shows what it was given, where it belongs."""

import xml.etree.ElementTree as ET

import pytest

from afterimage.report import line_chart


def test_places_points_and_survives_what_is_not_finite():
    svg = line_chart({"a": [(0, 1.0), (5, float("nan")), (10, 3.0)]}, "loss")
    line = ET.fromstring(svg).find("polyline").get("points")
    first, last = (tuple(map(float, p.split(","))) for p in line.split())
    assert first[0] < last[0]
    assert first[1] > last[1]
    assert "nan" not in svg


def test_is_thinned_by_means():
    points = [(i, float(i % 2)) for i in range(10_000)]
    line = ET.fromstring(line_chart({"a": points}, "x")).find("polyline").get("points")
    heights = {p.split(",")[1] for p in line.split()}
    assert len(line.split()) <= 400
    assert len(heights) <= 2  # means of neighbours, not the noise


def places(svg):
    line = ET.fromstring(svg).find("polyline").get("points")
    return [tuple(map(float, point.split(","))) for point in line.split()]


def test_axis_is_logarithmic_only_where_asked_and_useful():
    wide = {"a": [(0, 1.0), (1, 10.0), (2, 100.0)]}
    (_, low), (_, middle), (_, high) = places(line_chart(wide, "x", logarithmic=True))
    assert low - middle == pytest.approx(middle - high, abs=0.2)
    (_, low), (_, middle), (_, high) = places(line_chart(wide, "x"))
    assert low - middle == pytest.approx((middle - high) / 10, abs=0.2)
    for values in ([1.0, 2.0, 3.0], [0.0, 1.0, 100.0]):
        series = {"a": list(enumerate(values))}
        assert line_chart(series, "x", logarithmic=True) == line_chart(series, "x")


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("scale", [1e-7, 1e-4, 1, 1e4, 1e9])
def test_labels_of_the_axis_lie_on_the_page(scale, logarithmic):
    series = {"a": [(i, scale * (1.05 + i)) for i in range(30)]}
    svg = ET.fromstring(line_chart(series, "x", logarithmic=logarithmic))
    labels = [t for t in svg.iter("text") if t.get("text-anchor") == "end"]
    assert len(labels) >= 3
    for label in labels:
        # Digits of this type are 0.6 of its size wide.
        assert float(label.get("x")) >= 0.6 * 13 * len(label.text)


def test_of_one_point_and_of_none():
    assert "polyline" in line_chart({"a": [(3, 2.0)]}, "x")
    assert "Nothing" in line_chart({"a": []}, "x")
