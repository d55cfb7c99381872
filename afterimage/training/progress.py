"""Progress, examples/s and time left: a bar on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from afterimage.console import make_bar, shows_bars

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
    compilation do not count towards examples/s. Reads no values from the device.

    `every` maps each kind of pause to the steps between pauses: {"evaluating": 100,
    "saving": 100}. The time left includes these.
    """

    def __init__(
        self,
        total: int,
        *,
        batch_size: int,
        every: Mapping[str, int] = {},
        stream: Any = None,
    ):
        self.total, self.batch_size, self.every = total, batch_size, every
        self._pauses: dict[str, list[float]] = {what: [] for what in every}
        self._pause: tuple[str, float] | None = None
        self._paused_at: dict[str, int] = {}
        self._start = 0
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
        """A phase begins at `step`; its first dispatch compiles and is not timed."""
        self._reset()
        self.step = self._start = step
        if shows_bars(self.stream) and not self.quiet and self._bar is None:
            self._bar = make_bar(
                total=self.total,
                initial=step,
                unit="step",
                file=self.stream,
                # tqdm's own estimate ignores evaluations.
                bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
                "[{elapsed}{postfix}]",
            )
        self._say("compiling the training step")

    def waiting(self, blocks: Iterator[Any]) -> Iterator[Any]:
        """Passes blocks through and measures the time spent waiting for them.

        If a block takes more than a minute, a message says so: otherwise a hanging
        drive looks like slow training.
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
                    f"No batch for {_OVERDUE_SECONDS:.0f} s: reading images is very "
                    "slow or hangs (a network drive?). Still waiting. To stop at "
                    "once, press Ctrl-C twice; the same command continues later"
                )

    def add(self, steps: int) -> None:
        """Counts `steps` more as finished."""
        now = time.perf_counter()
        if self.warm:
            self._training += now - self._mark
            self._steps += steps
        self._mark = now
        self.warm = True
        self.step += steps
        if self._bar is not None:
            self._bar.set_description_str("", refresh=False)
            self._bar.update(steps)

    def pause(self, what: str) -> None:
        """Training pauses for `what`."""
        now = time.perf_counter()
        self._training += now - self._mark if self.warm else 0.0
        self._pause, self._paused_at[what] = (what, now), self.step
        times = self._pauses.setdefault(what, [])
        if not times or times[-1] > _LINE_SECONDS:
            self._say(what)
        elif self._bar is not None:
            self._bar.set_description_str(f"{what} ")

    def resume(self) -> None:
        """Training continues."""
        self._mark = time.perf_counter()
        if self._pause is not None:
            what, since = self._pause
            self._pauses[what].append(self._mark - since)
            self._pause = None
        if self._bar is not None:
            self._bar.set_description_str("")

    def _say(self, what: str) -> None:
        """Shows the current activity, before any step is finished."""
        if self._bar is not None:
            self._bar.set_description_str(f"{what} ")
        elif not self.quiet:
            text = f"{what[0].upper()}{what[1:]} ..."
            print(text, file=self.stream, flush=True)

    def rate(self) -> float:
        """Training images per second; 0 before any step is timed."""
        return self._steps * self.batch_size / self._training if self._training else 0.0

    def _speed(self) -> str:
        rate = self.rate()
        return f"{rate:,.0f} examples/s" if rate >= 10 else f"{rate:.2g} examples/s"

    def timing(self) -> dict[str, float]:
        """For the metrics line: rate, and share of time spent waiting for input."""
        share = self._stalled / self._training if self._training else 0.0
        return {"time/images_per_second": self.rate(), "time/input_stall": share}

    def left(self) -> float:
        """Seconds left for training, evaluations and saves; 0 while unknown.

        Kinds of pause that have not happened yet are not included.
        """
        rate = self.rate()
        if not rate:
            return 0.0
        seconds = (self.total - self.step) * self.batch_size / rate
        for what, times in self._pauses.items():
            if times:
                usual = times[1:] or times  # the first one includes compilation
                seconds += self._to_come(what) * sum(usual) / len(usual)
        return seconds

    def _to_come(self, what: str) -> int:
        """How many more pauses of this kind are due; always one after the last step."""
        every = self.every.get(what)
        if every is None:
            return 0
        step, total = self.step, self.total
        due = total // every - step // every + (total % every > 0 and step < total)
        now = step % every == 0 or step == total
        return due + (now and self._paused_at.get(what, self._start) != step)

    def _time_left(self) -> str:
        text = f"{clock(self.left())} left"
        unknown = self._to_come("evaluating") * (not self._pauses.get("evaluating"))
        more = f"{unknown} evaluation{'s' * (unknown > 1)}"
        return f"{text} and {more}" if unknown else text

    def show(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows the newest metrics; without a terminal, only every few seconds."""
        words = [f"loss {metrics['loss']:.4g}"]
        if "relative_loss" in metrics:
            words[0] += f" ({metrics['relative_loss']:.3g} × the mean-image baseline)"
        if "accuracy" in metrics:
            words.append(f"accuracy {metrics['accuracy']:.3f}")
        if metrics.get("skipped"):
            words.append(f"{metrics['skipped']} skipped")
        if self._bar is not None:
            if self.rate():
                words += [self._speed(), self._time_left()]
            self._bar.set_postfix_str(", ".join(words))
            return
        now = time.perf_counter()
        if self.quiet or (now - self._last_line < _LINE_SECONDS and step < self.total):
            return
        self._last_line = now
        width = len(str(self.total))
        text = f"step {step:{width}}/{self.total}  {', '.join(words)}"
        if self.rate():
            text += f"  {self._speed()}  {self._time_left()}"
        print(text, file=self.stream, flush=True)

    def evaluated(self, step: int, results: Mapping[str, Any]) -> None:
        """Prints a line of evaluation results."""
        words = [
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in results.items()
        ]
        self.note(f"eval {step}/{self.total}  " + ", ".join(words))

    def note(self, text: str) -> None:
        """Prints a line without breaking the bar."""
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
