"""Progress with images/s and time left: a bar on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

_LINE_SECONDS = 5.0
_OVERDUE_SECONDS = 60.0


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02d}"


class Progress:
    """Counts finished steps and time; evaluation, saving and the first step's
    compilation are kept out of images/s. Costs no device value of its own."""

    def __init__(self, total: int, *, batch_size: int, stream: Any = None):
        self.total, self.batch_size = total, batch_size
        self.stream = stream if stream is not None else sys.stderr
        self.quiet = jax.process_index() != 0
        self._bar: Any = None
        self._since: float | None = None
        self._last_line = 0.0
        self.step = 0
        self._reset()

    def _reset(self) -> None:
        self._began = self._mark = time.perf_counter()
        self._training = self._stalled = 0.0
        self._steps = 0
        self.warm = False

    def start(self, step: int) -> None:
        """A phase begins at `step`; what is added first compiled, and is not timed."""
        self._reset()
        self.step = step
        if self.stream.isatty() and not self.quiet and self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total, initial=step, unit="step", file=self.stream
            )
        if self._bar is None and not self.quiet:
            print("Compiling the training step ...", file=self.stream, flush=True)

    def waiting(self, blocks: Iterator[Any]) -> Iterator[Any]:
        """Passes blocks through and measures how long they were waited for.

        One that does not come within a minute is told of: a drive that hangs looks
        like slow training otherwise.
        """
        done = threading.Event()
        threading.Thread(target=self._watch, args=(done,), daemon=True).start()
        try:
            while True:
                self._since = before = time.perf_counter()
                block = next(blocks, None)
                self._since = None
                if block is None:
                    return
                if self.warm:
                    self._stalled += time.perf_counter() - before
                yield block
        finally:
            done.set()

    def _watch(self, done: threading.Event) -> None:
        told = None
        while not done.wait(_OVERDUE_SECONDS / 10):
            since = self._since
            late = since is not None and time.perf_counter() - since > _OVERDUE_SECONDS
            if late and since != told:
                told = since
                self.note(
                    f"No batch for {_OVERDUE_SECONDS:.0f} s: reading the images hangs "
                    "or is very slow (a network drive?). Still waiting; Ctrl-C twice "
                    "stops at once, and the same command continues later"
                )

    def add(self, steps: int) -> None:
        """`steps` more are finished."""
        now = time.perf_counter()
        if self.warm:
            self._training += now - self._mark
            self._steps += steps
        self._mark = now
        self.warm = True
        self.step += steps
        if self._bar is not None:
            self._bar.update(steps)

    def pause(self, what: str) -> None:
        """Training stops for `what`."""
        self._training += time.perf_counter() - self._mark if self.warm else 0.0
        if self._bar is not None:
            self._bar.set_description(what)

    def resume(self) -> None:
        self._mark = time.perf_counter()
        if self._bar is not None:
            self._bar.set_description("")

    def rate(self) -> float:
        """Training images a second, 0 before any step is timed."""
        return self._steps * self.batch_size / self._training if self._training else 0.0

    def _speed(self) -> str:
        rate = self.rate()
        return f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"

    def timing(self) -> dict[str, float]:
        """For the metrics line: rate, share of the time spent waiting for input."""
        share = self._stalled / self._training if self._training else 0.0
        return {"time/images_per_second": self.rate(), "time/input_stall": share}

    def left(self) -> float:
        """Seconds of training left, 0 while unknown."""
        rate = self.rate()
        return (self.total - self.step) * self.batch_size / rate if rate else 0.0

    def show(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The newest metrics; at most a line every few seconds off a terminal."""
        words = [f"loss {metrics['loss']:.4g}"]
        if "relative_loss" in metrics:
            words.append(f"{metrics['relative_loss']:.3f} of the mean image's")
        if "accuracy" in metrics:
            words.append(f"accuracy {metrics['accuracy']:.3f}")
        if metrics.get("skipped"):
            words.append(f"{metrics['skipped']} skipped")
        if self._bar is not None:
            self._bar.set_postfix_str(f"{', '.join(words)}, {self._speed()}")
            return
        now = time.perf_counter()
        if self.quiet or (now - self._last_line < _LINE_SECONDS and step < self.total):
            return
        self._last_line = now
        width = len(str(self.total))
        text = f"step {step:{width}}/{self.total}  {', '.join(words)}"
        if self.rate():
            text += f"  {self._speed()}  {clock(self.left())} left"
        print(text, file=self.stream, flush=True)

    def evaluated(self, step: int, results: Mapping[str, Any]) -> None:
        """A line of evaluation results."""
        words = [
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in results.items()
        ]
        self.note(f"eval {step}/{self.total}  " + ", ".join(words))

    def note(self, text: str) -> None:
        """A line that does not break the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
