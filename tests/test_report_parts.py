"""What a page's parts show is what the run did: time, settings, names, pictures."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from afterimage import console
from afterimage.pictures import draw_rows
from afterimage.report import (
    Diagram,
    Figure,
    Gallery,
    Matrix,
    Table,
    Tile,
    calibration_chart,
    scatter_chart,
    write_report,
)
from afterimage.runs import write_png
from afterimage.sessions import Sessions, duration

HOSTILE = ["<script>alert(1)</script>", '"><img src=x>', "a\x1b[2J\u202eb", "{{ 7*7 }}"]


def page_of(tmp_path, **content):
    path = write_report(tmp_path / "p.html", title="t", lead="l", **content)
    return path.read_text(encoding="utf-8")


def body_of(page):
    return ET.fromstring(page[page.index("<body>") : page.index("</html>")])


def text_of(element):
    return "".join(element.itertext())


def test_hostile_names_are_text_in_every_part(tmp_path):
    tile = Tile.of(np.zeros((4, 4, 3), np.uint8), HOSTILE[0], "bad")
    name, several = HOSTILE[0], dict.fromkeys(HOSTILE, 1)
    page = page_of(
        tmp_path,
        facts=several,
        command=f"afterimage pretrain {name}",
        headline={n: Figure(n, n, "good", n) for n in HOSTILE},
        parts={
            name: Gallery(name, [(name, [tile])]),
            HOSTILE[1]: Matrix(name, HOSTILE, np.eye(4, dtype=int).tolist()),
            HOSTILE[2]: Table(HOSTILE, [HOSTILE], name, HOSTILE),
            HOSTILE[3]: Diagram(name, calibration_chart([], name)),
        },
        curves={name: {n: [(1, 2.0), (2, 3.0)] for n in HOSTILE}},
        grids={name: (HOSTILE, [HOSTILE])},
        settings={n: (n, None) for n in HOSTILE},
        tables={name: several},
    )
    body = body_of(page)
    assert "script" not in {element.tag for element in body.iter()}
    assert len(list(body.iter("img"))) == 1
    assert not re.search("[\x00-\x08\x1b\u202e]", page)
    assert "49" not in text_of(body)
    assert text_of(next(body.iter("pre"))) == f"afterimage pretrain {name}"


def test_settings_that_differ_are_exactly_those(tmp_path):
    settings = {
        "lr": (0.1, 0.001),
        "betas": ([0.9, 0.9], [0.9, 0.9]),
        "from_": ("runs/a", dataclasses.MISSING),
        "labels_per_class": (3, None),
        "ema": (0.0, 0.0),
    }
    section = next(
        found
        for found in body_of(page_of(tmp_path, settings=settings)).iter("section")
        if "differ" in text_of(found)
    )
    changed = [[text_of(c) for c in row] for row in section.find("table").iter("tr")]
    assert changed[1:] == [
        ["lr", "0.1", "0.001"],
        ["from", "runs/a", "–"],
        ["labels-per-class", "3", "–"],
    ]
    folded = [text_of(row) for row in section.find("details").iter("tr")]
    assert folded == ["betas0.9, 0.9", "ema0"]


def test_the_time_of_all_sessions_is_summed_and_commands_are_kept(tmp_path):
    file = tmp_path / "sessions.json"
    for number, command in enumerate(["a 1", "a 1", "b\x1b"]):
        token = console.COMMAND.set(command)
        sessions = Sessions(file)
        sessions.open()
        sessions.keep()
        stored = json.loads(file.read_text())
        assert stored["sessions"] == number + 1
        stored["seconds"] += 100
        file.write_text(json.dumps(stored))
        console.COMMAND.reset(token)
    again = Sessions(file)
    again.open()
    assert again.commands == ["a 1", "b\\x1b"]
    assert again.facts()["Duration"] == "5 min, in 4 sessions"


@pytest.mark.parametrize("content", ["{", '{"seconds": -1}', "[]"])
def test_a_damaged_file_of_sessions_costs_only_the_time(tmp_path, content):
    file = tmp_path / "sessions.json"
    file.write_text(content)
    sessions = Sessions(file)
    sessions.open()
    sessions.keep()
    assert json.loads(file.read_text())["sessions"] == 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "under a second"),
        (59.6, "1 min"),
        (125, "2 min 5 s"),
        (7200, "2 h"),
        (90_061, "1 d 1 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds, said):
    assert duration(seconds) == said


@pytest.mark.slow
def test_a_page_of_large_photos_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    # Smooth noise, harder to compress than photos.
    small = rng.integers(0, 256, (8, 40, 40, 3), np.uint8)
    photos = np.repeat(np.repeat(small, 6, 1), 6, 2)
    tiles = [Tile.of(photo) for photo in photos]
    sheet = draw_rows({str(i): photos / np.float32(255) for i in range(8)})
    picture = write_png(sheet, tmp_path / "p.png")
    page = page_of(
        tmp_path,
        parts={str(i): Gallery("", [("", tiles)] * 8) for i in range(2)},
        pictures={str(i): ("", picture) for i in range(3)},
    )
    assert len(page) < 2_000_000
    assert page.count("<img") == 2 * 8 * 8 + 3


def test_a_calibration_chart_places_points_by_confidence_and_accuracy():
    bins = [
        {"count": 1, "confidence": 0.25, "accuracy": 0.25},
        {"count": 9, "confidence": 0.75, "accuracy": 0.5},
    ]
    svg = ET.fromstring(calibration_chart(bins, "x"))
    one, other = svg.iter("circle")
    x, y, r = ([float(c.get(k)) for c in (one, other)] for k in ("cx", "cy", "r"))
    lines = [line for line in svg.iter("line") if line.get("stroke-dasharray")]
    ends = [float(lines[0].get(k)) for k in ("x1", "y1", "x2", "y2")]
    left, bottom, right, top = ends  # the diagonal, from (0, 0) to (1, 1)
    np.testing.assert_allclose(x, left + (right - left) * np.array([0.25, 0.75]), 1e-3)
    np.testing.assert_allclose(y, bottom + (top - bottom) * np.array([0.25, 0.5]), 1e-3)
    assert r[1] > r[0]
    assert "9 images: 75.0 % sure on average, 50.0 % right" in text_of(other)


def test_a_scatter_chart_has_exact_predictions_on_the_diagonal():
    svg = ET.fromstring(scatter_chart([(-3, -3.0), (7, 2.0), (1, float("nan"))], "x"))
    exact, low = svg.iter("circle")
    (line,) = (line for line in svg.iter("line") if line.get("stroke-dasharray"))
    left, bottom, right, top = (float(line.get(k)) for k in ("x1", "y1", "x2", "y2"))
    x, y = (np.array([float(c.get(k)) for c in (exact, low)]) for k in ("cx", "cy"))
    across, up = (x - left) / (right - left), (bottom - y) / (bottom - top)
    np.testing.assert_allclose(across, up + np.array([0, 5 / 11]), atol=2e-3)
    assert "7: predicted 2" in text_of(low)
    assert "No value is known" in scatter_chart([], "x")
