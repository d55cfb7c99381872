"""Rows of results: complete, and readable beside the JSON."""

import json
import re

import pytest

from afterimage.finetune.presets import PRESETS as FINETUNE
from afterimage.pretrain.presets import PRESETS as PRETRAIN
from benchmarks import programs, published, readme
from benchmarks.recipes import ACCURACY, ERROR
from benchmarks.results import FOLDER, read_results, row, with_others, write_results
from benchmarks.transfer import Transfer


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


def test_rows_that_were_not_measured_now_are_kept(tmp_path):
    old = [row("t", name, "m", [1.0]) for name in ("a", "b")]
    write_results("own", old, folder=tmp_path)
    new = [row("t", "b", "m", [2.0]), row("t", "c", "m", [3.0])]
    every = with_others("own", new, folder=tmp_path)
    assert {one["row"]: one["mean"] for one in every} == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda f: f.name)
def test_no_row_names_a_folder_of_the_machine_that_measured_it(file):
    assert not re.findall(r'(?<=[\s:="])/\w+/\S*', file.read_text())


def test_a_rule_names_the_file_but_not_its_folder(monkeypatch):
    rule = "infomax: highest mutual information on npz:/some/folder/c.npz [train], 1/2"
    result = {"selection": {"rule": rule}}
    monkeypatch.setattr(programs, "finetuned", lambda **settings: (result, None))
    _, fields = programs.by_seed(Transfer(seeds=2), lambda seed: {})
    assert fields["selection"] == rule.replace("/some/folder/", "")


@pytest.mark.parametrize("page", readme.pages(), ids=lambda page: page.name)
def test_the_tables_of_the_pages_are_the_results(page):
    assert readme.filled(page) == page.read_text(), "python -m benchmarks.readme"


def test_a_short_table_links_to_the_commands_of_the_results(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- demo short table --><!-- end -->")
    text = readme.filled(page)
    (link,) = re.findall(r"\]\((.*?)\)", text)
    assert (tmp_path / link).resolve() == FOLDER / "demo.md"
    command = read_results("demo")[0]["command"]
    assert command not in text
    assert command in (tmp_path / link).read_text()
    assert text.startswith("<!-- demo short table -->\n\n| row |")


def test_a_table_of_labels_has_a_column_for_each_number():
    rows = [
        row("t", name, "m, %", [1.0, 2.0]) for name in ("a-b-10", "a-b-100", "c-10")
    ]
    lines = readme.labels_table(rows).splitlines()
    assert lines[0] == "| mode | 10 labels | 100 labels |"
    assert lines[2] == "| a-b | 1.5 ± 0.7 | 1.5 ± 0.7 |"
    assert lines[3] == "| c | 1.5 ± 0.7 | – |"


def test_a_table_of_rows_has_a_column_for_each_metric():
    rows = [row("t", "a", "x", 1.0, seconds=3.4), row("t", "a", "y", 2.0)]
    rows.append(row("t", "b", "x", 3.0))
    lines = readme.plain_table(rows).splitlines()
    assert lines[0] == "| row | x | y | seconds a run |"
    assert lines[2:4] == ["| a | 1.0 | 2.0 | 3 |", "| b | 3.0 | – | – |"]


@pytest.mark.parametrize(
    ("metric", "ours", "control", "aim", "gap", "says"),
    [
        (ERROR, 0.9, 1.2, 1.0, 0, "**aim**"),
        (ERROR, 1.0, 1.2, 1.0, 0, "**aim**"),
        (ERROR, 1.4, 1.6, 1.0, 0, "published"),
        (ERROR, 0.9, 0.8, 1.0, 0, "published"),  # no better than its control
        (ERROR, 2.1, 2.2, 1.0, 0, "no"),
        (ACCURACY, 2.1, 1.0, None, 1.0, "**aim**"),
        (ACCURACY, 2.1, 1.2, None, 1.0, "published"),  # ahead, but not by enough
        (ACCURACY, 2.0, 0.0, None, 0, "no"),  # level
    ],
)
def test_what_was_reached_is_said_of_figure_aim_and_control(
    metric, ours, control, aim, gap, says
):
    line = published.Published("p", "t", "r", "c", 2.0, aim, gap)
    rows = (row("t", name, metric, v) for name, v in (("r", ours), ("c", control)))
    assert published._reached(line, *rows) == says


def test_rows_that_were_measured_in_turn_are_of_one_command():
    turns = ("--only a b --steps 5 --tables t", "--steps 5 --tables t --only c")
    rows = [
        {**row("t", name, "x", 1.0), "command": f"python -m b {turn}", "device": "d"}
        for name, turn in zip("ac", turns)
    ]
    said = readme.plain_table(rows)
    assert f"`python -m b --steps 5 --tables t`, d, {rows[0]['date']}." in said
    rows[1]["command"] += " --seeds 9"
    assert "`python -m b --only a b --steps 5 --tables t`" in readme.plain_table(rows)


@pytest.mark.parametrize("presets", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_where_a_preset_has_its_results_there_are_some(presets):
    places = {preset.results for preset in presets.values()} - {""}
    assert places
    for place in places:
        page, _, section = place.partition("#")
        text = (FOLDER / page).read_text()
        assert not section or f"\n## {section}\n" in text
