"""A stage's phases through the one loop, with what happens between them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from afterimage.checkpoints.store import Store
from afterimage.training.batches import BatchLoader, replicate
from afterimage.training.loop import Fit, StopSignal, fit
from afterimage.training.optimiser import (
    Partition,
    make_optimiser,
    make_schedule,
    migrate,
)
from afterimage.training.stage import Stage
from afterimage.training.step import State, Step, abstract, init_state, make_step


@dataclasses.dataclass(frozen=True)
class Ready:
    """One phase made concrete for given parameters."""

    partition: Partition
    optimiser: optax.GradientTransformation
    step: Step


class Trainer:
    """Runs a stage: begins or resumes, and crosses the boundaries.

    `shapes` are the parameters (or their shapes) that the groups are matched against;
    `images` is the number of training images, by which epochs of warm-up are counted.
    """

    def __init__(
        self, stage: Stage, shapes: Mapping[str, Any], *, mesh: Mesh, images: int
    ):
        self.stage, self.mesh = stage, mesh
        self.manifest: Mapping[str, Any] = {}
        """What the checkpoint that was resumed from says besides its state."""
        self.phases = [self._ready(i, shapes, images) for i in range(len(stage.phases))]

    def _ready(self, index: int, shapes: Mapping[str, Any], images: int) -> Ready:
        phase = self.stage.phases[index]
        options, partition = phase.options, phase.partition(shapes)
        warmup = options.warmup(images, phase.steps)
        optimiser = make_optimiser(options, partition)
        step = make_step(
            self.stage.loss(index, shapes),
            optimiser=optimiser,
            schedule=make_schedule(
                options, phase.steps, warmup, self.stage.start(index)
            ),
            partition=partition,
            options=options,
            gradient=phase.gradient,
            combine=self.stage.combine,
        )
        return Ready(partition, optimiser, step)

    def partition(self, step: int) -> Partition:
        """The groups of the phase that wrote the state at `step`."""
        return self.phases[self.stage.phase_of(step)].partition

    def fresh(self, params: Any, stats: Any, *, seed: int, ema: bool) -> State:
        """The state before the first step, on every device."""
        first = self.phases[0]
        state = init_state(
            params,
            stats,
            optimiser=first.optimiser,
            partition=first.partition,
            seed=seed,
            ema=ema,
        )
        return replicate(state, self.mesh)

    def resume(self, store: Store, make_fresh: Callable[[], State]) -> State | None:
        """The newest good checkpoint's state; None where there is none to read.

        Its step says which phase wrote it, and so which optimiser state it holds.
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
        """From phase `index` to the next: parameters stay, as do the moments and counts
        of groups that go on learning; what thaws begins with fresh ones."""
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
        return replicate({**state, "opt": opt, "ema": ema}, self.mesh)

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

        `feed(i)` gives phase i its batches, `between(state, i)` the state with what is
        to be kept of phase i for those after it: a function of the state, so that a
        resumed run makes the same of it.
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
