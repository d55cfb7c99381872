"""The report is one well-formed, self-contained page holding what it was given."""

import re
import xml.etree.ElementTree as ET

import numpy as np

from afterimage.pictures import draw_rows
from afterimage.report import logged, write_report
from afterimage.runs import write_png


def report(tmp_path, **changes):
    drawn = draw_rows({"input": np.zeros((2, 8, 8, 1))})
    picture = write_png(drawn, tmp_path / "p.png")
    content = {
        "title": "digits <pretraining>",
        "lead": "runs/a & b",
        "headline": {"validation loss": "0.12"},
        "curves": {"Loss": {"training": [(i, 1 / (i + 1)) for i in range(1000)]}},
        "pictures": {"Reconstructions": ("step 20", picture)},
        "probes": {
            "raw pixels": {"kNN": 0.91, "ridge probe": 0.8},
            "this encoder": {"kNN": 0.95, "ridge probe": 0.97},
        },
        "probe_note": "On 300 validation images.",
        "tables": {"Settings": {"lr": 1e-3, "ema": None, "betas": (0.9, 0.95)}},
    }
    path = write_report(tmp_path / "report.html", **(content | changes))
    return path.read_text(encoding="utf-8")


def test_page_holds_everything_and_needs_nothing_else(tmp_path):
    page = report(tmp_path)
    assert "digits &lt;pretraining&gt;" in page
    assert "runs/a &amp; b" in page
    assert "data:image/png;base64," in page
    assert '<td class="number best">97.0 %</td>' in page
    assert '<td class="number">91.0 %</td>' in page
    assert "<td>betas</td><td>0.9, 0.95</td>" in page
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    body = page[page.index("<body>") : page.index("</html>")]
    ET.fromstring(body)  # every tag closed, every character escaped


def test_what_is_absent_is_left_out(tmp_path):
    page = report(tmp_path, probes={}, pictures={}, curves={"Loss": {"training": []}})
    assert "What the features are worth" not in page
    assert "<img" not in page
    assert "<svg" not in page


def test_curves_named_logarithmic_are_drawn_so(tmp_path):
    curves = {"Loss": {"a": [(0, 1.0), (1, 10.0), (2, 1000.0)]}}
    pages = [report(tmp_path, curves=curves, logarithmic=n) for n in (["Loss"], [])]
    drawn = [re.search('points="([^"]*)"', page).group(1) for page in pages]
    assert drawn[0] != drawn[1]


def test_logged_takes_the_lines_that_have_the_value():
    rows = [{"step": 1, "a": 0.5}, {"step": 2}, {"step": 3, "a": None}]
    assert logged(rows, "a") == [(1, 0.5)]
