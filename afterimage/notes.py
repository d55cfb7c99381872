"""What is said about a user's data: notes, each printed once, and progress."""

import functools
import sys
import time

from afterimage.checkpoints.names import printable
from afterimage.console import make_bar, shows_bars

_EVERY = 10.0  # seconds between lines; quicker work says nothing


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
