"""Rows of results: complete, and readable beside the JSON."""

import json

import pytest

from benchmarks import readme
from benchmarks.results import row, write_results


def test_a_row_says_where_when_and_how():
    entry = row("input", "cache", "images/s", [1.0, 2.0, 3.0], note="x")
    assert (entry["mean"], entry["std"], entry["n"]) == (2.0, 1.0, 3)
    assert entry["note"] == "x"
    wanted = {"table", "row", "metric", "mean", "std", "n", "device", "date"}
    assert wanted | {"versions", "command", "note"} == set(entry)
    assert "jax" in entry["versions"]


def test_one_value_has_no_spread():
    assert row("t", "r", "m", 4.0)["std"] is None


def test_json_and_table_are_written_side_by_side(tmp_path):
    rows = [row("t", "a", "images/s", [123456.0, 123458.0]), row("t", "b", "s", 0.5)]
    path = write_results("name", rows, title="A title", folder=tmp_path)
    assert json.loads(path.read_text()) == rows
    page = (tmp_path / "name.md").read_text()
    assert page.startswith("# A title\n")
    assert "| a | images/s | 123,457 ± 1 | 2 |" in page
    assert "| b | s | 0.500 | 1 |" in page
    assert len(list(tmp_path.iterdir())) == 2


def test_a_result_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(ValueError):
        write_results("name", [row("t", "r", "m", float("nan"))], folder=tmp_path)


def test_the_tables_of_the_readme_are_the_results():
    text = readme.README.read_text()
    assert readme.filled(text) == text, "python -m benchmarks.readme"
