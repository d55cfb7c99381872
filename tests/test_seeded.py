"""What `benchmarks.seeded` stores of a run's files, and what it calls a difference."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import seeded

LOG = [
    {"step": 1, "train/loss": 0.1, "train/skipped": 0, "time/input_stall": 0.5},
    {"step": 1, "eval/loss": 0.3, "eval/words": "none"},
    {"step": 2, "train/loss": 0.2},
]
ARRAYS = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}


def write(folder, *, arrays=ARRAYS, log=LOG, accuracy=0.9):
    (folder / "encoder").mkdir(parents=True)
    save_file(arrays, folder / "encoder" / "weights.safetensors")
    lines = "".join(json.dumps(row) + "\n" for row in log)
    (folder / "metrics.jsonl").write_text(lines)
    results = {"test": [{"accuracy": accuracy}], "runtime": {"cores": 3}}
    results["sources"] = {f"npz:{folder.parent}/a.npz": 7}
    (folder / "results.json").write_text(json.dumps(results))
    return seeded.record(folder)


def test_every_number_but_those_of_the_machine_is_stored_exactly(tmp_path):
    found = write(tmp_path / "run")
    loss = (0.1).hex()
    assert found["step 1"] == {
        "train/loss": loss,
        "train/skipped": "0",
        "eval/loss": (0.3).hex(),
    }
    assert found["step 2"] == {"train/loss": (0.2).hex()}
    assert sorted(found["end"]) == [
        "encoder/names",
        "encoder/numbers",
        "results/sources/npz:/a.npz",
        "results/test/0/accuracy",
    ]
    again = write(tmp_path / "elsewhere" / "run")
    assert seeded.difference(found, again) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"accuracy": np.nextafter(0.9, 1)}, "end, results/test/0/accuracy"),
        ({"log": [LOG[0], LOG[1], {**LOG[2], "train/loss": 0.25}]}, "step 2, train/"),
        ({"log": LOG[:2]}, "missing"),
        ({"arrays": {**ARRAYS, "b": ARRAYS["b"] - 0.0}}, None),
        ({"arrays": {**ARRAYS, "b": -ARRAYS["b"]}}, "end, encoder/numbers"),
        ({"arrays": {"a": ARRAYS["a"], "c": ARRAYS["b"]}}, "end, encoder/names"),
        ({"log": [*LOG, {"step": 3, "train/loss": 0.1}]}, None),
    ],
)
def test_the_first_difference_is_named(tmp_path, changed, said):
    """Down to the last bit and the sign of a zero; a number more is none."""
    old, new = write(tmp_path / "old"), write(tmp_path / "new", **changed)
    found = seeded.difference(old, new)
    assert (found is None) if said is None else (said in str(found))


def test_a_name_that_changed_is_no_difference(tmp_path, monkeypatch):
    old = write(tmp_path / "old")
    log = [{k.replace("train/", "fit/"): v for k, v in row.items()} for row in LOG]
    new = write(tmp_path / "new", log=log)
    assert "missing" in str(seeded.difference(old, new))
    monkeypatch.setattr(seeded, "RENAMED", {"train": "fit"})
    assert seeded.difference(old, new) is None
    monkeypatch.setattr(seeded, "RENAMED", {"train": None})
    assert seeded.difference(old, new) is None


def test_comparing_counts_the_runs_that_differ_or_are_missing(tmp_path):
    same, other = {"end": {"a": "1"}}, {"end": {"a": "2"}}
    for name, runs in (
        ("old", {"x": same, "y": same, "z": same}),
        ("new", {"x": same, "y": other, "w": same}),
    ):
        content = {"machine": {}, "runs": runs}
        (tmp_path / name).write_text(json.dumps(content))
    old, new = tmp_path / "old", tmp_path / "new"
    assert seeded.compare(old, new, []) == 2
    assert seeded.compare(old, old, []) == 0
    assert seeded.compare(old, new, ["x"]) == 0
    assert seeded.compare(old, new, ["w"]) == 1
