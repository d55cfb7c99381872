"""Files that survive a crash: checksums, fsync, atomic replacement, the run's lock."""

import contextlib
import datetime
import errno
import hashlib
import io
import json
import math
import os
import pathlib
import shutil
import socket
import stat
import weakref
from collections.abc import Mapping
from typing import Any

from afterimage.checkpoints.errors import (
    RunLocked,
    SaveError,
    UsageError,
    disk_fault,
    readable_size,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading.

    Raises OSError for anything else: a pipe would wait for a writer, and a device may
    never end.
    """
    _require_regular(os.stat(path).st_mode)  # opening a device may have effects
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _require_regular(os.fstat(file.fileno()).st_mode)  # in case it was replaced
    except OSError:
        file.close()
        raise
    return file


def read_bytes(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """The bytes of a regular file, at most `most` (default: what fits in memory).

    Raises OSError if it is not a regular file, is larger, or cannot be read.
    """
    limit = memory() if most is None else most
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(
                f"has {size} bytes ({readable_size(size)}); expected at most {limit}"
            )
        try:
            return file.read(size)
        except MemoryError:
            raise OSError(f"has {size} bytes, more than fits in memory") from None


def memory() -> int:
    """Bytes of available memory; half of the total where that is unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for row in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if row.startswith("MemAvailable:"):
                return 1024 * int(row.split()[1])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # Windows
        return 2**32


def reason(error: BaseException) -> str:
    """Why a read failed, without errno and path: `is a pipe, not a regular file`."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return str(error)


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(f"is {kind}, not a regular file")


def sha256(path: pathlib.Path) -> str:
    """SHA-256 of a regular file's bytes, as 64 hexadecimal digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: pathlib.Path) -> None:
    """Force a file's bytes to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: pathlib.Path) -> None:
    """Force a folder's entries to the disk, where the system can."""
    with contextlib.suppress(OSError):  # Windows cannot open a folder
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Write a new file and force it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: pathlib.Path, data: bytes) -> pathlib.Path:
    """Write a file completely or not at all, by renaming a temporary file.

    On failure the existing file stays and nothing else is left behind.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_bytes(partial, data)
        return partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def is_partial(name: str) -> bool:
    """Whether `replace_file` uses a name like this for an unfinished file."""
    return name.startswith(".") and name.endswith(".partial")


def canonical_json(value: Any) -> str:
    """The canonical form of a JSON value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def finite(value: Any) -> Any:
    """A JSON value with each NaN and infinity, which JSON lacks, replaced by null."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def files_under(folder: pathlib.Path) -> list[str]:
    """Relative paths of every file below a folder, sorted; links are files."""
    found = []
    for parent, _, names in os.walk(folder):
        base = pathlib.Path(parent).relative_to(folder)
        found += [(base / name).as_posix() for name in names]
    return sorted(found)


def links_out(folder: pathlib.Path) -> list[str]:
    """Relative paths of links below a folder that lead out of it, sorted."""
    return sorted(
        os.path.relpath(path, folder)
        for parent, folders, names in os.walk(folder)
        for name in (*folders, *names)
        if leads_out(path := os.path.join(parent, name), folder)
    )


def leads_out(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether a path is a link to something outside a folder."""
    if not os.path.islink(path):
        return False
    home, target = os.path.realpath(folder), os.path.realpath(path)
    return os.path.commonpath([home, target]) != home


def folder_size(folder: pathlib.Path) -> int:
    """Bytes of every file below a folder."""
    return sum((folder / name).lstat().st_size for name in files_under(folder))


def cannot_hold(folder: pathlib.Path) -> str | None:
    """Why a folder, which may not exist yet, cannot be written to; None if it can.

    Nothing is created or written to find out.
    """
    place = folder.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"{place} is not a folder; choose another path"
    if not os.access(place, os.W_OK | os.X_OK):
        return (
            f"{place} cannot be written to (read-only, or owned by another user); "
            "make it writable, or choose another path"
        )
    return None


def require_space(folder: pathlib.Path, needed: int, what: str) -> None:
    """Raise SaveError when `needed` bytes are more than the disk has free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SaveError(
            f"{what} needs about {readable_size(needed)} ({needed} bytes); the disk "
            f"of {folder} has {readable_size(free)} ({free} bytes) free. Nothing was "
            "written. Free some space (`afterimage checkpoints prune` deletes old "
            "steps) or use another disk."
        )


def remove(path: pathlib.Path, *, ignore_errors: bool = False) -> None:
    """Delete a folder and its contents; for a link, only the link."""
    if path.is_symlink():
        with contextlib.suppress(*((OSError,) if ignore_errors else ())):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=ignore_errors)


def put_in_place(new: pathlib.Path, final: pathlib.Path) -> None:
    """Rename a complete folder to its final name, then delete the one it replaces.

    Between the two renames the old folder still exists as `.NAME.replaced-PID`. If the
    process dies before the last rename, `recover` puts the complete folder in place at
    the next start.
    """
    old = final.with_name(f".{final.name}.replaced-{os.getpid()}")
    if final.exists():
        if os.path.lexists(old):
            remove(old)
        final.rename(old)
    new.rename(final)
    sync_folder(final.parent)
    if os.path.lexists(old):
        remove(old)


_LOCK = "lock"
_held: weakref.WeakSet["RunLock"] = weakref.WeakSet()


class RunLock:
    """Exclusive right to write to a run folder; a context manager.

    The kernel holds the lock (`flock`) and releases it when this process ends, even by
    SIGKILL; the file `lock` only says who holds it (pid, host, start). Without `fcntl`
    (Windows) the file itself is the lock: created exclusively, removed at the end, and
    taken over when its process on this host is gone. On a network file system that does
    not forward `flock`, hosts do not see each other's locks.

    Raises RunLocked, naming the other writer; UsageError if the folder cannot be
    locked at all (read-only, a folder named `lock`, a disk without locks).
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = pathlib.Path(folder).resolve()
        self.path = self.folder / _LOCK
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
            fault = disk_fault(error) or str(error)
            raise UsageError(f"{self.folder} cannot be locked: {fault}") from error
        # The content is only informative, so a full disk is no reason to refuse.
        start = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "start": start}
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(owner).encode(), 0)
        _held.add(self)

    def release(self) -> None:
        """Release the lock; the file stays, empty."""
        if self._handle is None:
            return
        _held.discard(self)
        handle, self._handle = self._handle, None
        # Emptied, not deleted: another process may have it open, waiting for the lock.
        with contextlib.suppress(OSError):  # the disk may have become read-only
            os.ftruncate(handle, 0)
            if fcntl is None:
                self.path.unlink(missing_ok=True)
        os.close(handle)

    def _open_locked(self) -> int:
        if fcntl is None:
            return self._create()
        # Do not follow a link, whose target would be emptied; do not block on a pipe.
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
            content = json.loads(read_bytes(self.path, 2**16))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def _refusal(self) -> RunLocked:
        return RunLocked(in_use(str(self.folder), self._other()))


def in_use(place: str, owner: Mapping[str, Any]) -> str:
    """What to say of a run folder with a lock, and the content of the lock."""
    who = "another process"
    if owner:
        pid, host, start = (owner.get(key) for key in ("pid", "host", "start"))
        who = f"process {pid} on {host} since {start}"
    return (
        f"{place} is being written by {who}. Wait for it or stop it, or choose another "
        "folder."
    )


def holds_lock(folder: str | os.PathLike[str]) -> bool:
    """Whether this process holds the lock of a run folder."""
    wanted = pathlib.Path(folder).resolve()
    return any(lock.folder == wanted for lock in _held)


def alive(pid: int) -> bool:
    """Whether a process with this id exists on this host."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no process has this id
        return False
    except PermissionError:
        pass
    return True


def _forget_in_child() -> None:
    # A forked data worker inherits the handle and would keep the lock after its parent
    # is killed.
    for lock in list(_held):
        if lock._handle is not None:
            os.close(lock._handle)
            lock._handle = None
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
