"""The driver of the faults: outcomes read from what a process left, and its table."""

import io
import json
import os
import pathlib
import random
import re
import sys

import pytest
from PIL import Image

from benchmarks.reliability import faults, outcomes, record
from benchmarks.reliability.jobs import JOBS, End, Running

TRACEBACK = "Traceback (most recent call last):\nValueError: x\n"


def ended(digest="a", *, began=100, step=200, finite=True, code=0, more=""):
    final = json.dumps({"step": step, "digest": digest, "finite": finite})
    steps = f"@images 384\n@from {began}\n@step {began + 1}\n"
    return End(code, f"{steps}{more}@final {final}\n")


def stopped(code=1, text=TRACEBACK, trained=False):
    return End(
        code, f"@images 384\n{'@from 0' * trained}\n{'@step 1' * trained}\n{text}"
    )


WHOLE = ended(began=0)


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (ended("a"), outcomes.SAME),
        (ended("b"), outcomes.OTHER),
        (ended("a", began=0), outcomes.AGAIN),
        (stopped(), "cannot continue: traceback"),
        (stopped(2, "Names what is wrong"), "cannot continue: message"),
        (stopped(-11, ""), "cannot continue: crash (signal 11)"),
        (stopped(None, ""), "cannot continue: hangs"),
        (stopped(0, ""), "cannot continue: ends early, exit code 0"),
    ],
)
def test_a_resume_is_compared_with_the_whole_run(end, says):
    assert outcomes.of_resume(end, WHOLE) == says


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (ended("a", began=150), "loaded, no effect"),
        (ended("b", began=150), "loaded, wrong weights, no warning"),
        (ended("a", began=100), "the checkpoint before is used"),
        (ended("a", began=0), outcomes.AGAIN),
        (stopped(), "stops: traceback"),
        (stopped(3, "damaged"), "stops: message"),
    ],
)
def test_damage_is_compared_with_the_undamaged_resume(end, says):
    assert outcomes.of_damage(end, ended("a", began=150)) == says


@pytest.mark.parametrize(
    ("full", "after", "says"),
    [
        (stopped(2, "no room"), ended(), "stops: message; then continues"),
        (stopped(), ended(), "stops: traceback; then continues"),
        (WHOLE, None, "trains on to the end"),
        (stopped(), ended(began=0), f"stops: traceback; then {outcomes.AGAIN}"),
        (stopped(), stopped(), "stops: traceback; then cannot continue (traceback)"),
    ],
)
def test_a_full_disk_is_judged_by_what_comes_after(full, after, says):
    assert outcomes.of_disk(full, after) == says


@pytest.mark.parametrize(
    ("end", "after", "says"),
    [
        (WHOLE, None, "leaves the step out"),
        (ended(finite=False), None, "trains on, exit code 0, weights NaN"),
        (ended(finite=False, step=96), None, "ends early, exit code 0, weights NaN"),
        (stopped(), ended(), "stops: traceback; then continues"),
        (stopped(), ended(finite=False), "stops: traceback; then continues from NaN"),
        (stopped(), stopped(), "stops: traceback; then cannot continue (traceback)"),
    ],
)
def test_a_batch_of_nan_is_judged_by_the_weights(end, after, says):
    assert outcomes.of_nan(end, after) == says


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (WHOLE, "trains on, file not named"),
        (ended(more="skipped 7.png\n"), "trains on, file named"),
        (stopped(2, "a/7.png: cut"), "message before training, file named"),
        (stopped(trained=True), "traceback during training, file not named"),
    ],
)
def test_a_broken_image_is_looked_for_in_what_was_said(end, says):
    assert outcomes.of_image(end, "7.png") == says


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (WHOLE, "works"),
        (End(0, WHOLE.text.replace("384", "383")), "left out without"),
        (stopped(), "traceback before training"),
        (End(0, "x: 346 training images 32x32x3, 38 held out\n" + WHOLE.text), "works"),
    ],
)
def test_a_name_that_is_not_utf8_must_leave_all_images(end, says):
    assert outcomes.of_name(end, 384).startswith(says)


def test_what_afterimage_prints_is_understood():
    text = (
        "x: 1,346 training images 32x32x3, none held out\nContinuing after step 1,050"
    )
    end = End(0, text)
    assert (end.images, end.began) == (1346, 1050)


def test_a_process_is_followed_and_killed():
    code = "import time\nfor i in range(99): print('@step', i, flush=True)\n"
    running = Running([sys.executable, "-c", code + "time.sleep(60)"], dict(os.environ))
    assert running.wait_until(lambda: running.step == 98)
    end = running.kill()
    assert (end.code, end.trained, end.final) == (-9, True, None)
    assert not running.wait_until(lambda: False)


@pytest.mark.parametrize(
    ("job", "whole", "partial"),
    [
        ("afterimage", "checkpoints/100/a", "checkpoints/.150.partial-7/a"),
        ("hf", "checkpoint-100/a", "checkpoint-150.tmp/a"),
        ("keras", "backup/latest.weights.h5", "backup/latest.weights.h5.bkp"),
    ],
)
def test_a_half_written_checkpoint_is_not_the_newest(tmp_path, job, whole, partial):
    for name in (whole, partial):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert JOBS[job].newest(tmp_path) == [tmp_path / whole]


class Stub:
    """A world in which nothing trains: what a fault did is looked at instead."""

    def __init__(self, folder: pathlib.Path):
        self.job, self.folder = JOBS["hf"], folder
        self.data = faults.make_images(folder / "images", 6)
        self.seen: list[pathlib.Path] = []

    def fresh(self, name):
        return self.folder / name

    def stopped(self):
        return self.folder / "stopped", ended(began=150)

    def copy(self):
        place = self.folder / "copy" / "checkpoint-150"
        place.mkdir(parents=True)
        (place / "weights").write_bytes(bytes(1000))
        (place / "empty").write_bytes(b"")
        return place.parent

    def run(self, out, data=None):
        self.seen += sorted((data or out).rglob("*"))
        return ended(began=150)


@pytest.mark.parametrize("repeat", range(4))
def test_exactly_one_bit_is_flipped(tmp_path, repeat):
    world = Stub(tmp_path)
    faults.flipped(world, repeat, random.Random(repeat))
    data = (tmp_path / "copy/checkpoint-150/weights").read_bytes()
    assert len(data) == 1000
    assert sum(byte.bit_count() for byte in data) == 1


@pytest.mark.parametrize("repeat", range(2))
def test_exactly_one_image_is_broken(tmp_path, repeat):
    world = Stub(tmp_path)
    faults.broken(world, repeat, random.Random(repeat))
    bad = []
    for path in world.seen:
        try:
            if path.suffix == ".png":
                Image.open(io.BytesIO(path.read_bytes())).load()
        except OSError:
            bad.append(path.name)
    assert len(bad) == 1


@pytest.mark.parametrize("repeat", range(2))
def test_a_name_is_not_utf8_and_all_images_are_there(tmp_path, repeat):
    world = Stub(tmp_path)
    faults.named(world, repeat, random.Random(repeat))
    names = [os.fsencode(path) for path in world.seen]
    assert any(b"caf\xe9" in name for name in names)
    assert sum(name.endswith(b".png") for name in names) == 6


def test_the_table_counts_what_happened():
    rows = [
        record.outcome_row("hf", "nan", ["x", "y", "y"], {"torch": "1"}),
        record.outcome_row("afterimage", "nan", ["z"], {"jax": "2"}),
    ]
    assert (rows[0]["n"], rows[0]["seeds"]) == (3, [0, 1, 2])
    table = record.peers_table(rows).splitlines()
    assert table[0] == "| fault | Afterimage | HF Trainer |"
    assert table[2] == "| one batch of NaN | 1 × z | 2 × y; 1 × x |"
    assert any("torch 1" in line for line in table)


def test_a_row_is_put_in_the_place_of_the_one_it_repeats(tmp_path):
    for job, outcome in (("hf", "x"), ("afterimage", "y"), ("hf", "z")):
        entry = record.outcome_row(job, "nan", [outcome], {})
        record.record(entry, folder=tmp_path)
    rows = json.loads((tmp_path / "reliability.json").read_text())
    assert [(e["job"], e["outcomes"]) for e in rows] == [
        ("afterimage", {"y": 1}),
        ("hf", {"z": 1}),
    ]


PAGE = pathlib.Path(__file__).parent.parent / "docs/design/reliability.md"
COMMANDS = re.findall(r"`(tests/\S+\.py)(?: -k (\w+|\"[^\"]+\"))?`", PAGE.read_text())


@pytest.mark.parametrize(("file", "words"), COMMANDS)
def test_the_page_of_fault_tests_names_tests_that_exist(file, words):
    text = (PAGE.parents[2] / file).read_text()
    tests = re.findall(r"^def (test_\w+)", text, re.MULTILINE)
    for word in words.strip('"').split(" or "):
        assert any(word in name for name in tests)
