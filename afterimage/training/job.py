"""One run of a stage: resume or begin, train phase by phase, finish. Both pretraining
and fine-tuning run here.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.console import say
from afterimage.errors import Interrupted
from afterimage.runs import Run
from afterimage.training.batches import BatchLoader, replicate
from afterimage.training.loop import (
    NO_CALLBACKS,
    Callbacks,
    Fit,
    Interval,
    StopSignal,
    fit,
)
from afterimage.training.optimiser import (
    Partition,
    make_optimiser,
    make_schedule,
    migrate,
)
from afterimage.training.sharding import (
    parts,
    sharded_loss,
    sharded_step,
    spread,
)
from afterimage.training.stage import Stage
from afterimage.training.step import (
    State,
    Step,
    abstract,
    averaged_stats,
    init_state,
    make_step,
)


@dataclasses.dataclass(frozen=True)
class Ready:
    """One phase prepared for given parameters."""

    partition: Partition
    optimiser: optax.GradientTransformation
    step: Step


class Trainer:
    """Runs a stage: begins or resumes it, and moves from phase to phase.

    `shapes` are the parameters (or their shapes) that the groups match; `images` is the
    number of training images, used to convert warm-up epochs to steps.
    """

    def __init__(
        self, stage: Stage, shapes: Mapping[str, Any], *, mesh: Mesh, images: int
    ):
        self.stage, self.mesh = stage, mesh
        self.sharded = stage.phases[0].options.shard_parameters
        self.manifest: Mapping[str, Any] = {}
        """The manifest of the checkpoint that the run resumed from."""
        self.phases = [self._ready(i, shapes, images) for i in range(len(stage.phases))]

    def _ready(self, index: int, shapes: Mapping[str, Any], images: int) -> Ready:
        phase = self.stage.phases[index]
        options, partition = phase.options, phase.partition(shapes)
        warmup = options.warmup(images, phase.steps)
        optimiser = make_optimiser(options, partition)
        loss = self.stage.loss(index, shapes)
        step = make_step(
            sharded_loss(loss, self.mesh) if self.sharded else loss,
            optimiser=optimiser,
            schedule=make_schedule(
                options, phase.steps, warmup, self.stage.start(index)
            ),
            partition=partition,
            options=options,
            gradient=phase.gradient,
            combine=self.stage.combine,
            follow=self.stage.following(index),
        )
        if self.sharded:
            step = sharded_step(step, self.mesh)
        return Ready(partition, optimiser, step)

    def partition(self, step: int) -> Partition:
        """The groups of the phase that wrote the state at `step`."""
        return self.phases[self.stage.phase_of(step)].partition

    def fresh(self, params: Any, stats: Any, *, seed: int, ema: bool) -> State:
        """The state before the first step, on the devices."""
        first = self.phases[0]
        make = functools.partial(
            init_state,
            optimiser=first.optimiser,
            partition=first.partition,
            seed=seed,
            ema=ema,
        )
        if not self.sharded:
            return self.place(make(params, stats))
        # Each device makes only its part of the moments.
        shardings = parts(jax.eval_shape(make, params, stats), self.mesh)
        split = self.place((params, stats))
        return jax.jit(make, out_shardings=shardings)(*split)

    def place(self, tree: Any) -> Any:
        """Host arrays, the same on every process, on the devices: in full on each, or
        split over them if the settings say so."""
        return (spread if self.sharded else replicate)(tree, self.mesh)

    def resume(self, store: Store, make_fresh: Callable[[], State]) -> State | None:
        """The state of the newest good checkpoint; None if there is no checkpoint.

        Its step determines the phase that wrote it, and so its optimiser state.
        """
        if not store.steps():
            return None
        step, _, _ = store.restore()
        state = make_fresh()
        for index in range(self.stage.phase_of(step)):
            state = self.cross(state, index)
        _, state, self.manifest = store.restore(abstract(state), step=step)
        return state

    def cross(self, state: State, index: int) -> State:
        """From phase `index` to the next: parameters stay, and so do the moments and
        counts of groups that go on learning; newly unfrozen groups start fresh."""
        before, after = self.phases[index], self.phases[index + 1]
        trainable, _ = after.partition.split(state["params"])
        opt = migrate(
            state["opt"],
            after.optimiser.init(trainable),
            before.partition,
            after.partition,
        )
        ema = state["ema"]
        if ema:
            # Copies: the state is donated, and one buffer cannot be donated twice.
            ema = {p: ema.get(p, jnp.copy(leaf)) for p, leaf in trainable.items()}
        return self.place({**state, "opt": opt, "ema": ema})

    def train(
        self,
        state: State,
        plan: Fit,
        feed: Callable[[int], BatchLoader],
        stop: StopSignal,
        *,
        between: Callable[[State, int], State] = lambda state, _: state,
    ) -> State:
        """Trains to the end of the last phase; raises as the loop does.

        `feed(i)` gives the batches of phase i. `between(state, i)` gives the state with
        whatever later phases need from phase i; it depends only on the state, so a
        resumed run gets the same result.
        """
        index = self.stage.phase_of(int(state["step"]))
        while True:
            end = self.stage.start(index + 1)
            step = self.phases[index].step
            state = fit(plan, step, state, feed(index), end=end, stop=stop)
            if index + 1 == len(self.phases):
                return state
            state = self.cross(between(state, index), index)
            index += 1
            jax.block_until_ready(state)


def best_saved(run: Run, store: Store, now: int) -> tuple[Any, Any, int] | None:
    """(params, stats, step) of the best checkpoint, their running means if kept.

    None if that is step `now`, or no checkpoint is ranked.
    """
    best = store.best_step()
    if best in (None, now):
        return None
    _, tree, _ = store.restore(step=best)
    params = unflatten(flatten(tree["params"]) | flatten(tree.get("ema", {})))
    return params, averaged_stats({"stats": {}, "ema_stats": {}, **tree}), best


Say = Callable[[str], None]
Result = TypeVar("Result")


class Job(abc.ABC, Generic[Result]):
    """What a stage provides to the trainer: its data, metrics and result.

    `execute` calls these methods in the order they are defined.
    """

    config: Any
    """The stage's settings, including those of TrainingOptions and RunOptions."""
    trainer: Trainer
    best: str | None = None
    """The evaluation metric that ranks checkpoints; None keeps the newest."""
    direction: Literal["min", "max"] = "min"
    """Whether the lowest or the highest value is best."""

    @abc.abstractmethod
    def template(self) -> State:
        """A state of the first phase, into which a checkpoint is restored."""

    @abc.abstractmethod
    def lost(self) -> tuple[str, ...] | None:
        """The final files still missing from a run with all its steps; None if none."""

    @abc.abstractmethod
    def result(self, *, complete: bool) -> Result:
        """The result, from the files of the run folder."""

    @abc.abstractmethod
    def introduction(self) -> str:
        """What is printed before training: data, model, phases."""

    def prepare(self, began: int) -> None:
        """Measurements before training continues from step `began`."""
        del began

    @abc.abstractmethod
    def begin(self, say: Say, stop: StopSignal) -> State:
        """The state before the first step of a fresh run."""

    @abc.abstractmethod
    def feed(self, phase: int) -> BatchLoader:
        """The batches of a phase."""

    def between(self, state: State, phase: int) -> State:
        """The state after a phase, with what later phases need from it."""
        del phase
        return state

    def derive(self, metrics: Mapping[str, Any]) -> Mapping[str, float]:
        """Further metrics of a step, computed on the host from those of the device."""
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

    def encoder(self, state: State) -> tuple[Any, Any, dict[str, Any]] | None:
        """(params, stats, manifest) of the image encoder saved with a checkpoint; None
        if this stage trains none."""
        del state

    @abc.abstractmethod
    def finish(self, state: State, store: Store) -> Result:
        """Writes the artefacts and report of a run that has all its steps."""


def execute(job: Job[Result], run: Run, callbacks: Callbacks = NO_CALLBACKS) -> Result:
    """Resume or begin the run, train to the end, and finish.

    A complete run is left unchanged.

    Raises:
      CheckpointError: every checkpoint is damaged.
      Diverged, Interrupted: as in the loop; the progress so far is saved.
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
        # A run with every result is complete, even if its checkpoints were deleted.
        gone = state is None and not job.lost()
        if gone:
            began = total
        run.start_metrics(began)
        for note in run.notes:
            tell(note)
        if began >= total:
            lost = None if gone else job.lost()
            if lost is None:
                deleted = " (its checkpoints were deleted)" if gone else ""
                tell(
                    f"{run.where} is complete: {total} of {total} steps{deleted}. For "
                    "a new run, give another --out"
                )
                return job.result(complete=True)
            if lost:
                tell(f"Recreated from the checkpoint: {', '.join(lost)}")
        run.keep_time()
        tell(job.introduction())
        if began:
            tell(f"Continuing after step {began:,}")
        job.prepare(began)
        with StopSignal() as stop:
            if state is None:
                state = job.begin(tell, stop)
            state = _train(job, state, run, store, stop, callbacks)
            return _finish(job, state, run, store, stop)


def _finish(
    job: Job[Result], state: State, run: Run, store: Store, stop: StopSignal
) -> Result:
    """All steps are saved: a signal from here on skips only the final scoring."""
    left = (
        f"after the last of {job.trainer.stage.steps} steps, before the results were "
        f"written. Everything is saved in {run.where}; run the same command again to "
        "finish"
    )
    # Processes that wait for each other cannot be stopped one by one.
    stop.saved = jax.process_count() == 1
    try:
        if stop.agreed():
            raise Interrupted(f"Stopped by {stop.name} {left}")
        return job.finish(state, store)
    except KeyboardInterrupt as error:
        if not (stop.saved and stop.name):
            raise
        # No computation may still be running when the process exits.
        jax.block_until_ready(jax.live_arrays())
        raise Interrupted(f"Stopped by {stop.name} {left}") from error
    finally:
        stop.saved = False


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
