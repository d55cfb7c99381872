"""A real Ray on this machine: features and pretraining; workers are killed."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest
from PIL import Image

from afterimage.errors import UserError
from afterimage.evaluation.configs import FeaturesConfig
from afterimage.pretrain.config import PretrainConfig
from afterimage.ray import pretrain
from tests import encoder_artefact
from tests.faults.test_runs import assert_same_run
from tests.helpers import environment
from tests.test_data_shards import KINDS

WITHOUT_RAY = FeaturesConfig(data="digits", from_="runs/digits", out="f.parquet")


def test_actors_need_ray_and_a_file_that_can_have_fewer_rows():
    with pytest.raises(UserError, match="actors=2: only with --ray"):
        FeaturesConfig(data="digits", from_="runs/digits", out="f.csv", actors=2)
    skip = {"ray": "local", "on_bad_image": "skip"}
    with pytest.raises(UserError, match=r"f.npy: .* \.parquet or \.csv"):
        FeaturesConfig(data="digits", from_="runs/digits", out="f.npy", **skip)


@pytest.mark.parametrize("out", ["s3://bucket/runs/a", "gs://bucket/runs/a"])
def test_a_run_folder_in_a_bucket_is_refused_before_anything_starts(
    tmp_path, monkeypatch, out
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"out='{out}': .* every machine mounts"):
        pretrain(PretrainConfig(data="digits", out=out), workers=2)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(the environment of commands, the process of a head node with two cores)."""
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("home")  # where Ray keeps a token
    short = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # names of sockets are short
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = environment(
        HOME=str(folder),
        AFTERIMAGE_CACHE=str(folder / "cache"),
        RAY_ADDRESS=f"127.0.0.1:{port}",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_worker_register_timeout_seconds="300",
    )
    command = [pathlib.Path(sys.executable).parent / "ray", "start", "--head"]
    command += ["--block", "--num-cpus=2", "--include-dashboard=false"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={short}"]
    log = folder / "log"
    for _ in range(5):  # Ray gives up if it needs 30 seconds
        with log.open("w") as file:
            head = subprocess.Popen(command, env=environ, stdout=file, stderr=file)
        while head.poll() is None and "Ray runtime started" not in log.read_text():
            time.sleep(0.2)
        if head.poll() is None:
            break
    assert head.poll() is None, log.read_text()
    yield environ, head
    head.terminate()
    head.wait(60)
    shutil.rmtree(short, ignore_errors=True)


@pytest.fixture
def home(cluster):
    return cluster[0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """2,400 images in two splits of three classes."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = encoder_artefact.pictures(2400)
    for number, image in enumerate(pixels):
        place = folder / ("train" if number < 2000 else "test") / "abc"[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:04d}.png")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    encoder_artefact.write(folder / "encoder")
    return folder


def start(home, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "afterimage", "features", *map(str, words)],
        env=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process, code=0):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output
    return output


def descendants(pid, text):
    """Processes below `pid` whose command line contains `text`."""
    parents, named = {}, []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat, line = entry / "stat", (entry / "cmdline").read_bytes()
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents[int(entry.name)] = parent
            if text in line.decode():
                named.append(int(entry.name))

    def below(one):
        while one and one != pid:
            one = parents.get(one, 0)
        return one == pid

    return [one for one in named if below(one)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_actor_that_is_killed_costs_no_row_and_doubles_none(
    tmp_path, cluster, photos, encoder
):
    home, head = cluster
    alone, spread = tmp_path / "alone.csv", tmp_path / "spread.csv"
    what = (photos, "--from", encoder, "--batch-size", 4)
    said(start(home, *what, "--out", alone))
    running = start(home, *what, "--out", spread, "--ray", "auto", "--actors", 2)
    killed, written = [], 0
    while running.poll() is None and not killed:
        for partial in tmp_path.glob(".spread.csv.partial-*"):
            written = partial.read_bytes().count(b"\n")
        if written > 1:
            killed = descendants(head.pid, "ray::MapWorker")[:1]
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    assert "2400 feature vectors" in said(running)
    assert killed
    assert written < 2401
    assert spread.read_bytes() == alone.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_parquet_is_the_same_and_a_broken_image_is_left_out(
    tmp_path, home, photos, encoder
):
    few = tmp_path / "few"
    for number, path in enumerate(sorted(photos.glob("*/*/*.png"))[:50]):
        place = (
            few / ("train" if number < 40 else "test") / "ab"[number % 2] / path.name
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    alone, spread = tmp_path / "alone.parquet", tmp_path / "spread.parquet"
    what = (few, "--from", encoder, "--batch-size", 16, "--dim", 3)
    on_ray = ("--ray", "auto", "--actors", 1)
    said(start(home, *what, "--out", alone))
    said(start(home, *what, "--out", spread, *on_ray))
    assert spread.read_bytes() == alone.read_bytes()
    broken = next(few.glob("test/*/*.png"))
    broken.write_bytes(b"not an image")
    what = (few, "--from", encoder, "--out", tmp_path / "f.csv", *on_ray)
    told = said(start(home, *what), code=2)
    assert broken.name in told
    told = said(start(home, *what, "--on-bad-image", "skip"))
    assert "49 feature vectors" in told
    assert f"skipped test/{broken.parent.name}/{broken.name}" in told


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_read_as_without_ray(tmp_path, home, encoder, kind):
    data = KINDS[kind](tmp_path / kind, range(37))
    alone, spread = tmp_path / "alone.parquet", tmp_path / "spread.parquet"
    what = (data, "--from", encoder, "--batch-size", 8)
    said(start(home, *what, "--out", alone))
    on_ray = ("--ray", "auto", "--actors", 1)
    assert "37 feature vectors" in said(start(home, *what, "--out", spread, *on_ray))
    assert spread.read_bytes() == alone.read_bytes()


TRAIN = """
import sys
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.objectives.plain import Plain
from afterimage.ray import pretrain

found = pretrain(
    PretrainConfig(
        data="synthetic:8x8x1", width=0.25, batch_size=16, steps=30, save_every=3,
        eval_every=15, log_every=1, pictures=0, probe_images=0, tensorboard=False,
        out=sys.argv[1], objective=Plain(corruption="gaussian"),
    ),
    workers=2, device="cpu",
)
print("RESULT", found.complete, found.steps, found.encoder)
"""


def train(home, out):
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(out)],
        env=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_pretraining_continues_when_a_worker_is_killed(tmp_path, cluster):
    home, head = cluster
    whole, out = tmp_path / "whole", tmp_path / "run"
    told = said(train(home, whole))
    assert f"RESULT False 30 {whole}/encoder" in told
    assert "on 2 cpu devices" in told
    running, metrics, killed = train(home, out), out / "metrics.jsonl", []
    while running.poll() is None and not killed:
        if metrics.exists() and '"step": 10,' in metrics.read_text():
            killed = descendants(head.pid, "ray::RayTrainWorker")[-1:]
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    told = said(running)
    assert killed
    assert "Continuing after step" in told
    assert_same_run(out, whole)
    assert not list(tmp_path.glob(".*.ray"))
