"""One run of a stage: resumed or begun, trained, finished. Both stages run here."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, TypeVar

from afterimage.checkpoints.store import Store
from afterimage.console import say
from afterimage.runs import Run
from afterimage.training.batches import BatchLoader
from afterimage.training.loop import NO_CALLBACKS, Callbacks, Fit, Interval, StopSignal
from afterimage.training.step import State
from afterimage.training.trainer import Trainer

Say = Callable[[str], None]
Result = TypeVar("Result")


class Job(abc.ABC, Generic[Result]):
    """What a stage gives the one trainer: its data, its figures, its result.

    `execute` calls these methods in the order in which they are written here.
    """

    config: Any
    """The stage's settings; among them those of TrainingOptions and RunOptions."""
    trainer: Trainer
    best: str | None = None
    """The evaluation metric by which checkpoints are best; None keeps the newest."""
    direction: Literal["min", "max"] = "min"
    """Whether the best is the lowest or the highest."""

    @abc.abstractmethod
    def template(self) -> State:
        """A state of the first phase, into which a checkpoint is restored."""

    @abc.abstractmethod
    def lost(self) -> tuple[str, ...] | None:
        """The final files that a run with all its steps still lacks; None if none."""

    @abc.abstractmethod
    def result(self, *, complete: bool) -> Result:
        """The result, from the files of the run folder."""

    @abc.abstractmethod
    def introduction(self) -> str:
        """What is printed before training: data, model, phases."""

    def prepare(self, began: int) -> None:
        """What is measured before training goes on after step `began`."""
        del began

    @abc.abstractmethod
    def begin(self, say: Say, stop: StopSignal) -> State:
        """The state before the first step of a fresh run."""

    @abc.abstractmethod
    def feed(self, phase: int) -> BatchLoader:
        """The batches of a phase."""

    def between(self, state: State, phase: int) -> State:
        """The state after a phase, with what later phases need to know of it."""
        del phase
        return state

    def derive(self, metrics: Mapping[str, Any]) -> Mapping[str, float]:
        """More metrics of a step from those of the device, computed on the host."""
        del metrics
        return {}

    @abc.abstractmethod
    def evaluate(
        self, state: State, step: int, stop: StopSignal
    ) -> Mapping[str, float]:
        """The metrics of an evaluation; calls stop.check() between batches."""

    def report(self, step: int) -> None:
        """Rewrites the report of an unfinished run, after each evaluation."""
        del step

    @abc.abstractmethod
    def encoder(self, state: State) -> tuple[Any, Any, dict[str, Any]]:
        """(params, stats, manifest) of the encoder that lies beside a checkpoint."""

    @abc.abstractmethod
    def finish(self, state: State, store: Store) -> Result:
        """Writes artefacts and report of a run that has all its steps."""


def execute(job: Job[Result], run: Run, callbacks: Callbacks = NO_CALLBACKS) -> Result:
    """Resume the run, else begin it; train to the end; finish.

    A run that is complete is left as it is.

    Raises:
      CheckpointError: every checkpoint is damaged.
      Diverged, Interrupted: as the loop does; what was reached is saved.
    """
    config, trainer = job.config, job.trainer
    total = trainer.stage.steps

    def tell(text: str) -> None:
        if run.is_main_process:
            say(text)

    store = Store(
        run.path,
        keep_last=config.keep_last,
        keep_best=config.keep_best,
        best=job.direction,
        warn=tell,
    )
    with store:
        state = trainer.resume(store, job.template)
        began = 0 if state is None else int(state["step"])
        run.metrics.start(began)
        for note in run.notes:
            tell(note)
        if began >= total:
            lost = job.lost()
            if lost is None:
                tell(
                    f"{run.path} is complete: {total} of {total} steps. For another "
                    "run, name a new --out"
                )
                return job.result(complete=True)
            if lost:
                tell(f"Recreated from the checkpoint: {', '.join(lost)}")
        tell(job.introduction())
        if began:
            tell(f"Continuing after step {began:,}")
        job.prepare(began)
        with StopSignal() as stop:
            if state is None:
                state = job.begin(tell, stop)
            state = _train(job, state, run, store, stop, callbacks)
            return job.finish(state, store)


def _train(
    job: Job[Any],
    state: State,
    run: Run,
    store: Store,
    stop: StopSignal,
    callbacks: Callbacks,
) -> State:
    plan = Fit(
        run=run,
        store=store,
        config=job.config,
        total=job.trainer.stage.steps,
        evaluate=job.evaluate,
        artefact=job.encoder,
        best=job.best,
        derive=job.derive,
        report=job.report,
        interval=Interval(job.trainer.manifest.get("interval")),
        callbacks=callbacks,
    )
    try:
        state = job.trainer.train(state, plan, job.feed, stop, between=job.between)
    finally:
        plan.progress.close()
    store.wait()
    return state
