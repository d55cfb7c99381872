"""A save that fails says so, is never lost, and costs no good checkpoint."""

import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.checkpoints import files, inspect
from afterimage.checkpoints.errors import SaveError
from afterimage.checkpoints.store import Store

SMALL = {"w": jnp.ones(100)}


def noise(megabytes):
    """What no compression makes smaller."""
    size = megabytes * 2**20 // 4
    return {"w": np.random.default_rng(0).integers(0, 2**31, size, np.int32)}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.fixture
def failing(monkeypatch):
    """Make the manifest's write, the last before the rename, fail."""

    def fail_with(error):
        def write(path: pathlib.Path, data: bytes):
            raise error

        monkeypatch.setattr(files, "write_bytes", write)

    return fail_with


def assert_only_good_steps(folder, steps):
    place = folder / "checkpoints"
    assert sorted(path.name for path in place.iterdir()) == [str(s) for s in steps]
    assert inspect.verify(folder) == []
    assert Store(folder).restore()[0] == steps[-1]


def test_too_little_space_is_said_before_writing(small_disk):
    store = Store(small_disk)
    store.save(1, SMALL, manifest={}, wait=True)
    with pytest.raises(SaveError, match=r"Step 2 needs about 31\.5 MB.* free"):
        store.save(2, noise(30), manifest={})
    store.wait()
    assert_only_good_steps(small_disk, [1])
    store.save(3, SMALL, manifest={}, wait=True)
    assert_only_good_steps(small_disk, [1, 3])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Orbax leaves its tasks behind
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_fills_up_meanwhile_costs_no_checkpoint(small_disk, monkeypatch):
    store = Store(small_disk)
    store.save(1, SMALL, manifest={}, wait=True)
    monkeypatch.setattr(files, "require_space", lambda *_: None)
    with pytest.raises(SaveError, match=r"Step 2 was not saved.*free some space"):
        store.save(2, noise(30), manifest={})
        store.wait()
    assert_only_good_steps(small_disk, [1])
    store.save(3, SMALL, manifest={}, wait=True)
    assert_only_good_steps(small_disk, [1, 3])


FULL = OSError(28, "No space left on device")
FORBIDDEN = PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("error", "cure"), [(FULL, "free some space"), (FORBIDDEN, "writable")]
)
@pytest.mark.parametrize("call", ["check", "save", "wait", "restore", "exit"])
def test_a_background_error_is_raised_by_the_next_call(
    tmp_path, failing, monkeypatch, error, cure, call
):
    store = Store(tmp_path)
    store.save(1, SMALL, manifest={}, wait=True)
    failing(error)
    store.save(2, SMALL, manifest={})
    assert store._thread is not None
    store._thread.join()
    monkeypatch.undo()
    later = {
        "check": store.check,
        "save": lambda: store.save(3, SMALL, manifest={}),
        "wait": store.wait,
        "restore": store.restore,
        "exit": lambda: store.__exit__(None, None, None),
    }[call]
    with pytest.raises(SaveError, match=f"Step 2 was not saved.*{cure}") as caught:
        later()
    assert caught.value.exit_code == 2
    store.check()  # said once, not again
    store.save(4, SMALL, manifest={}, wait=True)
    assert_only_good_steps(tmp_path, [1, 4])


def test_a_background_error_is_told_once(tmp_path, failing, caplog):
    notes: list[str] = []
    failing(FULL)
    with pytest.raises(SaveError, match="Step 2 was not saved"):
        with Store(tmp_path, warn=notes.append) as store:
            store.save(2, SMALL, manifest={})
    assert not caplog.text
    assert not notes


def test_an_exception_in_the_loop_is_not_hidden_by_a_failed_save(tmp_path, failing):
    notes: list[str] = []
    failing(FULL)
    with pytest.raises(ZeroDivisionError):
        with Store(tmp_path, warn=notes.append) as store:
            store.save(1, SMALL, manifest={})
            raise ZeroDivisionError
    (note,) = notes
    assert "Step 1 was not saved" in note


def test_a_failed_save_that_nobody_waits_for_is_told_at_the_end(tmp_path):
    code = (
        "import errno, sys, jax.numpy as jnp\n"
        "from afterimage.checkpoints import files\n"
        "from afterimage.checkpoints.store import Store\n"
        "def full(path, data): raise OSError(errno.ENOSPC, 'no space', str(path))\n"
        "files.write_bytes = full\n"
        "Store(sys.argv[1]).save(2, {'w': jnp.ones(5)}, manifest={})\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count("Step 2 was not saved") == 1


def test_a_program_that_ends_without_waiting_loses_nothing(tmp_path):
    code = (
        "import sys, jax.numpy as jnp; from afterimage.checkpoints.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "store.save(2, {'w': jnp.ones((500, 500))}, manifest={})\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "not saved" not in done.stderr
    assert_only_good_steps(tmp_path, [2])


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_read_only_folder_is_said_at_once(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(SaveError, match="writable"):
            Store(tmp_path).save(1, SMALL, manifest={})
    finally:
        tmp_path.chmod(0o700)


def test_a_file_in_the_place_of_the_folder_is_said_at_once(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(SaveError, match="Step 1 was not saved"):
        Store(tmp_path).save(1, SMALL, manifest={})
