"""What a run folder tells of its run, and runs side by side."""

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from afterimage.checkpoints.errors import CheckpointError
from afterimage.errors import UserError
from afterimage.pictures import draw_rows
from afterimage.report import comparison, notebook, read_run, run_html, write_comparison
from afterimage.runs import write_png


@pytest.fixture
def folder(tmp_path):
    def make(name, *, rows, picture=False, finished=False, **settings):
        path = tmp_path / name
        path.mkdir()
        data = {"name": "digits", "fingerprint": "0" * 64}
        config = {"kind": "pretrain", "config": settings, "data": data}
        (path / "config.json").write_text(json.dumps(config))
        (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        if picture:
            image = draw_rows({"input": np.zeros((2, 8, 8, 1))})
            write_png(image, path / "pictures" / "step-0000010.png")
        if finished:
            (path / "encoder").mkdir()
            (path / "encoder" / "manifest.json").write_text("{}")
        return path

    return make


ROWS = [
    {"step": 5, "train/loss": 0.9},
    {"step": 10, "train/loss": 0.5, "eval/loss": 0.6, "eval/knn": None},
]


def test_of_a_run_that_goes_on(folder):
    record = read_run(folder("a", rows=ROWS, picture=True, steps=20, lr=0.1))
    assert (record.kind, record.data) == ("pretrain", "digits")
    assert (record.step, record.steps, record.finished) == (10, 20, False)
    assert record.figures == {"loss": 0.6}
    assert record.curves["train/loss"] == [(5, 0.9), (10, 0.5)]
    assert record.settings["lr"] == 0.1
    assert record.picture is not None


def test_the_table_has_what_differs_and_what_is_shared(folder):
    one = folder("a", rows=ROWS, lr=0.1, seed=0, objective={"name": "plain"})
    rows = [{"step": 3, "eval/loss": 0.4, "eval/ridge": 0.9}]
    masked = {"name": "masked", "ratio": 0.6}
    two = folder("b", rows=rows, finished=True, lr=0.2, seed=0, objective=masked)
    header, table = comparison([read_run(one), read_run(two)])
    assert header == ["run", "step", "lr", "objective", "masked.ratio", "loss"]
    assert table[0] == [str(one), "10 (not finished)", 0.1, "plain", None, 0.6]
    assert table[1] == [str(two), "3", 0.2, "masked", 0.6, 0.4]


def test_settings_are_called_as_their_flags_are(folder):
    methods = [{"name": "dann", "weight": w} for w in (1.0, 0.1)]
    runs = [
        read_run(
            folder(str(i), rows=ROWS, from_=str(i), methods=[{"name": "coral"}, m])
        )
        for i, m in enumerate(methods)
    ]
    header, table = comparison(runs)
    assert header[2:4] == ["from", "dann.weight"]
    assert [row[2:4] for row in table] == [["0", 1.0], ["1", 0.1]]


def test_the_page_draws_the_runs_in_one_chart(folder, tmp_path):
    # Two evaluations of the loss; a curve of one `ridge` would be a dot.
    rows = [*ROWS, {"step": 15, "eval/loss": 0.5, "eval/ridge": 0.9}]
    runs = [read_run(folder(n, rows=rows, picture=True, lr=n)) for n in "ab"]
    page = write_comparison(tmp_path / "page.html", runs).read_text()
    body = ET.fromstring(page[page.index("<body>") : page.index("</html>")])
    charts = [svg.get("aria-label") for svg in body.iter("svg")]
    assert charts == ["eval/loss", "train/loss"]
    assert page.count("<polyline") == 4
    assert page.count("<img") == 2


@pytest.mark.parametrize(
    ("content", "kind"), [(None, UserError), ("{", CheckpointError)]
)
def test_what_is_no_run_or_damaged(tmp_path, content, kind):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(kind, match=r"config\.json"):
        read_run(tmp_path)


def test_no_runs():
    with pytest.raises(UserError, match="run"):
        comparison([])


def test_a_notebooks_cell_is_small_and_whole(tmp_path):
    wide = write_png(np.zeros((400, 3000, 3), np.uint8), tmp_path / "p.png")
    html = notebook(
        title="<run>",
        headline={"loss": "0.1"},
        curves={"loss": {"training": [(i, 1.0) for i in range(10_000)]}},
        picture=("step 10", wide),
        unfinished=(10, 2000),
    )
    ET.fromstring(html)
    assert "&lt;run&gt;" in html
    assert "step 10 of 2,000" in html
    assert len(html) < 30_000
    assert not re.search(r'(src|href)="(?!data:)', html)


def test_a_picture_that_is_gone_is_left_out(tmp_path):
    html = notebook(title="x", picture=("step 10", tmp_path / "gone.png"))
    assert "<img" not in html


def test_a_run_in_a_notebook(folder):
    html = run_html(folder("a", rows=ROWS, picture=True, steps=20))
    ET.fromstring(html)
    assert "step 10 of 20" in html
    assert html.count("<polyline") == 2
    assert html.count("<img") == 1
