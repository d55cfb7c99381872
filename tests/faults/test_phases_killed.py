"""SIGKILL inside saves and between phases, again and again; the end is bit for bit."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from tests.faults.test_methods import STEPS, losses, prepared
from tests.helpers import environment

POINTS = {
    "before the settings are whole": ("afterimage.checkpoints.files", "write_bytes", 1),
    "inside a save": ("afterimage.checkpoints.files", "write_bytes", 8),
    "before a save gets its name": ("afterimage.checkpoints.files", "put_in_place", 1),
    "after a save got its name": ("afterimage.checkpoints.files", "sync_folder", 6),
    "between two phases": ("afterimage.training.job.Trainer", "cross", 1),
    "before the artefacts": ("afterimage.finetune.run", "write_artefacts", 1),
    "amid the artefacts": ("afterimage.checkpoints.weights", "collect", 4),
    "before the report": ("afterimage.finetune.report", "write_report", 3),
}
"""Where the process kills itself: at which call of what."""

PROGRAM = """
import importlib, os, pathlib, signal, sys
import pytest
from tests.conftest import shrink
from tests.faults.test_methods import configured
from afterimage.finetune.run import finetune

def deadly(where, name, number):
    try:
        owner = importlib.import_module(where)
    except ModuleNotFoundError:
        module, _, kind = where.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    real, calls = getattr(owner, name), []

    def called(*arguments, **named):
        calls.append(name)
        if len(calls) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    setattr(owner, name, called)

home, method, out, *point = sys.argv[1:]
with pytest.MonkeyPatch.context() as patch:
    shrink(patch)
    if point:
        deadly(*point)
    finetune(configured(pathlib.Path(home), out, method, keep_last=2))
"""


def run(home, method, out, *point):
    words = [sys.executable, "-c", PROGRAM, str(home), method, out, *map(str, point)]
    done = subprocess.run(
        words, env=environment(), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0 or (point and done.returncode == -9), done.stderr[
        -3000:
    ]
    return done.returncode


def state(folder):
    _, tree, _ = Store(folder).restore(step=STEPS)
    return {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "method",
    ["two-phase", "gradual", "dann", "sequence, ewc", "sequence, replay", "maml"],
)
def test_killed_at_every_kind_of_moment_ends_bit_for_bit(tmp_path, tiny, method):
    prepared(tmp_path, method)
    run(tmp_path, method, "whole")
    killed = [name for name, at in POINTS.items() if run(tmp_path, method, "cut", *at)]
    run(tmp_path, method, "cut")
    # (A second start has settings already; without phases there is nothing between.)
    assert {"inside a save", "before a save gets its name"} <= set(killed), killed
    if method in ("two-phase", "gradual") or "sequence" in method:
        assert "between two phases" in killed
    one, other = (state(tmp_path / name) for name in ("whole", "cut"))
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(other[path], leaf, err_msg=path)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for name in ("encoder", "classifier"):
        weights = pathlib.Path(name) / "weights.safetensors"
        found = [(tmp_path / out / weights).read_bytes() for out in ("whole", "cut")]
        assert found[0] == found[1]
    names = {path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()}
    assert all(name.isdigit() for name in names), names
