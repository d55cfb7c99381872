"""Checkpoint errors with their exit codes; disk errors explained, each with its fix."""

import contextlib
import errno
import os
import pathlib
import re
import shutil


class CheckpointError(Exception):
    """A checkpoint is damaged, not ours, or does not fit; nothing was changed."""

    exit_code = 3


class SaveError(CheckpointError):
    """A checkpoint could not be written; the ones before it are untouched."""

    exit_code = 2


class RunLocked(CheckpointError):
    """Another process writes to this run folder."""

    exit_code = 2


class UsageError(CheckpointError, ValueError):
    """An invalid argument, or a folder that holds no checkpoint."""

    exit_code = 2


class TransferError(CheckpointError):
    """Weights do not fit the target; `report` lists every leaf."""

    exit_code = 2

    def __init__(self, message: str, report: object):
        super().__init__(message)
        self.report = report


_FULL = ("ENOSPC", "EDQUOT")
_FORBIDDEN = ("EACCES", "EPERM")
_CURES = {
    **dict.fromkeys(_FULL, "The disk or your quota is full: free some space."),
    **dict.fromkeys(_FORBIDDEN, "Change its permissions, or choose another path."),
    "ENOTDIR": "A file is where a folder should be: choose another path.",
    "EISDIR": "A folder is where a file should be: move it away.",
    "EEXIST": "This name is already in use: move it away, or choose another path.",
    "ENOTEMPTY": "This name is already in use: move it away.",
    "ENAMETOOLONG": "Choose a shorter name.",
    "ELOOP": "Symbolic links form a loop or are not allowed here.",
    "ENOENT": "It does not exist or was removed: restore it.",
    "EROFS": "The disk is read-only: make it writable, or choose another path.",
    "EFBIG": "The file is larger than the disk or `ulimit -f` allows.",
    "EMFILE": "Too many files are open: raise `ulimit -n`.",
    "ENFILE": "Too many files are open on this machine.",
    "ENOLCK": "This file system does not support locks: choose another one.",
    **dict.fromkeys(("ENOTSUP", "EOPNOTSUPP"), "Choose a path on another file system."),
    "EIO": "The disk or the connection to it is failing: check it.",
    "ENXIO": "The device or the other end of the pipe is gone.",
    "ENODEV": "The device does not exist.",
    "ESTALE": "The network drive was disconnected: mount it again.",
    "ETIMEDOUT": "The network drive does not answer: check it.",
    "EBUSY": "Something else is using it: try again.",
}
"""Errors of disks, folders and limits, and how to fix each."""


def disk_fault(error: BaseException) -> str | None:
    """A disk or folder error and how to fix it; None for any other error.

    A programming error can be an OSError too (a closed handle, a wrong argument); it
    returns None, so that it keeps its traceback.
    """
    cure = _CURES.get(_code(error))
    if cure is None or not isinstance(error, OSError):
        return None
    names = [str(name) for name in (error.filename, error.filename2) if name]
    where = f"{' -> '.join(names)}: " if names else ""
    return f"{where}{error.strerror}. {cure}"


def _number(error: BaseException) -> int:
    """The errno of a system error, also parsed from TensorStore's message; else 0."""
    in_text = re.search(r"os_error_code='(\d+)'", str(error))
    return getattr(error, "errno", None) or (int(in_text[1]) if in_text else 0)


def _code(error: BaseException) -> str:
    """The name of a system error, e.g. ENOSPC; empty for other exceptions."""
    return errno.errorcode.get(_number(error), "")


def explain(error: BaseException, what: str, folder: pathlib.Path) -> SaveError:
    """A SaveError for whatever stopped a save, with the fix where one is known."""
    if isinstance(error, SaveError):
        return error
    code, text = _code(error), f"{type(error).__name__}: {error}"
    if code in _FULL or "No space left" in text or "RESOURCE_EXHAUSTED" in text:
        free = "an unknown amount"
        with contextlib.suppress(OSError):  # the folder itself may be gone
            free = readable_size(shutil.disk_usage(folder).free)
        cure = f"The disk is full ({free} free): free some space."
    elif code in _FORBIDDEN or "ermission denied" in text:
        cure = f"Make {folder} writable."
    else:
        cure = _CURES.get(code, f"Check {folder}.")
    if code:
        text = os.strerror(_number(error))
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {text}"
    return SaveError(
        f"{what} was not saved: {text}. {cure} Earlier checkpoints are unchanged."
    )


def readable_size(count: float | int) -> str:
    """Bytes in readable units: `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
