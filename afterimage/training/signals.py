"""SIGTERM, SIGINT, SIGHUP: finish the step, save, leave with an own exit code."""

import contextlib
import signal
import sys
import threading
from typing import Any

import jax
import numpy as np

_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP")  # the last not on Windows
    if hasattr(signal, name)
)


class StopRequested(Exception):
    """Raised by `StopSignal.check` inside long work that may be left at any point."""


class StopSignal:
    """While entered, a first signal sets a flag; a second one stops at once.

    Long work polls it: the loop after each dispatch, evaluations between batches. (A
    handler that saved by itself would run in the middle of a step.)
    """

    def __init__(self) -> None:
        self.name = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # `nohup` asked that the end of the terminal change nothing.
                ignored = signal.getsignal(number) == signal.SIG_IGN
                if not (ignored and number == getattr(signal, "SIGHUP", None)):
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: object) -> None:
        del frame
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        with contextlib.suppress(OSError):  # with SIGHUP the terminal is gone
            again = "Ctrl-C again" if self.name == "SIGINT" else "A second signal"
            print(
                f"\n{self.name}: finishing this step, saving, then stopping. {again} "
                "stops at once; what was saved before is kept",
                file=sys.stderr,
                flush=True,
            )

    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return bool(self.name)

    def agreed(self) -> bool:
        """Whether any process was asked to stop; every process gets the same answer.

        With several processes this is a collective: all must call it at the same step.
        """
        if jax.process_count() == 1:
            return self.requested()
        from jax.experimental import multihost_utils

        flags = multihost_utils.process_allgather(np.array(self.requested(), np.int32))
        stop = bool(np.any(flags))
        if stop and not self.name:
            self.name = "a stop signal on another host"
        return stop

    def check(self) -> None:
        """Raises `StopRequested` after a signal (single-process work only)."""
        if self.requested() and jax.process_count() == 1:
            raise StopRequested(self.name)
