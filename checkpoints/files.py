"""Files that survive a crash: checksums, fsync, atomic replacement, free space."""

import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import stat
from typing import Any

from afterimage.checkpoints.errors import SaveError


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading.

    Raises OSError for anything else: a pipe would wait for a writer, a device may have
    no end.
    """
    _require_regular(os.stat(path).st_mode)  # opening a device may already act on it
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _require_regular(os.fstat(file.fileno()).st_mode)  # replaced meanwhile?
    except OSError:
        file.close()
        raise
    return file


def read_bytes(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """The bytes of a regular file, at most `most`; by default what memory holds.

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
            raise OSError(f"has {size} bytes, more than memory can hold") from None


def memory() -> int:
    """Bytes of memory that this machine can still give; all it has where unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for row in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if row.startswith("MemAvailable:"):
                return 1024 * int(row.split()[1])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 2**36


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
    """Write a file whole or not at all: under another name first, then renamed.

    Where that fails, the file that was there stays and nothing else is left behind.
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
    """Whether a name is one that `replace_file` gives an unfinished file."""
    return name.startswith(".") and name.endswith(".partial")


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


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


def readable_size(count: float | int) -> str:
    """Bytes as a person says them: `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


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
            f"{place} cannot be written to (read-only, or not yours); make it "
            "writable, or choose another path"
        )
    return None


def require_space(folder: pathlib.Path, needed: int, what: str) -> None:
    """Raise SaveError when `needed` bytes are more than the disk has free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SaveError(
            f"{what} needs about {readable_size(needed)} ({needed} bytes), but only "
            f"{readable_size(free)} ({free} bytes) are free on the disk of {folder}. "
            "Nothing was written and the checkpoints there are untouched. Free some "
            "space (`afterimage checkpoints prune` deletes old steps) or use another "
            "disk."
        )


_FULL = ("ENOSPC", "EDQUOT")
_FORBIDDEN = ("EACCES", "EPERM")
_CURES = {
    **dict.fromkeys(_FULL, "The disk is full, or your quota is used up: free space."),
    **dict.fromkeys(_FORBIDDEN, "Change its permissions, or choose another path."),
    "ENOTDIR": "A file is where a folder should be: choose another path.",
    "EISDIR": "A folder is where a file should be: move it away.",
    "EEXIST": "Something else has this name: move it away, or choose another path.",
    "ENOTEMPTY": "Something else has this name: move it away.",
    "ENAMETOOLONG": "Choose a shorter name.",
    "ELOOP": "Its links form a loop, or a link is not allowed here.",
    "ENOENT": "It is missing, or was removed in the meantime: restore it.",
    "EROFS": "The disk is read-only: make it writable, or choose another path.",
    "EFBIG": "The file is larger than the disk or `ulimit -f` allows.",
    "EMFILE": "Too many files are open: raise `ulimit -n`.",
    "ENFILE": "Too many files are open on this machine.",
    "ENOLCK": "This file system cannot lock files: choose another one.",
    **dict.fromkeys(("ENOTSUP", "EOPNOTSUPP"), "Choose a path on another file system."),
    "EIO": "The disk, or the connection to it, is failing: check it.",
    "ENXIO": "The device, or the other end of the pipe, is not there.",
    "ENODEV": "The device is not there.",
    "ESTALE": "The network drive lost it: mount it again.",
    "ETIMEDOUT": "The network drive does not answer: check it.",
    "EBUSY": "Something else is using it: try again.",
}
"""Errors of disks, folders and limits, and how to cure each."""


def disk_fault(error: BaseException) -> str | None:
    """What a disk or a folder did, with the cure; None for any other error.

    A programming fault can be an OSError too (a closed handle, a wrong argument): it
    is not explained, so that it keeps its traceback.
    """
    cure = _CURES.get(_code(error))
    if cure is None or not isinstance(error, OSError):
        return None
    names = [str(name) for name in (error.filename, error.filename2) if name]
    where = f"{' -> '.join(names)}: " if names else ""
    return f"{where}{error.strerror}. {cure}"


def _number(error: BaseException) -> int:
    """The number of a system error, also as TensorStore writes it in its text; or 0."""
    in_text = re.search(r"os_error_code='(\d+)'", str(error))
    return getattr(error, "errno", None) or (int(in_text[1]) if in_text else 0)


def _code(error: BaseException) -> str:
    """The name of a system error, e.g. ENOSPC; empty for other exceptions."""
    return errno.errorcode.get(_number(error), "")


def explain(error: BaseException, what: str, folder: pathlib.Path) -> SaveError:
    """A SaveError for whatever stopped a save, with the cure where one is known."""
    if isinstance(error, SaveError):
        return error
    code, text = _code(error), f"{type(error).__name__}: {error}"
    if code in _FULL or "No space left" in text or "RESOURCE_EXHAUSTED" in text:
        cure = f"The disk is full ({_free(folder)} free): free some space."
    elif code in _FORBIDDEN or "ermission denied" in text:
        cure = f"Make {folder} writable."
    else:
        cure = _CURES.get(code, f"Check {folder}.")
    if code:
        text = os.strerror(_number(error))
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {text}"
    return SaveError(
        f"{what} was not saved: {text}. {cure} The checkpoints before it are untouched."
    )


def _free(folder: pathlib.Path) -> str:
    try:
        return readable_size(shutil.disk_usage(folder).free)
    except OSError:  # the folder itself may be gone
        return "unknown"


def remove(path: pathlib.Path, *, ignore_errors: bool = False) -> None:
    """Delete a folder with all in it; of a link, the link alone."""
    if path.is_symlink():
        with contextlib.suppress(*((OSError,) if ignore_errors else ())):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=ignore_errors)


def put_in_place(new: pathlib.Path, final: pathlib.Path) -> None:
    """Rename a complete folder to its name, then delete what stood there before.

    Between the two renames the old folder still exists as `.NAME.replaced-PID`, and a
    folder that is whole but unnamed is put in place by `recover` at the next start.
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
