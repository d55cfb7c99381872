"""Runs in a bucket, in fsspec's memory: uploading, continuing, reading, locking."""

import json
import shutil

import fsspec
import numpy as np
import pytest

import afterimage
from afterimage import commands
from afterimage.checkpoints import inspect
from afterimage.checkpoints.errors import RunLocked
from afterimage.checkpoints.files import files_under
from afterimage.checkpoints.trees import flatten
from afterimage.errors import Interrupted, UserError
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.run import pretrain
from afterimage.report import comparison, read_run
from afterimage.storage import Bucket, RemoteError, faults, lock, units, working
from afterimage.storage.lock import BucketLock
from afterimage.training.loop import Callbacks

URL = "memory://bucket/runs/a"


def config(out=URL, **changes):
    settings = {
        "data": "synthetic:16x16x1",
        "out": str(out),
        "model": "conv",
        "width": 0.25,
        "steps": 12,
        "batch_size": 16,
        "eval_every": 4,
        "log_every": 2,
        "objective": {"name": "plain"},
        "tensorboard": False,
        "pictures": 0,
        "probe_images": 64,
    }
    return PretrainConfig(**settings | changes)


@pytest.fixture(scope="module")
def local_run(tmp_path_factory):
    """The same run in a folder of this machine: the results to expect."""
    return pretrain(config(tmp_path_factory.mktemp("local") / "a"))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes this process another machine, with an empty cache."""
    count = iter(range(100))

    def start() -> None:
        place = tmp_path / f"machine-{next(count)}"
        monkeypatch.setenv("AFTERIMAGE_CACHE", str(place))
        monkeypatch.setattr(lock, "_machine", lambda: str(place))

    monkeypatch.setattr(faults, "WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(working, "POLL", 0.05)
    start()
    return start


@pytest.fixture(autouse=True)
def store():
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    yield memory
    memory.store.clear()


def stop_after(step):
    """Callbacks that interrupt the run at a step, as a signal would."""

    def stop(now, metrics):
        if now == step:
            raise Interrupted("stopped by the test")

    return Callbacks(on_log=stop)


def lines(text):
    rows = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in rows]


def require_equal(url, result):
    """The run in the bucket is, bit for bit, that of the local folder."""
    bucket = Bucket(url)
    metrics = bucket.get("metrics.jsonl").decode()
    assert lines(metrics) == lines((result.run / "metrics.jsonl").read_text())
    own = (result.run / "encoder" / "weights.safetensors").read_bytes()
    assert bucket.get("encoder/weights.safetensors") == own


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_of_a_folder(machine, local_run, capsys):
    result = pretrain(config())
    require_equal(URL, local_run)
    there = {n for n in Bucket(URL).entries() if not n.startswith("lock/")}
    assert there == {n for n in files_under(result.run) if n != "lock"}
    assert "lock/000001.json" not in Bucket(URL).entries()
    machine()
    assert not any(finding.fatal for finding in inspect.verify(URL))
    again = pretrain(config())
    assert again.complete
    assert f"{URL} is complete: 12 of 12 steps" in capsys.readouterr().out
    # What is shown is the URL that was given, not the copy on this machine.
    assert f"encoder  {URL}/encoder" in again.summary().splitlines()
    header, (row,) = comparison([read_run(URL)])
    assert row[header.index("run")] == URL


@pytest.mark.slow
@pytest.mark.parametrize("step", [6, 8])
def test_another_machine_continues_bit_for_bit(machine, local_run, step, capsys):
    with pytest.raises(Interrupted):
        pretrain(config(), callbacks=stop_after(step))
    machine()
    pretrain(config())
    assert "Continuing after step 4" in capsys.readouterr().out
    require_equal(URL, local_run)


@pytest.mark.slow
def test_the_first_machine_notices_that_it_is_behind(
    machine, local_run, monkeypatch, capsys
):
    first = working.cache_dir()
    with pytest.raises(Interrupted):
        pretrain(config(), callbacks=stop_after(6))
    machine()
    with pytest.raises(Interrupted):
        pretrain(config(), callbacks=stop_after(10))
    monkeypatch.setenv("AFTERIMAGE_CACHE", str(first))
    pretrain(config())
    said = capsys.readouterr()
    assert "Continuing after step 8" in said.out
    assert "continued or emptied elsewhere" in said.err
    require_equal(URL, local_run)
    (aside,) = (first / "remote").glob("*-1")
    assert (aside / "a" / "checkpoints" / "4").is_dir()


@pytest.mark.slow
def test_what_was_not_uploaded_is_kept_and_sent_at_the_next_start(
    machine, local_run, monkeypatch, store, capsys
):
    """The token expires in the middle: the run goes on, then says so."""
    put, expired = type(store).pipe_file, []

    def refuse(self, path, value, mode="overwrite", **more):
        if expired and not path.endswith(".json"):
            raise PermissionError("ExpiredToken")
        return put(self, path, value, mode=mode, **more)

    def expire(step, metrics):
        if step == 6:
            expired.append(step)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "pipe_file", refuse)
        patch.setattr(type(store), "put_file", refuse)
        with pytest.raises(RemoteError, match="Not everything was uploaded") as caught:
            pretrain(config(), callbacks=Callbacks(on_log=expire))
    kept = str(caught.value).partition("kept in ")[2].partition(";")[0]
    assert "encoder/manifest.json" not in Bucket(URL).entries()
    assert (working.pathlib.Path(kept) / "encoder" / "manifest.json").is_file()
    again = pretrain(config())
    assert again.complete
    assert "12 of 12 steps" in capsys.readouterr().out
    require_equal(URL, local_run)


@pytest.mark.slow
def test_only_one_machine_writes(machine):
    with pytest.raises(Interrupted):
        pretrain(config(), callbacks=stop_after(6))
    one = BucketLock(Bucket(URL))
    one.acquire()
    machine()
    with pytest.raises(RunLocked, match="is being written by process"):
        pretrain(config())
    with pytest.raises(RunLocked):
        inspect.prune(URL)
    one.release()
    assert inspect.prune(URL).kept == [4]


def test_a_lock_expires_and_its_owner_finds_out(machine, monkeypatch):
    bucket = Bucket(URL)
    one = BucketLock(bucket)
    one.acquire()
    assert one.exclusive
    one.check()
    machine()
    other = BucketLock(bucket)
    with pytest.raises(RunLocked, match="expires within 10 minutes"):
        other.acquire()
    monkeypatch.setattr(lock, "EXPIRES", -1.0)
    other.acquire()
    other.check()
    with pytest.raises(RunLocked):
        one.check()
    one.release()
    other.check()
    other.release()
    assert bucket.entries() == {}


def test_a_dead_process_of_this_machine_holds_nothing(machine, monkeypatch):
    bucket = Bucket(URL)
    BucketLock(bucket).acquire()
    monkeypatch.setattr(lock, "alive", lambda pid: False)
    BucketLock(bucket).acquire()


def test_a_store_without_conditions_is_told(machine, monkeypatch, store):
    put = type(store).pipe_file
    monkeypatch.setattr(
        type(store),
        "pipe_file",
        lambda self, path, value, mode="": put(self, path, value),
    )
    one = BucketLock(Bucket(URL))
    one.acquire()
    assert not one.exclusive


@pytest.mark.slow
def test_a_step_without_a_manifest_is_not_there(machine, local_run):
    pretrain(config())
    bucket = Bucket(URL)
    bucket.delete(["checkpoints/12/manifest.json", "encoder/manifest.json"])
    machine()
    assert [
        row.step for row in inspect.list_steps(URL) if row.status == "complete"
    ] == [8]
    encoder = afterimage.load_encoder(URL)
    assert encoder.manifest["trained"]["steps"] == 8
    pretrain(config())
    require_equal(URL, local_run)


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(machine, local_run, capsys):
    with pytest.raises(Interrupted):
        pretrain(config(), callbacks=stop_after(10))
    bucket = Bucket(URL)
    name = next(n for n in bucket.entries("checkpoints/8/state") if "/d/" in n)
    bucket.put(name, bytes(len(bucket.get(name))))
    machine()
    findings = [finding for finding in inspect.verify(URL) if finding.fatal]
    assert [finding.kind for finding in findings] == ["damaged"]
    pretrain(config())
    assert "Continuing after step 4" in capsys.readouterr().out
    require_equal(URL, local_run)


def test_a_step_is_replaced_without_a_moment_without_it(machine, tmp_path, monkeypatch):
    bucket, place = Bucket(URL), tmp_path / "run"
    folder = place / "checkpoints" / "4"

    def write(text):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "data").write_text(text)
        (folder / "manifest.json").write_bytes(
            units.manifest.seal({"kind": "step"}, folder)
        )

    write("old")
    assert units.publish(bucket, place, "checkpoints/4", lambda: None)
    write("new")

    def broken(self, file, name):
        raise RemoteError("gone", "later")

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "upload", broken)
        with pytest.raises(RemoteError):
            units.publish(bucket, place, "checkpoints/4", lambda: None)
    copy = working.WorkingCopy(URL)
    copy.open()
    assert (copy.path / "checkpoints" / "4" / "data").read_text() == "old"
    copy.close()
    assert bucket.get("checkpoints/4/data") == b"old"
    assert units.publish(bucket, place, "checkpoints/4", lambda: None)
    assert bucket.get("checkpoints/4/data") == b"new"
    assert not any("replaced" in name for name in bucket.entries())


@pytest.mark.slow
def test_encoders_are_read_from_a_bucket(machine, local_run, capsys, tmp_path):
    pretrain(config())
    machine()
    expected = afterimage.load_encoder(local_run.run)
    for url in (URL, f"{URL}/encoder", f"{URL}/"):
        found = afterimage.load_encoder(url)
        assert flatten(found.params).keys() == flatten(expected.params).keys()
        for name, leaf in flatten(found.params).items():
            np.testing.assert_array_equal(leaf, flatten(expected.params)[name])
    step = afterimage.load_encoder(f"{URL}/checkpoints/8")
    assert step.manifest["trained"]["steps"] == 8
    cached = [n for n in files_under(working.cache_dir()) if "/checkpoints/12/" in n]
    assert cached == []  # only what was needed
    with pytest.raises(UserError, match="does not exist"):
        afterimage.load_encoder("memory://bucket/never")
    out = tmp_path / "features.parquet"
    assert (
        commands.main(
            ["features", "synthetic:16x16x1", "--from", URL, "--out", str(out)]
        )
        == 0
    )
    assert out.is_file()
    assert commands.main(["checkpoints", "list", URL]) == 0
    assert commands.main(["checkpoints", "verify", URL]) == 0
    assert commands.main(["checkpoints", "show", URL]) == 0
    assert "12" in capsys.readouterr().out
    assert commands.main(["compare", URL, str(local_run.run)]) == 0
    assert commands.main(["checkpoints", "prune", URL]) == 0
    assert [row.step for row in inspect.list_steps(URL)] == [12]


def test_a_bucket_with_other_files_is_refused(machine):
    Bucket(URL).put("photos/a.jpg", b"1")
    with pytest.raises(UserError, match="not a run folder"):
        pretrain(config())
    assert list(Bucket(URL).entries()) == ["photos/a.jpg"]


def test_files_of_results_stay_here():
    command = ["features", "digits", "--from", URL, "--out", "memory://b/f.parquet"]
    assert commands.main(command) == 2
