"""Full, read-only and crooked disks and folders: a sentence, and nothing is lost."""

import contextlib
import errno
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from afterimage.checkpoints import files, inspect
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.files import RunLock
from afterimage.checkpoints.store import Store
from afterimage.commands import exit_code
from afterimage.data import open_data
from afterimage.encoder import load_encoder
from afterimage.errors import AfterimageError, DiskError, UserError
from afterimage.export import export_features
from afterimage.fields import output_file
from afterimage.runs import Run, write_json
from afterimage.training.metrics import MetricsWriter
from tests import encoder_artefact
from tests.helpers import environment, limited


@contextlib.contextmanager
def full_disk(room=20_000):
    """No file of this process may grow beyond this: a full disk, for any user."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def small_files():
    with full_disk():
        yield


def photos(folder, count=40, side=32):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return f"folder:{folder}"


def test_a_full_cache_disk_costs_the_cache_alone(tmp_path, small_files, capsys):
    spec = photos(tmp_path / "photos")
    images = open_data(spec).train
    assert images.gather(np.arange(40)).shape == (40, 32, 32, 3)
    assert capsys.readouterr().err.count("AFTERIMAGE_CACHE") == 1
    cache = pathlib.Path(os.environ["AFTERIMAGE_CACHE"])
    assert [path for path in cache.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet", "csv"])
def test_features_on_a_full_disk_leave_what_was_there(tmp_path, suffix):
    encoder_artefact.write(tmp_path / "encoder")
    encoder = load_encoder(tmp_path / "encoder")
    spec = encoder_artefact.shades(tmp_path / "data.npz")
    images = open_data(spec).train
    out = tmp_path / f"x.{suffix}"
    out.write_bytes(b"before")
    many = images.subset(np.arange(800) % len(images))
    export_features(encoder, {"train": many}, tmp_path / f"room.{suffix}")
    message = f"x.{suffix} was not written.*large"
    with pytest.raises(DiskError, match=message), full_disk(5000):
        export_features(encoder, {"train": many}, out)
    assert out.read_bytes() == b"before"
    assert not list(tmp_path.glob(".x*"))


@pytest.mark.parametrize(
    "name", [".x.npy.partial-notes", ".x.npy.partial-", ".x.npy.partial-" + "9" * 17]
)
def test_a_stray_file_beside_the_features_is_no_reason_to_stop(tmp_path, name):
    encoder_artefact.write(tmp_path / "encoder")
    encoder = load_encoder(tmp_path / "encoder")
    images = open_data(encoder_artefact.shades(tmp_path / "data.npz")).train
    (tmp_path / name).write_text("mine")
    assert export_features(encoder, {"train": images}, tmp_path / "x.npy") == 42
    assert (tmp_path / name).exists() != name.endswith("9")  # a dead writer's goes


@pytest.mark.parametrize("out", ["file/x.npy", "file/more/x.npy", "gs://b/x.npy"])
def test_a_place_for_features_that_cannot_be_is_refused_first(tmp_path, out):
    (tmp_path / "file").write_text("")
    place = out if "://" in out else tmp_path / out
    with pytest.raises(UserError, match="out="):
        output_file(place, (".parquet", ".npz", ".npy", ".csv"))


def test_a_write_that_fails_leaves_the_file_and_nothing_else(tmp_path, small_files):
    path = tmp_path / "x.json"
    write_json(path, [1])
    with pytest.raises(OSError, match="large"):
        write_json(path, ["x" * 50_000])
    assert path.read_text().split() == ["[", "1", "]"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_a_lock_that_is_no_file_is_said(tmp_path, kind):
    path, other = tmp_path / "lock", tmp_path / "other"
    other.write_text("not to be emptied")
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(other)
    else:
        os.mkfifo(path)
    with pytest.raises(CheckpointError, match="lock") as caught:
        RunLock(tmp_path).acquire()
    assert caught.value.exit_code == 2
    assert other.read_text() == "not to be emptied"


def test_the_lock_of_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file"):
        RunLock(tmp_path / "file" / "run").acquire()


def opened(folder, **config):
    run = Run(folder, kind="pretrain", config={"tensorboard": False, **config})
    run.check_settings()
    return run


@pytest.mark.parametrize(("name", "code"), [("config.json", 3), ("lock", 2)])
def test_a_folder_where_a_run_has_a_file_is_said(tmp_path, name, code):
    with opened(tmp_path / "run") as run:
        run.metrics.start(0)
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).mkdir()
    with pytest.raises((AfterimageError, CheckpointError), match=name) as caught:
        with opened(run.path) as again:
            again.metrics.start(0)
    assert caught.value.exit_code == code


def test_a_folder_in_the_place_of_the_metrics_is_set_aside_whole(tmp_path):
    with opened(tmp_path / "run") as run:
        run.metrics.start(0)
    path = run.path / "metrics.jsonl"
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "mine").write_text("kept")
    with opened(run.path) as again:
        again.metrics.start(0)
        again.metrics.write(1, {"loss": 1.0})
    assert path.is_file()
    assert [found.read_text() for found in run.path.rglob("mine")] == ["kept"]


@pytest.mark.parametrize("name", ["pictures", "checkpoints"])
def test_a_file_where_a_run_has_a_folder_is_said(tmp_path, name):
    with opened(tmp_path / "run") as run:
        (run.path / name).write_text("")
    with pytest.raises((AfterimageError, CheckpointError), match=name) as caught:
        with opened(run.path) as again:
            Store(again.path).save(1, {"w": np.ones(2)}, manifest={}, wait=True)
            assert again.pictures
    assert caught.value.exit_code == 2


def test_tensorboard_that_cannot_be_written_is_no_reason_to_stop(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("a file")
    metrics = MetricsWriter(tmp_path)
    metrics.start(0)
    metrics.write(1, {"loss": 1.0})
    metrics.close()
    assert capsys.readouterr().err.count("TensorBoard") == 1
    assert '"loss": 1.0' in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.timeout(60)
def test_tensorboard_on_a_disk_that_fills_up_does_not_hang(
    tmp_path, small_files, capsys
):
    metrics = MetricsWriter(tmp_path)
    metrics.start(0)
    for step in range(200):
        metrics.write(step, {f"loss_{i}": 1.0 for i in range(3)})
        metrics.picture(step, "picture", np.zeros((8, 8, 3), np.uint8))
    metrics.close()
    assert capsys.readouterr().err.count("TensorBoard") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_metrics_on_a_disk_that_fills_up_end_the_run_with_its_cause(
    tmp_path, small_files
):
    with pytest.raises(DiskError, match=r"run: .*large.*same command"):
        with opened(tmp_path / "run") as run:
            run.metrics.start(0)
            for step in range(2_000):
                run.metrics.write(step, {"loss": 1.0})
            run.metrics.flush()
    with RunLock(run.path):  # given back
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_went_wrong_first_is_told(tmp_path, small_files):
    with pytest.raises(ZeroDivisionError):
        with opened(tmp_path / "run") as run:
            run.metrics.start(0)
            for step in range(900):  # some of it is in a buffer that has no room
                run.metrics.write(step, {"loss": 1.0})
            raise ZeroDivisionError


def test_a_run_that_died_while_it_wrote_its_settings_starts_anew(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.json.partial").write_text('{"kin')
    (run / "lock").write_text("")
    with opened(run):
        assert (run / "config.json").is_file()


def prunable(folder):
    store = Store(folder)
    for step in (1, 2, 3):
        store.save(step, {"w": np.ones(2)}, manifest={}, wait=True)


def test_prune_where_the_lock_cannot_be_taken_deletes_nothing(tmp_path):
    prunable(tmp_path)
    (tmp_path / "lock").mkdir()
    with pytest.raises(CheckpointError, match="lock") as caught:
        inspect.prune(tmp_path)
    assert caught.value.exit_code == 2
    assert Store(tmp_path).steps() == [1, 2, 3]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_prune_of_a_read_only_run_is_said(tmp_path):
    prunable(tmp_path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="cannot be locked"):
            inspect.prune(tmp_path)
        with pytest.raises(DiskError, match="cannot be written to"):
            opened(tmp_path)
    finally:
        tmp_path.chmod(0o700)


@pytest.fixture
def read_only(tmp_path):
    """A folder that is mounted read-only, over a run with three steps."""
    place = tmp_path / "mounted"
    prunable(place / "run")
    mount = ["mount", "--bind", str(place), str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("cannot mount here")
    subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_read_only_disk_is_said_by_all_that_write(read_only):
    with pytest.raises(CheckpointError, match="read-only"):
        inspect.prune(read_only / "run")
    assert inspect.prune(read_only / "run", dry_run=True).deleted == [1, 2]
    with pytest.raises(DiskError, match="read-only"):
        opened(read_only / "run")
    with pytest.raises(DiskError, match="read-only"):
        opened(read_only / "new" / "run")
    with pytest.raises(DiskError, match="read-only"):
        output_file(read_only / "x.npy", (".npy",))


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO"])
def test_the_command_line_explains_a_disk(capsys, code):
    def command():
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)), "name")

    assert exit_code(command) == 2
    assert "name: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [OSError("ours"), OSError(errno.EBADF, "ours"), ValueError("ours"), KeyError("x")],
)
def test_a_fault_of_the_program_keeps_its_traceback(error):
    def command():
        raise error

    assert files.disk_fault(error) is None
    with pytest.raises(type(error)):
        exit_code(command)


SETTINGS = [
    *("--data", "synthetic:8x8x1", "--objective", "plain"),
    *("--width", "0.25", "--batch-size", "16"),
    *("--steps", "4", "--save-every", "2", "--eval-every", "2", "--log-every", "1"),
    *("--pictures", "2", "--probe-images", "0"),
]


def pretrain(out, cache, limit=None, settings=SETTINGS):
    command = [sys.executable, "-m", "afterimage", "pretrain", "--out", str(out)]
    command += settings
    if limit is not None:
        command = limited("RLIMIT_FSIZE", limit, command)
    return subprocess.run(
        command,
        env=environment(AFTERIMAGE_CACHE=str(cache)),
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 100, 1500, 3000, 9000, 20_000, 60_000, 1_000_000])
def test_a_run_on_a_full_disk_continues_when_there_is_room(tmp_path, limit):
    """Wherever it stops: at its settings, a picture, a checkpoint, the report."""
    out = tmp_path / "run"
    done = pretrain(out, tmp_path / "cache", limit)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == (2 if limit < 100_000 else 0), done.stderr
    done = pretrain(out, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert Store(out).steps()[-1] == 4
    assert inspect.verify(out) == []
