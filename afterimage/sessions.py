"""When a run began, how long it took over all restarts, and the commands for it."""

import contextlib
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from afterimage.checkpoints import schemas
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.files import replace_file
from afterimage.checkpoints.names import printable
from afterimage.console import COMMAND

_FORM = "%Y-%m-%dT%H:%M:%S"
_COMMANDS = 10  # later commands that are kept
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


class Sessions:
    """A file in the run folder with the time of all sessions, kept up to date.

    A session that is killed counts up to the last time that it was kept. If the file
    is damaged or cannot be written, the run goes on without it.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._before: dict[str, Any] = {}
        self._clock, self._began = time.perf_counter(), time.strftime(_FORM)
        self.kept = False

    def open(self) -> None:
        """Begins a session; the clock starts."""
        cure = "delete it; it only has the duration"
        with contextlib.suppress(CheckpointError):
            self._before = schemas.read(self._path, schemas.SessionsFile, cure)
        self._clock, self._began = time.perf_counter(), time.strftime(_FORM)

    def keep(self) -> None:
        """Writes the file."""
        self.kept = True
        text = json.dumps(self._now(), indent=2) + "\n"
        with contextlib.suppress(OSError):
            replace_file(self._path, text.encode())

    def _now(self) -> dict[str, Any]:
        before, command = self._before, printable(COMMAND.get())
        commands: list[str] = list(before.get("commands", ()))
        if command and command not in commands:
            commands = [*commands[: _COMMANDS - 1], command]
        return {
            "started": before.get("started", self._began),
            "seconds": before.get("seconds", 0.0) + time.perf_counter() - self._clock,
            "sessions": before.get("sessions", 0) + 1,
            "commands": commands,
        }

    def facts(self) -> dict[str, str]:
        """What a page says of them, now."""
        now = self._now()
        times = now["sessions"]
        restarts = "" if times < 2 else f", in {times} sessions"
        return {
            "Started": readable(now["started"]),
            "Page written": readable(time.strftime(_FORM)),
            "Duration": duration(now["seconds"]) + restarts,
        }

    @property
    def commands(self) -> Sequence[str]:
        """The command that began the run, then others that continued it."""
        return self._now()["commands"]


def readable(moment: str) -> str:
    """An ISO time without its T and seconds."""
    return moment[:16].replace("T", " ")


def duration(seconds: float | int) -> str:
    """`2 h 5 min`, `40 s`: the two largest units."""
    left, parts = round(max(0.0, seconds)), []
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(part for part in parts[:2] if part) or "under a second"
