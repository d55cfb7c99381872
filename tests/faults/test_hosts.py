"""Several processes as one job, over loopback: the same run as one process."""

import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from afterimage.checkpoints import inspect
from afterimage.encoder import load_encoder
from tests import buckets
from tests.faults.test_runs import final, finish, lines, wait_for_step
from tests.helpers import environment

# With the usual pictures and probes.
SETTINGS = [
    *("--data", "synthetic:8x8x1", "--width", "0.25", "--batch-size", "16"),
    *("--steps", "30", "--save-every", "3", "--eval-every", "15", "--log-every", "1"),
    *("--ema", "0.9", "--keep-last", "1", "--no-tensorboard"),
]


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    return {"AFTERIMAGE_CACHE": str(tmp_path_factory.mktemp("cache"))}


def launch(out, extra, *more):
    command = [sys.executable, "-m", "afterimage", "pretrain", "--out", str(out)]
    if "--objective" not in more:
        command += ["--plain.corruption", "gaussian"]
    return subprocess.Popen(
        [*command, *SETTINGS, *more],
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def job(out, caches, *more):
    """Two processes with one device each; the second sees no folder of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    members = []
    for index in range(2):
        extra = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
            "XLA_FLAGS": "",
        }
        place = out
        if index and "://" not in str(out):
            place = out.with_name(f"{out.name}-elsewhere")
        members.append(launch(place, caches | extra, *more))
        caches = {"AFTERIMAGE_CACHE": f"{caches['AFTERIMAGE_CACHE']}-second"}
    return members


@pytest.fixture(scope="module")
def alone(tmp_path_factory, caches):
    """The same run in one process with two devices."""
    out = tmp_path_factory.mktemp("alone") / "run"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    finish(launch(out, caches | flags))
    return out


def assert_alike(out, alone):
    """The same figures but for the order of sums."""
    assert inspect.verify(out) == []
    one, other = lines(out), lines(alone)
    assert [row["step"] for row in one] == [row["step"] for row in other]
    key = "train/loss"
    np.testing.assert_allclose(
        [row[key] for row in one if key in row],
        [row[key] for row in other if key in row],
        rtol=1e-3,
    )
    for key in ("eval/knn", "eval/ridge_10", "eval/ridge_untrained"):
        ours, theirs = ([row[key] for row in r if key in row] for r in (one, other))
        assert ours
        np.testing.assert_allclose(ours, theirs, atol=0.05)
    names = sorted(path.name for path in (alone / "pictures").iterdir())
    assert sorted(path.name for path in (out / "pictures").iterdir()) == names
    assert "step-0000030.png" in names
    for name in names:
        pictures = [
            np.asarray(Image.open(run / "pictures" / name), np.float32)
            for run in (out, alone)
        ]
        assert np.abs(pictures[0] - pictures[1]).mean() < 1, name
    (step, state), (step_alone, state_alone) = final(out), final(alone)
    assert step == step_alone == 30
    for path, leaf in state.items():
        assert leaf.shape == state_alone[path].shape, path


@pytest.mark.slow
def test_two_processes_train_as_one_with_two_devices(tmp_path, caches, alone):
    members = job(tmp_path / "run", caches)
    said = [finish(member) for member in members]
    assert "on 2 cpu devices" in said[0]
    assert "linear probe" in said[0]
    assert not re.search("step|loss|encoder", said[1]), "one process speaks"
    assert_alike(tmp_path / "run", alone)
    assert not (tmp_path / "run-elsewhere").exists()
    # What two processes saved, one continues or finds complete.
    assert "complete" in finish(launch(tmp_path / "run", caches))


@pytest.mark.slow
def test_two_processes_learn_from_two_views(tmp_path, caches):
    more = "--objective", "simclr", "--augment", "writing", "--steps", "4"
    out, every = tmp_path / "run", ("--eval-every", "2")
    said = [finish(member) for member in job(out, caches, *more, *every)]
    assert inspect.verify(out) == []
    assert "linear probe" in said[0]
    assert {row["step"] for row in lines(out) if "eval/loss" in row} == {2, 4}
    names = {path.name for path in (out / "pictures").iterdir()}
    assert names == {"augment.png", "step-0000002.png", "step-0000004.png"}


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_both_continue(tmp_path, caches, alone):
    out = tmp_path / "run"
    members = job(out, caches)
    wait_for_step(out, members[0], 6)
    members[1].send_signal(signal.SIGTERM)
    said = [finish(member, expected=75) for member in members]
    assert "same command" in said[0]
    for member in job(out, caches):
        finish(member)
    assert_alike(out, alone)


@pytest.mark.slow
def test_a_refused_folder_ends_every_process(tmp_path, caches):
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("not a run")
    said = [finish(member, expected=2) for member in job(out, caches)]
    assert "thesis.txt" in said[0]
    assert "refused by the first process" in said[1]
    assert (out / "thesis.txt").exists()


@pytest.mark.slow
def test_begun_on_one_device_continued_on_two(tmp_path, caches, alone):
    out, flag = tmp_path / "run", "--xla_force_host_platform_device_count="
    begun = launch(out, caches | {"XLA_FLAGS": f"{flag}1"}, "--devices", "1")
    wait_for_step(out, begun, 6)
    begun.send_signal(signal.SIGTERM)
    finish(begun, expected=75)
    two = launch(out, caches | {"XLA_FLAGS": f"{flag}2"}, "--devices", "2")
    said = finish(two)
    assert "--devices 1 -> 2" in said
    assert "on 2 cpu devices" in said
    assert_alike(out, alone)


@pytest.mark.slow
def test_two_processes_write_one_run_into_a_bucket(tmp_path, caches, monkeypatch):
    short = "--steps", "6", "--eval-every", "3", "--probe-images", "0"
    with buckets.moto_server() as port, buckets.served(port, monkeypatch) as server:
        url = f"s3://{server.bucket}/runs/a"
        said = [finish(member) for member in job(url, caches, *short)]
        assert f"results in {url}" in said[0]
        assert "Traceback" not in said[1]
        # Other machines find it complete, and one process reads its encoder.
        fresh = {"AFTERIMAGE_CACHE": str(tmp_path / "new")}
        again = [finish(member) for member in job(url, fresh, *short)]
        assert "complete: 6 of 6 steps" in again[0]
        monkeypatch.setenv("AFTERIMAGE_CACHE", str(tmp_path / "reader"))
        assert (
            load_encoder(url).features(np.zeros((2, 8, 8, 1), np.uint8)).shape[0] == 2
        )
