"""The training loop: both stages call `fit`, once per phase. Also what interrupts it
(`StopSignal`) and the functions it calls (`Callbacks`).
"""

import contextlib
import dataclasses
import math
import pathlib
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from afterimage.checkpoints.store import Store
from afterimage.errors import Diverged, Interrupted
from afterimage.runs import Run, write_json
from afterimage.training.batches import BatchLoader
from afterimage.training.progress import Progress
from afterimage.training.step import State, Step, compile_step, compile_steps

Metrics = Mapping[str, Any]


def _nothing(step: int, metrics: Metrics) -> None:
    del step, metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Functions that the loop calls, on every process at the same steps.

    An exception in one ends the run like any other error: saved checkpoints stay, and
    the same call continues from there.
    """

    on_log: Callable[[int, Metrics], None] = _nothing
    """on_log(step, metrics), at each line of metrics.jsonl: the training metrics
    (`loss`, `lr`, …), averaged over the steps since the last line."""

    on_evaluation: Callable[[int, Metrics], None] = _nothing
    """on_evaluation(step, metrics), after each evaluation."""

    on_checkpoint: Callable[[int, pathlib.Path], None] | None = None
    """on_checkpoint(step, folder), when a checkpoint is complete on disk. If set, the
    loop waits for each save; otherwise saves run in the background."""


NO_CALLBACKS = Callbacks()


_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP")  # Windows has no SIGHUP
    if hasattr(signal, name)
)


class StopRequested(Exception):
    """Raised by `StopSignal.check` inside long work that may be abandoned."""


class StopSignal:
    """While active, the first signal sets a flag and the second stops at once.

    Long work polls it: the loop after each dispatch, evaluations between batches. (A
    handler that saved by itself would run in the middle of a step.) While `saved` is
    true, nothing is left to save and the first signal stops at once.
    """

    def __init__(self) -> None:
        self.name = ""
        self.saved = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # Under `nohup`, closing the terminal must have no effect.
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
        with contextlib.suppress(OSError):  # after SIGHUP the terminal is gone
            again = "Ctrl-C again" if self.name == "SIGINT" else "A second signal"
            text = (
                "stopping"
                if self.saved
                else f"finishing this step, saving, then stopping. {again} stops at "
                "once; earlier checkpoints are kept"
            )
            print(f"\n{self.name}: {text}", file=sys.stderr, flush=True)
        if self.saved:
            raise KeyboardInterrupt

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


# How many dispatches the host may run ahead of the device: enough to hide host time,
# few enough that batches do not pile up.
_IN_FLIGHT = 4

Evaluate = Callable[[State, int, StopSignal], Mapping[str, float]]
"""evaluate(state, step, stop) -> metrics for the line of this step; calls stop.check()
between batches."""


_LAST = frozenset({"lr", "skipped", "bad_steps"})
"""Metrics logged as the last value, not the mean."""


class Interval:
    """The metrics of the steps since the last line; their means make the next line.

    Non-finite values are left out. Sums are saved with every checkpoint (`stored`), so
    that a resumed run writes the same lines as an uninterrupted one.
    """

    def __init__(self, stored: Any = None):
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        for name, (total, count) in (stored or {}).items():
            self.sums[name], self.counts[name] = total, count

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Add the metrics of one more step."""
        for name, value in metrics.items():
            if name not in _LAST and math.isfinite(value):
                # The first as is: the mean of one step is exactly its value.
                before = self.sums.get(name)
                self.sums[name] = value if before is None else before + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def take(self, last: Mapping[str, Any]) -> dict[str, Any]:
        """The line after a step with metrics `last`; starts a new interval."""
        sums, counts = self.sums, self.counts
        self.sums, self.counts = {}, {}
        means = {n: sums[n] / c if c > 1 else sums[n] for n, c in counts.items()}
        return {name: means.get(name, value) for name, value in last.items()}

    def stored(self) -> dict[str, tuple[float, int]]:
        """{metric: [sum, steps]}, for the manifest of a checkpoint."""
        return {name: (total, self.counts[name]) for name, total in self.sums.items()}


@dataclasses.dataclass
class Fit:
    """What the loop needs besides the steps, the same in every phase."""

    run: Run
    store: Store
    config: Any
    """The settings of TrainingOptions and of RunOptions."""
    total: int
    evaluate: Evaluate
    artefact: Callable[[State], tuple[Any, Any, dict[str, Any]] | None] | None = None
    """state -> (encoder parameters, statistics, manifest) for each checkpoint, or None
    to save none."""
    best: str | None = None
    """The evaluation metric that ranks checkpoints."""
    manifest: Callable[[State], Mapping[str, Any]] = lambda state: {}
    """What a checkpoint's manifest holds besides its step and metrics."""
    derive: Callable[[Mapping[str, Any]], Mapping[str, float]] = lambda metrics: {}
    """Further metrics of a step, computed on the host from those of the device. Values
    that differ between runs stay out of the compiled step, so that runs share it."""
    report: Callable[[int], None] = lambda step: None
    """Called after each evaluation, once its line is written."""
    interval: Interval = dataclasses.field(default_factory=Interval)
    """The steps since the last line; in a resumed run, also those before it stopped."""
    callbacks: Callbacks = NO_CALLBACKS

    def __post_init__(self) -> None:
        self.eval_every, self.save_every = self.config.cadence(self.total)
        self.progress = Progress(
            self.total,
            batch_size=self.config.batch_size,
            every={"evaluating": self.eval_every, "saving": self.save_every},
        )
        self.last: dict[str, float] = {}

    # A boundary is a step at which the loop pauses dispatching.
    def boundary(self, step: int, end: int) -> int:
        """The next step after `step` at which something is due."""
        every = (self.config.log_every, self.eval_every, self.save_every)
        return min(end, *(step // n * n + n for n in every))

    def eval_due(self, step: int, end: int) -> bool:
        return step % self.eval_every == 0 or step == end

    def save_due(self, step: int, end: int) -> bool:
        return step % self.save_every == 0 or step == end


class _Pending:
    """Metrics still on the device, oldest first, with their steps' image indices."""

    def __init__(self, fit: Fit, feed: BatchLoader):
        self.fit, self.feed = fit, feed
        self.rows: deque[tuple[int, int, np.ndarray, Any]] = deque()
        self.flight: deque[tuple[int, Any]] = deque()
        """(steps, their loss) of dispatches that may be unfinished."""
        self.bad_steps = 0
        """Consecutive non-finite steps among the metrics read so far."""

    def add(self, step: int, length: int, index: np.ndarray, metrics: Any) -> None:
        """Adds metrics of the `length` steps up to `step`; waits for old dispatches."""
        self.rows.append((step, length, index, metrics))
        self.flight.append((length, metrics["loss"]))
        # Wait for the first dispatch, which compiles, so that timing starts after it.
        while len(self.flight) > _IN_FLIGHT * self.fit.progress.warm:
            self._finish(1)

    def _finish(self, dispatches: int) -> None:
        """Waits for the oldest dispatches and counts their steps as done."""
        done = [self.flight.popleft() for _ in range(dispatches)]
        jax.block_until_ready([loss for _, loss in done])
        if done:
            self.fit.progress.add(sum(length for length, _ in done))

    def flush(self, *, everything: bool) -> None:
        """Reads finished metrics in one transfer, writes due lines, checks for NaN."""
        keep = 0 if everything else _IN_FLIGHT
        rows = [self.rows.popleft() for _ in range(max(len(self.rows) - keep, 0))]
        if everything:
            self._finish(len(self.flight))
        values = jax.device_get([metrics for *_, metrics in rows])
        for (end, length, index, _), metrics in zip(rows, values):
            for i in range(length):
                one = {k: np.ravel(v)[i].item() for k, v in metrics.items()}
                one |= self.fit.derive(one)
                self._record(end - length + 1 + i, one, index[i])

    def _record(self, step: int, metrics: dict[str, Any], index: np.ndarray) -> None:
        fit = self.fit
        fit.interval.add(metrics)
        if step % fit.config.log_every == 0 or step == fit.total:
            means = fit.interval.take(metrics)
            timing = fit.progress.timing()
            row = {f"train/{k}": v for k, v in means.items()} | timing
            fit.run.metrics.write(step, row)
            fit.progress.show(step, means)
            fit.callbacks.on_log(step, means)
        self.bad_steps = metrics["bad_steps"]
        if self.bad_steps:
            self._report_bad(step, metrics, index)

    def _report_bad(
        self, step: int, metrics: dict[str, Any], index: np.ndarray
    ) -> None:
        ids = [self.feed.images.ids[i] for i in index]
        record = {"step": step, "loss": str(metrics["loss"]), "ids": ids}
        record["grad_norm"] = str(metrics["grad_norm"])
        path = self.fit.run.path / "nonfinite" / f"{step:08d}.json"
        if self.fit.run.is_main_process:
            path.parent.mkdir(exist_ok=True)
            write_json(path, record)
        self.fit.progress.note(
            f"Step {step}: loss or gradient is not finite. The step was skipped; its "
            f"images are listed in {path}"
        )
        if metrics["bad_steps"] >= self.fit.config.max_bad_steps:
            raise _diverged(
                self.fit,
                f"{metrics['bad_steps']} consecutive steps, up to step {step}, were "
                f"not finite; their images are listed in {path.parent}",
            )


def _diverged(fit: Fit, what: str) -> Diverged:
    fit.store.wait()
    steps = fit.store.steps()
    stands = (
        f"The last good checkpoint is from step {steps[-1]}, in {fit.store.folder}"
        if steps
        else "No checkpoint has been saved"
    )
    return Diverged(
        f"{what}. {stands}. Start a new run (another --out) with a lower --lr, a "
        "longer --warmup-steps, or --precision float32"
    )


def _lengths(fit: Fit, feed: BatchLoader, start: int, end: int) -> Iterator[int]:
    """Steps of each dispatch: as many as the loader combines, or one at a time."""
    step = start
    while step < end:
        room = fit.boundary(step, end) - step
        together = feed.steps_per_dispatch
        length = together if together <= room else 1
        yield length
        step += length


def _evaluate(fit: Fit, state: State, step: int, stop: StopSignal) -> None:
    fit.progress.pause("evaluating")
    results = dict(fit.evaluate(state, step, stop))
    fit.progress.resume()
    fit.last = {k: float(v) for k, v in results.items() if not isinstance(v, str)}
    fit.run.metrics.write(step, {f"eval/{k}": v for k, v in results.items()})
    fit.report(step)
    fit.progress.evaluated(step, results)
    fit.callbacks.on_evaluation(step, fit.last)
    wrong = [f"{k} {v}" for k, v in fit.last.items() if not math.isfinite(v)]
    if wrong:  # before the checkpoint, which would be bad
        raise _diverged(
            fit, f"The evaluation after step {step} gave {', '.join(wrong)}"
        )


def _save(fit: Fit, state: State, step: int, *, evaluated: bool) -> None:
    fit.run.metrics.flush()
    fit.progress.pause("saving")
    metric = fit.last.get(fit.best) if fit.best and evaluated else None
    encoder = fit.artefact(state) if fit.artefact else None
    manifest = {"metrics": fit.last if evaluated else {}, **fit.manifest(state)}
    if steps := fit.interval.stored():
        manifest["interval"] = steps
    told = fit.callbacks.on_checkpoint
    fit.store.save(
        step,
        state,
        manifest=manifest,
        encoder=encoder,
        metric=metric,
        wait=told is not None,
    )
    fit.progress.resume()
    if told is not None:
        told(step, fit.store.folder / str(step))


def _stopped(
    fit: Fit, state: State, step: int, stop: StopSignal, bad_steps: int = 0
) -> Interrupted:
    if step not in fit.store.steps() and not bad_steps:
        _save(fit, state, step, evaluated=False)
    fit.store.wait()
    fit.run.metrics.flush()
    if bad_steps:  # saved now, the state would displace a good one
        steps = fit.store.steps()
        return Interrupted(
            f"Stopped by {stop.name} after step {step} of {fit.total}, which was not "
            "finite and is not saved. The same command continues after step "
            f"{steps[-1] if steps else 0} in {fit.run.where}"
        )
    return Interrupted(
        f"Stopped by {stop.name} after step {step} of {fit.total}. Everything is "
        f"saved in {fit.run.where}; run the same command again to continue"
    )


def fit(
    plan: Fit,
    step: Step,
    state: State,
    feed: BatchLoader,
    *,
    end: int,
    stop: StopSignal,
) -> State:
    """Trains from the state's step up to step `end`.

    Order at a boundary: the step's line, evaluation, checkpoint; so everything up to
    step s is on disk before the checkpoint of step s, and a run that is killed at any
    point and repeated writes the same lines as an uninterrupted one.

    Raises:
      Interrupted: after a signal, with everything saved.
      Diverged: after `max_bad_steps` consecutive non-finite steps, or a non-finite
        evaluation; neither leaves a checkpoint.
    """
    now = int(state["step"])
    if now and plan.eval_due(now, end) and not plan.run.metrics.has(now, "eval/"):
        # The run was interrupted between a step and its evaluation.
        try:
            _evaluate(plan, state, now, stop)
        except StopRequested as request:
            raise _stopped(plan, state, now, stop) from request
        if plan.save_due(now, end):  # again, now with its metric: it may be the best
            _save(plan, state, now, evaluated=True)
    if now >= end:
        return state
    single, several = compile_step(step), compile_steps(step)
    pending = _Pending(plan, feed)
    plan.progress.start(now)
    blocks = feed.blocks(now, _lengths(plan, feed, now, end))
    try:
        for length, index, batch in plan.progress.waiting(blocks):
            run_block = single if length == 1 else several
            state, metrics = run_block(state, batch, feed.data)
            now += length
            pending.add(now, length, index, metrics)
            state = _at_boundary(plan, state, pending, now, end, stop)
    finally:
        blocks.close()
    return state


def _at_boundary(
    plan: Fit, state: State, pending: _Pending, now: int, end: int, stop: StopSignal
) -> State:
    every = plan.config.log_every
    save, evaluate = plan.save_due(now, end), plan.eval_due(now, end)
    due = now % every == 0 or save or evaluate
    stopping = stop.agreed() if jax.process_count() == 1 or due else False
    if due or stopping:
        pending.flush(everything=save or evaluate or stopping)
        plan.store.check()
        plan.run.check()
    try:
        if evaluate:
            stop.check()
            _evaluate(plan, state, now, stop)
        # During non-finite steps a checkpoint would displace a good one.
        if save and (now == end or not pending.bad_steps):
            _save(plan, state, now, evaluated=evaluate)
    except StopRequested as request:
        raise _stopped(plan, state, now, stop, pending.bad_steps) from request
    if stopping:
        raise _stopped(plan, state, now, stop, pending.bad_steps)
    return state
