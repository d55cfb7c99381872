"""A saver killed by SIGKILL at any moment: its last good step is restored whole."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from afterimage.checkpoints import inspect
from afterimage.checkpoints.files import RunLock
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.weights import read_encoder

# Imports once, then forks a saver for each folder it is told; JAX starts in the child.
SAVER = """
import os, sys, itertools
import numpy as np, jax
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.files import RunLock
from tests.manifests import encoder_manifest
parent = os.getpid()
def save_for_ever(folder):
    with RunLock(folder):
        store = Store(folder, keep_last=2)
        start = max(store.steps(), default=0) + 1
        for step in itertools.count(start):
            if os.getppid() != parent:
                return  # the tests were stopped
            tree = {f"w{i}": jax.numpy.full((64, 64), step * 1.0) for i in range(6)}
            store.save(step, tree, manifest={"step": step},
                       encoder=({"w": tree["w0"]}, {}, encoder_manifest(step=step)))
            store.wait()
            with open(folder + "/done", "a") as file:
                print(step, file=file)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            save_for_ever(line.strip())
        finally:
            os._exit(1)
    print(pid, flush=True)
"""


@pytest.fixture(scope="module")
def saver():
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SAVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def start(folder: pathlib.Path) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        print(folder, file=process.stdin, flush=True)
        return int(process.stdout.readline())

    yield start
    process.kill()
    process.communicate()


def done_steps(folder):
    path = folder / "done"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def kill_once(saver, folder, pause):
    """Let the saver finish one more step, go on for `pause` seconds, then kill it."""
    before = len(done_steps(folder))
    pid = saver(folder)
    deadline = time.monotonic() + 60
    while len(done_steps(folder)) == before:
        assert time.monotonic() < deadline, "the saver saves nothing"
        time.sleep(0.005)
    time.sleep(pause)
    os.kill(pid, signal.SIGKILL)


def check_last_good(folder):
    done = done_steps(folder)
    step, tree, manifest = Store(folder).restore()
    assert step >= done[-1], "a step that was reported as saved is gone"
    assert manifest == {"step": step}
    assert len(tree) == 6
    for leaf in tree.values():
        np.testing.assert_array_equal(leaf, np.full((64, 64), step, np.float32))
    params, _, told = read_encoder(folder)
    assert (params["w"] == told["trained"]["step"]).all()
    assert not [finding for finding in inspect.verify(folder) if finding.fatal]


def lock_when_dead(folder):
    """The killed process is gone in a moment; its lock with it."""
    for _ in range(500):
        try:
            return RunLock(folder).__enter__()
        except Exception:
            time.sleep(0.01)
    raise AssertionError("the lock of a killed process stays")


def run_kills(saver, folder, count, seed):
    pauses = random.Random(seed)
    for _ in range(count):
        kill_once(saver, folder, pauses.uniform(0, 0.15))
        held = lock_when_dead(folder)
        check_last_good(folder)
        Store(folder)
        names = {path.name for path in (folder / "checkpoints").iterdir()}
        assert all(name.isdigit() for name in names), names
        held.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments(saver, tmp_path):
    run_kills(saver, tmp_path, 5, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_two_hundred_times(saver, tmp_path):
    run_kills(saver, tmp_path, 200, seed=2)
