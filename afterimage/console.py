"""What is said: standard streams that cannot fail, notes, and bars of progress."""

import functools
import io
import os
import select
import sys
import time
from typing import Any

from afterimage.checkpoints.names import printable

_EVERY = 10.0  # seconds between lines; quicker work says nothing


class _Tolerant(io.RawIOBase):
    """Bytes to a file descriptor; what its disk or terminal refuses is dropped.

    A pipe whose reader is gone still raises BrokenPipeError.
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
            except BlockingIOError:  # a reader made the pipe so, and is slow
                select.select([], [self._descriptor], [])
            except BrokenPipeError:
                raise
            except OSError as error:
                self.lost = error
                break
        return len(data)


def prepare() -> None:
    """Make printing unable to end the program.

    Closed streams (`>&-`) are replaced by /dev/null, so that no file that the program
    opens takes their number; text for a full disk or a closed terminal is dropped;
    characters that the terminal's encoding lacks are escaped. Streams that a caller in
    Python replaced are kept, and escape too.
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
    """Print lines on standard output; control characters of names are escaped."""
    print(printable(text, keep="\n\t"), flush=True)


def say_reading(data: Any) -> None:
    """Print on standard error, of the first process, that images are being read."""
    import jax

    if jax.process_index() == 0 and isinstance(data, str):
        print(printable(f"Reading {data} ..."), file=sys.stderr, flush=True)


def shows_bars(stream: Any) -> bool:
    """Whether progress is a bar: on a terminal, and in a notebook."""
    return in_notebook() or stream.isatty()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return "ipykernel.zmqshell" in sys.modules


def make_bar(**settings: Any) -> Any:
    """A tqdm bar; the notebook's own in a notebook."""
    if in_notebook():
        from tqdm.auto import tqdm

        del settings["file"]
    else:
        from tqdm import tqdm
    return tqdm(**settings)


def lost_output() -> OSError | None:
    """The error that lost text for standard output, if any."""
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
    """Counts up to `total`: a bar on a terminal, a line now and then elsewhere."""

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
        """`count` more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._said >= _EVERY:
            self._said = now
            rate = self._done / (now - self._began)
            print(
                f"{self._what}: {self._done:,} of {self._total:,}, "
                f"{rate:,.1f} {self._unit}/s, "
                f"{(self._total - self._done) / rate:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )
