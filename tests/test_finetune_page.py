"""What a classifier's page shows: examples, confusions, calibration, the control."""

import json
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from afterimage.evaluation.classification import calibration_bins, calibration_error
from afterimage.finetune.control import control
from afterimage.finetune.examples import chosen
from afterimage.finetune.figures import diagrams, figure
from afterimage.finetune.run import finetune
from tests.test_finetune_program import config, home

__all__ = ["home"]


def body_of(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    return ET.fromstring(page[page.index("<body>") : page.index("</html>")])


def text_of(element):
    return "".join(element.itertext())


def section(body, heading):
    return next(
        one
        for one in body.iter("section")
        if (h2 := one.find("h2")) is not None and h2.text == heading
    )


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_bins_have_the_means_of_their_images(bins):
    rng = np.random.default_rng(bins)
    p = rng.dirichlet([0.5] * 3, 200)
    labels = rng.integers(0, 3, 200)
    found = calibration_bins(p, labels, bins=bins)
    sure, right = p.max(1), p.argmax(1) == labels
    expected = [
        (int(mine.sum()), sure[mine].mean(), right[mine].mean())
        for low in np.arange(bins) / bins
        for mine in [(sure > low) & (sure <= low + 1 / bins)]
        if mine.any()
    ]
    got = [(one["count"], one["confidence"], one["accuracy"]) for one in found]
    np.testing.assert_allclose(got, expected)
    gaps = sum(c * abs(a - s) for c, s, a in got) / 200
    assert gaps == pytest.approx(calibration_error(p, labels, bins=bins))


def test_the_surest_mistakes_come_first_and_each_class_has_its_surest_answer():
    truth = np.array([0, 0, 1, 1, 2, 2])
    predicted = np.array([0, 1, 1, 1, 0, 0])
    sure = np.array([0.9, 0.6, 0.5, 0.8, 0.7, 0.95])
    wrong, right = chosen(truth, predicted, sure)
    assert wrong.tolist() == [5, 4, 1]
    assert right.tolist() == [0, 3]
    wrong, right = chosen(truth, truth, sure)
    assert wrong.tolist() == []
    assert right.tolist() == [0, 3, 5]


@pytest.fixture
def finished(home, tmp_path):
    return finetune(config(home, tmp_path / "run", mode="probe", steps=20))


def test_the_page_has_the_numbers_of_the_run(finished):
    body, test = body_of(finished.run), finished.results["test"]
    table = section(body, "Which classes it confuses").find(".//table")
    names, *rows = ([text_of(cell) for cell in row] for row in table.iter("tr"))
    assert names[1:] == [one["name"] for one in test["classes"]]
    counts = [[0 if cell == "·" else int(cell) for cell in row[1:]] for row in rows]
    assert counts == test["confusion"]
    circles = section(body, "How sure it is, and how often right").iter("circle")
    assert len(list(circles)) == len(test["calibration"])
    said = " ".join(text_of(card) for card in body.iter("b"))
    assert f"{100 * test['accuracy']['value']:.1f} %" in said
    mistakes = test["examples"] - sum(np.diag(test["confusion"]))
    if mistakes:
        note = text_of(section(body, "Mistakes"))
        assert f"{mistakes} mistakes among {test['examples']} images" in note
    else:
        assert section(body, "Right answers") is not None


@pytest.mark.slow
def test_where_it_looked_is_shown_if_the_run_was_long_enough(home, tmp_path):
    """5 steps of 60 images are too few; 70 pay for the images explained."""
    wide = {}
    for steps in (5, 70):
        settings = {"mode": "probe", "steps": steps, "batch_size": 60}
        run = finetune(config(home, tmp_path / f"{steps}", **settings)).run
        tiles = [
            one
            for one in body_of(run).iter("div")
            if (one.get("class") or "").startswith("tiles")
        ]
        wide[steps] = ["pairs" in one.get("class") for one in tiles]
    assert wide[5]
    assert not any(wide[5])
    assert wide[70]
    assert all(wide[70])


def copy_of(run, place, **changes):
    """A copy of a finished run with other settings."""
    shutil.copytree(run, place)
    stored = json.loads((place / "config.json").read_text())
    stored["config"] |= changes
    (place / "config.json").write_text(json.dumps(stored))
    return place


def test_the_control_is_the_same_labels_from_random_weights(finished):
    run, beside = finished.run, finished.run.parent
    assert control(run, finished.results) is None
    scratch = {"mode": {"name": "scratch"}}
    copy_of(run, beside / "other", **scratch, seed=7)
    copy_of(run, beside / "pretrained")
    damaged = copy_of(run, beside / "damaged", **scratch)
    (damaged / "results.json").write_text("{")
    unfinished = copy_of(run, beside / "unfinished", **scratch)
    (unfinished / "results.json").unlink()
    assert control(run, finished.results) is None
    place = copy_of(run, beside / "scratch", **scratch, lr=0.5)
    table = control(run, finished.results)
    assert [row[0] for row in table.rows] == ["this run", str(place)]
    assert table.rows[1][1] == "random weights"
    assert table.rows[1][4] == "lr 0.5"
    assert "+0.0 points" in table.note
    back = control(place, finished.results)
    assert {row[0] for row in back.rows} == {
        "this run", str(run), str(beside / "pretrained"),
    }  # fmt: skip


def test_many_classes_have_a_list_of_confusions():
    counts = np.eye(25, dtype=int) * 3
    counts[3, 7], counts[8, 2] = 2, 5
    classes = [{"name": f"c{i}", "support": 3} for i in range(25)]
    found = diagrams({"classes": classes, "confusion": counts.tolist()})
    assert list(found) == ["Which classes it confuses"]
    (table,) = found.values()
    assert table.rows == [["c8", "c2", 5], ["c3", "c7", 2]]


def test_accuracy_is_good_if_it_beats_the_most_frequent_class():
    classes = [{"name": "a", "support": 60}, {"name": "b", "support": 40}]
    for low, mark in ((0.5, "bad"), (0.7, "good")):
        share = {"value": 0.8, "low": low, "high": 0.9}
        scored = {"classes": classes, "examples": 100, "accuracy": share}
        found = figure("accuracy", scored)
        assert found.mark == mark
        assert "saying a would give 60.0 %" in found.hint
