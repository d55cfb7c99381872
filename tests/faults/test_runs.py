"""Faults of whole runs, through the command line: kill, signals, two writers, data."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from tests.helpers import environment

SETTINGS = [
    *("--data", "synthetic:8x8x1", "--width", "0.25", "--batch-size", "16"),
    *("--steps", "30", "--save-every", "3", "--eval-every", "10", "--log-every", "1"),
    *("--ema", "0.9", "--plain.corruption", "gaussian", "--keep-last", "1"),
    *("--pictures", "0", "--probe-images", "0", "--no-tensorboard"),
]


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """One cache for all processes of this file: they compile once."""
    return {"AFTERIMAGE_CACHE": str(tmp_path_factory.mktemp("cache"))}


def start(out, caches, *more, settings=SETTINGS, cwd=None):
    command = [sys.executable, "-m", "afterimage", "pretrain", "--out", str(out)]
    return subprocess.Popen(
        [*command, *settings, *more],
        env=environment(**caches),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd or out.parent,
    )


def finish(process, expected=0):
    output, _ = process.communicate(timeout=200)
    assert process.returncode == expected, output[-4000:]
    return output


def wait_for_step(out, process, step):
    """Until the run has logged `step`, or is over."""
    path = out / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.02)


def final(out):
    step, tree, _ = Store(out).restore()
    return step, {path: np.asarray(x) for path, x in flatten(tree).items()}


def lines(out):
    rows = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in rows]


def assert_same_run(one, other):
    """Bit for bit: parameters, running mean, moments, key; and every line."""
    step_one, state_one = final(one)
    step_other, state_other = final(other)
    assert step_one == step_other == 30
    assert state_one.keys() == state_other.keys()
    for path, leaf in state_one.items():
        np.testing.assert_array_equal(leaf, state_other[path], err_msg=path)
    assert lines(one) == lines(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, caches):
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start(out, caches))
    return out


def killed_and_repeated(out, caches, seed, kills):
    """SIGKILLs the run at `kills` random moments after a random step each."""
    rng = random.Random(seed)
    for _ in range(kills):
        process = start(out, caches)
        wait_for_step(out, process, rng.randrange(1, 28))
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
    return finish(start(out, caches))


def test_a_run_that_is_killed_and_repeated_ends_bit_identical(tmp_path, caches, whole):
    killed_and_repeated(tmp_path / "run", caches, seed=0, kills=2)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_twenty_seeds(tmp_path, caches, whole):
    for seed in range(1, 21):
        killed_and_repeated(tmp_path / f"run{seed}", caches, seed=seed, kills=2)
        assert_same_run(tmp_path / f"run{seed}", whole)


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_has_its_own_exit_code(tmp_path, caches, whole, number):
    out = tmp_path / "run"
    process = start(out, caches)
    wait_for_step(out, process, 10)
    began = time.monotonic()
    process.send_signal(number)
    output = finish(process, expected=75)
    assert time.monotonic() - began < 30
    assert "same command" in output
    stopped = int(re.search(r"after step (\d+) of 30", output)[1])
    assert max(Store(out).steps()) == stopped
    finish(start(out, caches))
    assert_same_run(out, whole)
    assert "complete" in finish(start(out, caches))


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path, caches, whole
):
    out = tmp_path / "run"
    process = start(out, caches, "--keep-last", "3")
    wait_for_step(out, process, 15)
    process.send_signal(signal.SIGTERM)
    finish(process, expected=75)
    newest, before = sorted(Store(out).steps(), reverse=True)[:2]
    files = [p for p in (out / f"checkpoints/{newest}/state").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    verify = [sys.executable, "-m", "afterimage", "checkpoints", "verify", str(out)]
    done = subprocess.run(
        verify, env=environment(**caches), capture_output=True, text=True
    )
    assert done.returncode == 3
    assert largest.name in done.stdout
    output = finish(start(out, caches))
    assert largest.name in output
    assert str(before) in output
    assert_same_run(out, whole)


@pytest.mark.slow
def test_a_second_writer_is_refused_and_named(tmp_path, caches, whole):
    out = tmp_path / "run"
    first = start(out, caches)
    wait_for_step(out, first, 1)
    os.kill(first.pid, signal.SIGSTOP)  # or it may be done before the second begins
    try:
        output = finish(start(out, caches), expected=2)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert f"process {first.pid}" in output
    finish(first)
    assert_same_run(out, whole)


@pytest.mark.slow  # the loop's own test is quick
def test_changed_images_are_refused(tmp_path, caches):
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{i}.png")
    settings = [*SETTINGS, "--data", f"folder:{photos}", "--steps", "4"]
    out = tmp_path / "run"
    finish(start(out, caches, settings=settings))
    os.remove(photos / "7.png")
    output = finish(start(out, caches, settings=settings), expected=2)
    assert "not those this run began with" in output


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, caches):
    blocked = tmp_path / "file"
    blocked.write_text("x")
    output = finish(start(blocked / "run", caches, cwd=tmp_path), expected=2)
    assert str(blocked) in output


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["corrupt", "read-only"])
def test_a_bad_compile_cache_is_no_reason_to_stop(tmp_path, cache):
    folder = tmp_path / "cache"
    settings = [*SETTINGS, "--steps", "4"]
    # Not the cache the tests share: the one a user has.
    caches = {"AFTERIMAGE_CACHE": str(folder), "JAX_COMPILATION_CACHE_DIR": ""}
    if cache == "corrupt":
        finish(start(tmp_path / "first", caches, settings=settings))
        for path in (folder / "xla").rglob("*"):
            if path.is_file():
                path.write_bytes(b"not a program")
    else:
        folder.write_text("a file where the folder should be")
    output = finish(start(tmp_path / "run", caches, settings=settings))
    assert "eval 4/4" in output
