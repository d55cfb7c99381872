"""Console output: standard streams that cannot fail, notes and progress bars."""

import contextvars
import functools
import io
import os
import select
import sys
import time
from typing import Any

from afterimage.checkpoints.names import printable

COMMAND: contextvars.ContextVar[str] = contextvars.ContextVar("COMMAND", default="")
"""The command line that is running now; empty if Python called us."""
_EVERY = 10.0  # seconds between lines; faster work prints none


class _Tolerant(io.RawIOBase):
    """Writes bytes to a file descriptor; drops what its disk or terminal refuses.

    A pipe without a reader still raises BrokenPipeError.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self.lost: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # a slow reader made the pipe non-blocking
                select.select([], [self._descriptor], [])
            except BrokenPipeError:
                raise
            except OSError as error:
                self.lost = error
                break
        return len(data)


def prepare() -> None:
    """Make printing unable to end the program.

    Closed streams (`>&-`) become /dev/null, so that no file the program opens takes
    their number; text for a full disk or a closed terminal is dropped; characters that
    the terminal cannot encode are escaped. Streams that a Python caller replaced are
    kept, with the same escaping.
    """
    # In this order each takes the lowest free number: its own.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    sys.stdout = _replaced(sys.stdout, 1)
    sys.stderr = _replaced(sys.stderr, 2)


def say(text: str) -> None:
    """Print lines to standard output, with control characters in names escaped."""
    print(printable(text, keep="\n\t"), flush=True)


def say_result(text: str) -> None:
    """`say` in the first process alone: the others have only a part of the result."""
    import jax

    if jax.process_index() == 0:
        say(text)


def say_doing(what: str) -> None:
    """Print to standard error, in the first process, what takes a while now."""
    import jax

    if jax.process_index() == 0:
        print(printable(f"{what} ..."), file=sys.stderr, flush=True)


def say_reading(data: Any) -> None:
    """Say that these images are being read, if they have a name."""
    if isinstance(data, str):
        say_doing(f"Reading {data}")


def shows_bars(stream: Any) -> bool:
    """Whether to show progress as a bar: on a terminal and in a notebook."""
    return in_notebook() or stream.isatty()


def in_notebook() -> bool:
    """Whether this process is a notebook kernel."""
    return "ipykernel.zmqshell" in sys.modules


def make_bar(**settings: Any) -> Any:
    """A tqdm bar, in a notebook the notebook version."""
    if in_notebook():
        from tqdm.auto import tqdm

        del settings["file"]
    else:
        from tqdm import tqdm
    return tqdm(**settings)


def lost_output() -> OSError | None:
    """The error that made standard output lose text, if any."""
    return getattr(_raw(sys.stdout), "lost", None)


def _raw(stream: Any) -> Any:
    buffer = getattr(stream, "buffer", None)  # itself the raw one in `python -u`
    return getattr(buffer, "raw", buffer)


def _replaced(stream: Any, number: int) -> Any:
    raw = _raw(stream)
    if not isinstance(raw, io.FileIO) or raw.fileno() != number:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        return stream
    stream.flush()
    raw = _Tolerant(number)
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if hasattr(stream.buffer, "raw") else raw,  # type: ignore
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=not hasattr(stream.buffer, "raw"),
    )


@functools.cache
def say_once(text: str) -> None:
    """Print a note to standard error, unless this process has printed it already."""
    print(printable(text, keep="\n"), file=sys.stderr, flush=True)


class ProgressBar:
    """Counts up to `total`: a bar on a terminal, elsewhere a line every 10 seconds."""

    def __init__(self, total: int, what: str, unit: str = "images"):
        self._total, self._what, self._done = total, what, 0
        self._began = self._said = time.monotonic()
        self._unit, self._bar = unit, None
        if shows_bars(sys.stderr):
            self._bar = make_bar(
                total=total, desc=what, unit=f" {unit}", delay=0.5, file=sys.stderr
            )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, count: int) -> None:
        """Count `count` more as done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._said >= _EVERY:
            self._said = now
            rate = self._done / (now - self._began)
            print(
                f"{self._what}: {self._done:,} of {self._total:,}, {rate:,.1f} "
                f"{self._unit}/s, {(self._total - self._done) / rate:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )
