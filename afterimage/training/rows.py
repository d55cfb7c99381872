"""Reads metrics.jsonl back; damage to it never stops a run."""

import contextlib
import io
import os
import pathlib
from collections.abc import Callable
from typing import Any

import msgspec

from afterimage.checkpoints import files

_LONGEST = 2**20  # bytes of a line; ours have a few hundred
_MOST = 2**32  # bytes of a file
_DECODER = msgspec.json.Decoder(dict[str, bool | int | float | str | None])


def read_rows(
    path: pathlib.Path, note: Callable[[str], None], *, keep_bad: bool = True
) -> list[dict[str, Any]]:
    """The good lines of a metrics.jsonl, as dictionaries with a step >= 0.

    Damaged lines are appended to `NAME.damaged` beside it, and a path that is not a
    file is renamed to that; `note` is called with one sentence about it. A last line
    without its end, which a killed writer leaves, is dropped silently. With
    `keep_bad=False` nothing is written (another process does).
    """
    if not os.path.lexists(path):
        return []
    aside = path.with_name(f"{path.name}.damaged")
    try:
        file = files.open_regular(path)
        if os.fstat(file.fileno()).st_size > _MOST:
            file.close()
            raise OSError(f"has more than {_MOST} bytes")
    except OSError as error:
        if keep_bad:
            new = _rename(path, aside)
            note(f"{path} {files.reason(error)}; it was moved to {new}")
        return []
    rows: list[dict[str, Any]] = []
    bad = 0
    with file, contextlib.ExitStack() as stack:
        kept = io.BytesIO()
        while line := file.readline(_LONGEST):
            row = _row(line)
            if row is not None:
                rows.append(row)
            elif line.endswith(b"\n") or len(line) == _LONGEST:
                if not bad and keep_bad:
                    kept = stack.enter_context(aside.open("ab"))
                bad += 1
                _copy_line(line, file, kept if keep_bad else None)
    if bad and keep_bad:
        note(f"{path}: damaged lines ({bad}) were moved to {aside}")
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError):
        return None
    step = row.get("step")
    return row if type(step) is int and 0 <= step < 2**53 else None


def _copy_line(line: bytes, file: io.BufferedReader, to: Any) -> None:
    """A bad line, however long it is, in pieces."""
    while line:
        if to is not None:
            to.write(line)
        if line.endswith(b"\n"):
            return
        line = file.readline(_LONGEST)
    if to is not None:
        to.write(b"\n")


def _rename(path: pathlib.Path, aside: pathlib.Path) -> pathlib.Path:
    """Move a path to a new name; nothing is overwritten."""
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = aside.with_name(f"{path.name}.damaged-{number}")
    return path.rename(aside)
