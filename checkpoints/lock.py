"""One writer to a run folder."""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import socket
import stat
import weakref
from typing import Any

from afterimage.checkpoints import files, jsons
from afterimage.checkpoints.errors import RunLocked, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = "lock"
_held: weakref.WeakSet["RunLock"] = weakref.WeakSet()


class RunLock:
    """Exclusive right to write to a run folder; a context manager.

    The kernel holds the lock (`flock`) and gives it back when this process ends, by
    SIGKILL as well; the file `lock` only says who holds it (pid, host, start). Where
    there is no `fcntl` (Windows) the file itself is the lock: created exclusively,
    removed at the end, and taken over when its process on this host is no more. On a
    network file system that does not pass `flock` on, hosts do not see each other.

    Raises RunLocked, naming the other writer; UsageError if the folder cannot be
    locked at all (read-only, a folder named `lock`, a disk without locks).
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = pathlib.Path(folder).resolve()
        self.path = self.folder / NAME
        self._handle: int | None = None

    def __enter__(self) -> "RunLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock or raise RunLocked; creates the folder."""
        if self._handle is not None:
            raise self._refusal()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._handle = self._open_locked()
        except OSError as error:
            fault = files.disk_fault(error) or str(error)
            raise UsageError(f"{self.folder} cannot be locked: {fault}") from error
        # The content is only for people: a full disk is no reason to refuse here.
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(_this_process()).encode(), 0)
        _held.add(self)

    def release(self) -> None:
        """Give the lock back; the file stays, empty."""
        if self._handle is None:
            return
        _held.discard(self)
        handle, self._handle = self._handle, None
        # Emptied, not deleted: a second process may have opened it to wait for us.
        with contextlib.suppress(OSError):  # the disk may have become read-only
            os.ftruncate(handle, 0)
            if fcntl is None:
                self.path.unlink(missing_ok=True)
        os.close(handle)

    def _open_locked(self) -> int:
        if fcntl is None:
            return self._create()
        # Not through a link: what it leads to would be emptied. Not waiting for the
        # other end of a pipe.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        handle = os.open(self.path, flags, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.path))
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise self._refusal() from None
        except OSError:
            os.close(handle)
            raise
        return handle

    def _create(self) -> int:
        """The fallback: the file's existence is the lock."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        try:
            return os.open(self.path, flags, 0o644)
        except FileExistsError:
            other = self._other()
            here = other.get("host") == socket.gethostname()
            pid = other.get("pid")
            if not here or (isinstance(pid, int) and alive(pid)):
                raise self._refusal() from None
        self.path.unlink()
        return os.open(self.path, flags, 0o644)

    def _other(self) -> dict[str, Any]:
        try:
            content = jsons.parse(files.read_bytes(self.path, 2**16))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _refusal(self) -> RunLocked:
        other = self._other()
        who = (
            f"process {other.get('pid')} on {other.get('host')} since "
            f"{other.get('start')}"
            if other
            else "another process"
        )
        return RunLocked(
            f"{self.folder} is being written by {who}. Wait for it or stop it, or "
            "choose another folder."
        )


def held(folder: str | os.PathLike[str]) -> bool:
    """Whether this process holds the lock of a run folder."""
    wanted = pathlib.Path(folder).resolve()
    return any(lock.folder == wanted for lock in _held)


def alive(pid: int) -> bool:
    """Whether a process of this host exists."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no process has such a number
        return False
    except PermissionError:
        return True
    return True


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "start": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _forget_in_child() -> None:
    # A forked data worker inherits the handle and would keep the lock after its
    # parent was killed.
    for lock in list(_held):
        if lock._handle is not None:
            os.close(lock._handle)
            lock._handle = None
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
