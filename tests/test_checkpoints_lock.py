"""One writer to a run folder; the kernel lets go when it dies."""

import json
import os
import signal
import subprocess
import sys

import pytest

from afterimage.checkpoints import files
from afterimage.checkpoints.errors import RunLocked
from afterimage.checkpoints.files import RunLock

HOLD = (
    "import sys, time; from afterimage.checkpoints.files import RunLock; "
    "RunLock(sys.argv[1]).acquire(); print('held', flush=True); time.sleep(60)"
)


def hold(folder, code=HOLD):
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    return process


def test_the_file_says_who_holds_it(tmp_path):
    with RunLock(tmp_path / "run"):
        said = json.loads((tmp_path / "run" / "lock").read_text())
    assert said["pid"] == os.getpid()
    assert set(said) == {"pid", "host", "start"}


def test_a_second_lock_in_this_process_is_refused(tmp_path):
    with RunLock(tmp_path):
        with pytest.raises(RunLocked, match=f"process {os.getpid()} on"):
            RunLock(tmp_path).acquire()
    with RunLock(tmp_path):
        assert files.holds_lock(tmp_path)
    assert not files.holds_lock(tmp_path)


def test_another_process_is_named_and_its_death_by_sigkill_frees_the_lock(tmp_path):
    process = hold(tmp_path)
    with pytest.raises(RunLocked, match=f"process {process.pid} on") as error:
        RunLock(tmp_path).acquire()
    assert error.value.exit_code == 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with RunLock(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_does_not_keep_the_lock_of_its_dead_parent(tmp_path):
    """A data worker that outlives a killed run must not block the next."""
    code = (
        "import os, sys, time; from afterimage.checkpoints.files import RunLock\n"
        "run = RunLock(sys.argv[1]); run.acquire()\n"
        "child = os.fork()\n"
        "if child == 0: os.close(1); time.sleep(60)\n"
        "open(sys.argv[1] + '/child', 'w').write(str(child))\n"
        "print('held', flush=True); time.sleep(60)"
    )
    process = hold(tmp_path, code)
    child = int((tmp_path / "child").read_text())
    process.kill()
    process.communicate()
    try:
        assert files.alive(child)
        with RunLock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_an_exception_frees_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with RunLock(tmp_path):
            raise ZeroDivisionError
    with RunLock(tmp_path):
        pass


class TestWithoutFcntl:
    @pytest.fixture(autouse=True)
    def _no_fcntl(self, monkeypatch):
        monkeypatch.setattr(files, "fcntl", None)

    def test_a_second_writer_is_refused(self, tmp_path):
        with RunLock(tmp_path):
            with pytest.raises(RunLocked, match=f"process {os.getpid()}"):
                RunLock(tmp_path).acquire()
        assert not (tmp_path / "lock").exists()

    def test_a_dead_process_is_taken_over(self, tmp_path):
        process = hold(tmp_path)
        process.kill()
        process.communicate()
        with RunLock(tmp_path):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()

    def test_another_host_is_not_second_guessed(self, tmp_path):
        content = {"pid": 1, "host": "elsewhere", "start": "then"}
        (tmp_path / "lock").write_text(json.dumps(content))
        with pytest.raises(RunLocked, match="process 1 on elsewhere since then"):
            RunLock(tmp_path).acquire()
