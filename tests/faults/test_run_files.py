"""What a run wrote and reads again, damaged: set aside, or refused with exit code 3."""

import json
import os
import shutil

import numpy as np
import pytest

from afterimage.checkpoints import schemas
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.evaluation import Probes
from afterimage.pretrain.run import pretrain as run_program
from afterimage.runs import Run, write_json
from afterimage.training.metrics import MetricsWriter, NoMetrics

GOOD = [b'{"step": 1, "train/loss": 0.5}', b'{"step": 2, "note": "x", "a": null}']
BAD = {
    "a number": b"5",
    "a list": b"[]",
    "no step": b"{}",
    "a step that is text": b'{"step": "1"}',
    "a step below 0": b'{"step": -1}',
    "a step beyond all": b'{"step": 9' + b"9" * 30 + b"}",
    "a step that is true": b'{"step": true}',
    "cut": b'{"step": 2, "train/lo',
    "two glued": GOOD[0] + GOOD[1],
    "not UTF-8": b'{"step": 2, "caf\xe9": 1}',
    "zeros": bytes(100),
    "NaN": b'{"step": 2, "train/loss": NaN}',
    "infinite": b'{"step": 2, "train/loss": 1e999}',
    "nested": b'{"step": 2, "a": {}}',
    "deep": b'{"step": 2, "a": ' + b"[" * 10**5,
    "huge": b'{"step": 2, "a": "' + b"x" * (3 * 2**20) + b'"}',
}


def started(folder, step=9, kind=MetricsWriter):
    """(rows, what was said) of a run that continues."""
    said = []
    writer = kind(folder, tensorboard=False, note=said.append)
    writer.start(step)
    writer.close()
    return writer.rows, said


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_damaged_line_is_set_aside_and_said_once(tmp_path, bad, place):
    lines = [*GOOD[:place], BAD[bad], *GOOD[place:]]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    wanted = [json.loads(line) for line in GOOD]
    assert started(tmp_path, kind=NoMetrics) == ([], [])
    rows, said = started(tmp_path)
    assert rows == wanted
    assert len(said) == 1
    assert "(1)" in said[0]
    assert "metrics.jsonl.damaged" in said[0]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == BAD[bad] + b"\n"
    assert started(tmp_path) == (wanted, [])


def test_later_damage_is_kept_beside_the_earlier(tmp_path):
    for line in (b"5", b"6"):
        (tmp_path / "metrics.jsonl").write_bytes(line + b"\n" + GOOD[0] + b"\n")
        started(tmp_path)
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == b"5\n6\n"


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        lambda path: os.symlink("/dev/zero", path),
        lambda path: os.symlink("absent", path),
        lambda path: path.touch() or os.truncate(path, 2**40),
    ],
    ids=["pipe", "folder", "device", "nothing", "sparse"],
)
def test_metrics_that_are_no_file_are_set_aside(tmp_path, make):
    for number in ("", "-2"):
        make(tmp_path / "metrics.jsonl")
        rows, said = started(tmp_path)
        assert rows == []
        assert f"metrics.jsonl.damaged{number}" in said[0]
        assert os.path.lexists(tmp_path / f"metrics.jsonl.damaged{number}")
        assert (tmp_path / "metrics.jsonl").is_file()
        (tmp_path / "metrics.jsonl").unlink()


def settings(out):
    return PretrainConfig(
        data="synthetic:8x8x1",
        out=str(out),
        width=0.25,
        batch_size=16,
        steps=6,
        save_every=2,
        eval_every=2,
        log_every=1,
        keep_last=9,
        pictures=0,
        probe_images=0,
        tensorboard=False,
    )


@pytest.mark.slow
def test_damaged_metrics_never_block_a_resume(tmp_path, tiny, capsys):
    """Lines lost, glued and overwritten: it continues, and ends bitwise the same."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    run_program(settings(whole))
    shutil.copytree(whole, out)
    stored = json.loads((out / "config.json").read_text())
    stored["config"]["out"] = str(out)
    write_json(out / "config.json", stored)
    shutil.rmtree(out / "checkpoints" / "6")
    shutil.rmtree(out / "checkpoints" / "4")
    (out / "report.html").unlink()
    path = out / "metrics.jsonl"
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"5\n\xff\xfe\n" + second[:9] + b"\n" + b"".join(rest))
    capsys.readouterr()
    result = run_program(settings(out))
    assert not result.complete
    assert "(3)" in capsys.readouterr().out
    states = [flatten(Store(run).restore()[1]) for run in (whole, out)]
    assert states[0].keys() == states[1].keys()
    for name, leaf in states[0].items():
        np.testing.assert_array_equal(leaf, states[1][name], err_msg=name)
    # A complete run without any of its lines is evaluated again.
    path.write_bytes(b"5\n")
    again = run_program(settings(out))
    assert again.metrics == pytest.approx(result.metrics)
    assert run_program(settings(out)).complete


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("write", "names"),
    [
        (lambda p: p.write_text("[]"), "object"),
        (lambda p: p.write_text("5"), "object"),
        (lambda p: p.write_text("{}"), "kind: missing; config: missing"),
        (lambda p: p.write_text('{"kind": 1, "config": []}'), "kind"),
        (lambda p: p.write_text('{"kind": "a", "config": {"lr": NaN}}'), "NaN"),
        (
            lambda p: p.write_text('{"kind": "a", "config": {}, "data": {"name": 1}}'),
            "data.fingerprint: missing",
        ),
        (
            lambda p: p.write_text('{"kind": "a", "config": {}, "runtime": []}'),
            "runtime",
        ),
        (lambda p: p.write_bytes(b'{"kind": "\xe9"}'), "UTF-8"),
        (lambda p: p.write_text("[" * 10**5), "levels"),
        (lambda p: p.write_text('{"kind": '), "JSON"),
        (lambda p: p.write_text(""), "JSON"),
        (lambda p: p.touch() or os.truncate(p, 2**40), "at most"),
        (os.mkfifo, "pipe"),
        (os.mkdir, "folder"),
        (lambda p: p.symlink_to("/dev/zero"), "device"),
        (lambda p: p.symlink_to("absent"), "No such file"),
    ],
)
def test_a_damaged_config_is_refused_with_what_is_wrong(tmp_path, write, names):
    write(tmp_path / "config.json")
    with pytest.raises(CheckpointError) as error:
        Run(tmp_path, kind="pretrain", config={"lr": 1.0}).check_settings()
    assert error.value.exit_code == 3
    for part in ("config.json", names, "new --out"):
        assert part in str(error.value)


LABELS = {
    "data": "digits",
    "seed": 0,
    "rule": "all",
    "classes": ["a"],
    "train": {"a": ["1", "caf\udce9"]},
    "validation": {},
    "tasks": {"age": {"train": {}, "validation": {"b": []}}},
}
_SHARE = {"value": 0.5, "low": 0.4, "high": None}
_REPORT = {
    "examples": 3,
    "accuracy": _SHARE,
    "macro_f1": _SHARE,
    "calibration_error": _SHARE,
}
RESULTS = {
    "steps": 4,
    "selection": {"rule": "last", "step": 4},
    "validation": None,
    "test": _REPORT,
    "tasks": {"age": {"validation": _REPORT, "test": None}},
    "distillation": {"smaller": 2.0, "faster": 1},
    "continual": {
        "average_accuracy": 0.5,
        "forgetting": None,
        "forward_transfer": None,
    },
    "episodes": {"method": "anil", "test_episodes": 9, "accuracy": {"anil": _SHARE}},
}


@pytest.mark.parametrize(
    ("value", "kind"), [(LABELS, schemas.LabelsFile), (RESULTS, schemas.ResultsFile)]
)
def test_labels_and_results_are_read_as_they_are_written(tmp_path, value, kind):
    write_json(tmp_path / "x.json", value)
    assert schemas.read(tmp_path / "x.json", kind, "delete it") == value


@pytest.mark.parametrize(
    ("change", "kind", "names"),
    [
        ({"train": []}, schemas.LabelsFile, "train"),
        ({"train": {"a": "1"}}, schemas.LabelsFile, "train.'a'"),
        ({"train": {"a": [1]}}, schemas.LabelsFile, "train.'a'"),
        ({"tasks": {"age": {}}}, schemas.LabelsFile, "tasks.'age'.train: missing"),
        ({"data": None}, schemas.LabelsFile, "data"),
        ({"test": {}}, schemas.ResultsFile, "test.examples: missing"),
        ({"test": {"examples": 4}}, schemas.ResultsFile, "test: missing accuracy"),
        ({"test": {**_REPORT, "accuracy": 1}}, schemas.ResultsFile, "test.accuracy"),
        ({"selection": {"rule": "last"}}, schemas.ResultsFile, "selection.step"),
        ({"steps": "4"}, schemas.ResultsFile, "steps"),
        ({"tasks": {"age": {"test": 1}}}, schemas.ResultsFile, "tasks.'age'"),
        ({"distillation": {}}, schemas.ResultsFile, "distillation"),
        ({"continual": None}, schemas.ResultsFile, "continual"),
        (
            {"episodes": {**RESULTS["episodes"], "method": "maml"}},
            schemas.ResultsFile,
            "maml",
        ),
    ],
)
def test_damaged_labels_and_results_are_named(tmp_path, change, kind, names):
    good = LABELS if kind is schemas.LabelsFile else RESULTS
    write_json(tmp_path / "x.json", {**good, **change})
    with pytest.raises(CheckpointError) as error:
        schemas.read(tmp_path / "x.json", kind, "delete it")
    assert error.value.exit_code == 3
    for part in ("x.json", names, "delete it"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["[]", '{"raw pixels": 5}', '{"a": {"knn": {}}}', '{"a": {"knn": {"value": "x"}}}'],
)
def test_damaged_baselines_are_measured_again(tmp_path, text):
    class Fixed(Probes):
        def __init__(self):
            pass

        def score(self, name, train, held):
            return {name: {"knn": {"value": 0.5}}}

        def measured(self):
            return self.score("raw pixels", 0, 0) | self.score("HOG", 0, 0)

    path = tmp_path / "baselines.json"
    path.write_text(text)
    vectors = np.zeros((1, 1)), np.zeros((1, 1))
    found = Fixed().baselines(path, "untrained encoder", lambda: vectors)
    assert found["raw pixels"]["knn"]["value"] == 0.5
    assert json.loads(path.read_text()) == found


def test_what_is_not_finite_is_written_as_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": [np.nan, {"b": -np.inf}], "c": 1})
    assert schemas.parse((tmp_path / "x.json").read_bytes()) == {
        "a": [None, {"b": None}],
        "c": 1,
    }
