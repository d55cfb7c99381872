"""The standard streams of a command, whatever is at their other end."""

import io
import os
import select
import sys
from typing import Any

from afterimage.checkpoints.names import printable


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
