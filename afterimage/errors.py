"""Errors that users see, each with the exit code of the command it ends.

0 done · 1 a bug · 2 bad input · 3 damaged checkpoint ·
4 training diverged · 75 interrupted and saved; the same command continues ·
130 stopped at once · 141 the output was closed (`| head`).
"""

import contextlib
import difflib
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from afterimage.checkpoints.errors import disk_fault
from afterimage.checkpoints.files import cannot_hold

_LISTED = 5  # problems in one message


class AfterimageError(Exception):
    """An error the user can act on. The message gives value, expectation and fix."""

    exit_code = 1


class UserError(AfterimageError, ValueError):
    """A setting or an argument that cannot work."""

    exit_code = 2


class DataError(UserError):
    """Data that is missing, broken, or not what its name promised."""


class DiskError(UserError):
    """A file or folder that the disk or its permissions make unreadable or unwritable.

    Raised by `disk_errors` and `require_writable`.
    """


def refuse(problems: Sequence[str], where: str, cure: str = "") -> None:
    """Raises a DataError with the first problems, if there are any, and their cure."""
    if problems:
        more = len(problems) - _LISTED
        lines = [*problems[:_LISTED], *([f"and {more:,} more"] if more > 0 else [])]
        raise DataError(f"{where}:" + "\n  ".join(["", *lines]) + f"\n{cure}".rstrip())


class Diverged(AfterimageError):
    """Too many consecutive non-finite steps; the last good checkpoint is kept."""

    exit_code = 4


class Interrupted(AfterimageError):
    """A signal stopped the run. It was saved; the same command continues it."""

    exit_code = 75


@contextlib.contextmanager
def disk_errors(what: str, then: str = "") -> Iterator[None]:
    """Turn errors of a disk or folder into DiskError: `what`, fault, fix, `then`.

    Other errors pass through, including an OSError that is a bug in the program.
    """
    try:
        yield
    except OSError as error:
        fault = disk_fault(error)
        if fault is None:
            raise
        raise DiskError(f"{what}: {fault}{then}") from error


def require_writable(what: str, folder: pathlib.Path) -> None:
    """Raise DiskError if a folder, which may not exist yet, cannot be written to."""
    if (reason := cannot_hold(folder)) is not None:
        raise DiskError(f"{what}: {reason}")


def out_of_memory(error: BaseException | None) -> str | None:
    """The message of an error caused by too little memory; None for other errors."""
    if isinstance(error, MemoryError):
        return str(error) or "this process may use no more memory"
    text = str(error)
    if "JaxRuntimeError" in (kind.__name__ for kind in type(error).__mro__) and (
        "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
    ):
        return text.splitlines()[0][:200]
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known name or a stop.

    Suggests nothing if no known name is close.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.65)
    return f"; did you mean {near[0]!r}?" if near else "."


def nearest_path(path: str) -> str:
    """Like `did_you_mean`, for a path that does not exist."""
    folder, name = os.path.split(path.rstrip("/"))
    try:
        names = os.listdir(folder or ".")
    except (OSError, ValueError):
        return "."
    # Suggest hidden files only if the name itself starts with a dot.
    shown = [n for n in names[:10_000] if n[0] != "." or name.startswith(".")]
    return did_you_mean(name, shown)
