"""Continual learning: groups of classes, one after another, each on its own images.

One phase per task, or one for all tasks together (`joint`, an upper bound). After each
task all tasks are scored; metrics.jsonl has the scores before the checkpoint of that
step is written, so a run that is killed and resumed ends with the same table.
"""

import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from afterimage.checkpoints.files import finite
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.data import ImageSet, choose_labels
from afterimage.errors import DataError, UserError, did_you_mean
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.data import known_labels
from afterimage.finetune.losses import smoothed_cross_entropy
from afterimage.finetune.method import Sections, Stream
from afterimage.finetune.modes import layer_groups, shares
from afterimage.finetune.report import FinetuneResult, outline
from afterimage.finetune.run import FinetuneJob
from afterimage.finetune.selection import choose_rule
from afterimage.finetune.setup import RunSetup, begin, build, make_head, stage_of
from afterimage.finetune.tasks import TASKS, Task
from afterimage.models.classifier import HEAD, HeadConfig
from afterimage.report import logged
from afterimage.training.batches import BatchLoader
from afterimage.training.job import Say
from afterimage.training.loop import StopSignal
from afterimage.training.optimiser import Group
from afterimage.training.stage import Phase, Stage, Term, TermResult, View
from afterimage.training.step import State

_ALONE = ("target", "class_weights", "label_smoothing", "ema")


@TASKS.add("continual")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Continual(Task):
    """Groups of classes, learned one after another."""

    kept_step: ClassVar[str | None] = "the last step of each task"

    sequence: tuple[str, ...] = ()
    """The classes of each task by name, separated by commas: 0,1 2,3 4,5. Tasks are
    learned in this order, each from its own images and for an equal share of the
    steps."""

    scenario: Literal["task", "class"] = "class"
    """task: one head per task; the task of each image is known. class: one head for all
    classes seen so far."""

    joint: bool = False
    """Train all tasks at once, an upper bound for methods against forgetting."""

    def problems(self, config):
        found = self.leave_out(config, _ALONE)
        if not self.sequence:
            found.append("sequence: give the classes of each task, e.g. 0,1 2,3")
        if self.joint and config.methods:
            found.append("joint: works without methods, as nothing is forgotten")
        return found

    def job(self, config, data, run):
        labels = data.labels
        per_task = self.scenario == "task"
        tasks = make_sequence(self.sequence, labels.class_names, per_task=per_task)
        if labels.test is None:
            raise DataError(
                f"{labels.train.name} has no test split, but a sequence of tasks is "
                "tested after each task. Add test/ beside train/"
            )
        train = tasks.images(labels.train, range(len(tasks)))
        labels = dataclasses.replace(labels, train=train)
        data = dataclasses.replace(data, labels=labels)
        heads = tasks.heads(config)
        setup = build(config, data, heads=heads, plan=Plan(tasks, self.joint))
        stage = _make_stage(setup)
        return ContinualJob(setup, stage, choose_rule(config, data), run)


@dataclasses.dataclass(frozen=True)
class HeadSlice:
    """The outputs of a head for some of the classes."""

    head: str
    columns: tuple[int, ...]
    classes: tuple[int, ...]
    """The classes' numbers in the data, in the order of `columns`."""

    def of(self, logits: Array) -> Array:
        """[b, columns] of the head's logits."""
        return logits[:, np.asarray(self.columns)]

    def local(self, labels: Array) -> Array:
        """Labels as positions in `columns`, −1 for classes of other slices."""
        places = jnp.argmax(labels[:, None] == np.asarray(self.classes)[None], -1)
        known = (labels[:, None] == np.asarray(self.classes)[None]).any(-1)
        return jnp.where(known, places, -1)


def task_loss(
    slices: Sequence[HeadSlice], *, stream: str, name: str, weight: float
) -> Term:
    """ℓ(i) = −log softmax(z_h[columns])[y_i], h the slice with the class y_i.

    A single slice of all classes seen so far gives the class-incremental loss; a slice
    per task gives the task-incremental one, in which classes of other tasks do not
    compete (van de Ven et al. 2022, "Three types of incremental learning").
    """
    names = {piece: f"{stream}/logits/{piece.head}" for piece in slices}

    def fn(view: View) -> TermResult:
        labels = view[f"{stream}/label"]
        total, correct = jnp.zeros(labels.shape), jnp.zeros(labels.shape, bool)
        for piece, source in names.items():
            logits, local = piece.of(view[source]), piece.local(labels)
            each = smoothed_cross_entropy(logits, local, 0.0)
            total = total + jnp.where(local >= 0, each, 0.0)
            correct = correct | (logits.argmax(-1) == local)
        key = "accuracy" if stream == "train" else f"{stream}_accuracy"
        return total, {key: correct.mean()}

    reads = (f"{stream}/label", *dict.fromkeys(names.values()))
    return Term(name=name, fn=fn, reads=reads, weight=weight)


@dataclasses.dataclass(frozen=True)
class TaskSequence:
    """The classes of each task, and the heads that predict them."""

    classes: tuple[tuple[int, ...], ...]
    """The numbers of each task's classes."""
    names: tuple[str, ...]
    """All class names of the data."""
    per_task: bool
    """One head per task (task-incremental), else one for all (class-incremental)."""

    def __len__(self) -> int:
        return len(self.classes)

    def label(self, number: int) -> str:
        """The name of a task in reports: its classes."""
        return ",".join(self.names[c] for c in self.classes[number])

    def head(self, number: int) -> str:
        """The name of the head that predicts this task's classes."""
        return f"task-{number + 1}" if self.per_task else HEAD

    def heads(self, config: FinetuneConfig) -> dict[str, HeadConfig]:
        """Every head of the classifier."""

        if not self.per_task:
            return {HEAD: make_head(config, len(self.names))}
        return {
            self.head(i): make_head(config, len(c)) for i, c in enumerate(self.classes)
        }

    def head_classes(self) -> dict[str, tuple[str, ...]]:
        """The class names of each head, in the order of its outputs."""
        if not self.per_task:
            return {HEAD: self.names}
        return {
            self.head(i): tuple(self.names[c] for c in classes)
            for i, classes in enumerate(self.classes)
        }

    def slices(self, numbers: Iterable[int]) -> tuple[HeadSlice, ...]:
        """The head outputs that predict the classes of these tasks.

        Task-incremental: one slice per task. Class-incremental: one for all classes.
        """
        if self.per_task:
            return tuple(
                HeadSlice(self.head(i), tuple(range(len(c))), c)
                for i in numbers
                for c in (self.classes[i],)
            )
        seen = tuple(c for i in numbers for c in self.classes[i])
        return (HeadSlice(HEAD, seen, seen),) if seen else ()

    def images(self, images: ImageSet, numbers: Iterable[int]) -> ImageSet:
        """The images of these tasks' classes, with the labels of the data."""
        classes = [c for i in numbers for c in self.classes[i]]
        rows = np.flatnonzero(np.isin(known_labels(images), classes))
        return images.subset(rows)

    def memory(self, images: ImageSet, number: int, size: int, seed: int) -> ImageSet:
        """`size` images of each class of the tasks before `number`, chosen by seed.

        The choice depends only on the seed, so a resumed run makes the same one. Raises
        DataError for a class with fewer images.
        """
        seen = [c for i in range(number) for c in self.classes[i]]
        try:
            kept = choose_labels(images, per_class=size, classes=seen, seed=seed)
        except DataError as error:
            raise DataError(f"replay.memory={size}: {error}") from None
        return images.subset(kept)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The tasks of a run, by phase: `setup.plan` of this task."""

    tasks: TaskSequence
    joint: bool

    @property
    def phases(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of the tasks that each phase learns."""
        every = range(len(self.tasks))
        return (tuple(every),) if self.joint else tuple((i,) for i in every)

    def begun(self, phase: int) -> tuple[int, ...]:
        """The tasks begun by this phase, including its own."""
        return self.phases[0] if self.joint else tuple(range(phase + 1))

    def old_slices(self, phase: int) -> tuple[HeadSlice, ...]:
        """The head outputs for the classes of the tasks before this phase's."""
        return self.tasks.slices(self.begun(phase)[:-1])


def make_sequence(
    given: Sequence[str], names: tuple[str, ...], *, per_task: bool
) -> TaskSequence:
    """The tasks with the classes `given`, names separated by commas.

    Raises UserError, listing all problems, for unknown classes, classes in two tasks,
    tasks of one class, or fewer than two tasks.
    """
    texts = [unicodedata.normalize("NFC", task) for task in given]
    groups = [tuple(n.strip() for n in task.split(",")) for task in texts]
    flat = [name for group in groups for name in group]
    problems = [
        f"{name!r} is not a class of the data{did_you_mean(name, names)}"
        for name in dict.fromkeys(flat)
        if name not in names
    ]
    twice = sorted({name for name in flat if flat.count(name) > 1})
    problems += [f"{name!r} is named twice" for name in twice]
    problems += [
        f"task {i} has only the class {group!r}; a task needs at least two"
        for i, group in enumerate(groups, 1)
        if len(group) < 2
    ]
    if len(groups) < 2:
        problems.append("a sequence needs at least two tasks, e.g. 0,1 2,3")
    if problems:
        raise UserError(
            f"continual.sequence={' '.join(given)}: "
            + "; ".join(problems)
            + ". The classes "
            f"are {', '.join(names)}"
        )
    numbers = tuple(tuple(names.index(n) for n in group) for group in groups)
    return TaskSequence(numbers, names, per_task)


def _make_stage(setup: RunSetup) -> Stage:
    plan: Plan = setup.plan
    lengths = shares(setup.steps, len(plan.phases))
    phases, streams = [], {}
    for number, steps in enumerate(lengths):
        phases.append(
            Phase(
                name="joint" if plan.joint else f"task {plan.tasks.label(number)}",
                terms=_terms(setup, number),
                groups=_groups(setup, number),
                steps=steps,
                options=setup.config,
            )
        )
        for method in setup.config.methods:
            streams |= method.phase_streams(setup, number)
    return stage_of(setup, phases, streams)


def _terms(setup: RunSetup, phase: int) -> tuple[Term, ...]:
    """The loss of the phase's own images, and terms that preserve the earlier tasks."""
    plan: Plan = setup.plan
    own = plan.phases[phase] if plan.tasks.per_task else plan.begun(phase)
    slices = plan.tasks.slices(own)
    terms = [task_loss(slices, stream="train", name="cross_entropy", weight=1.0)]
    for method in setup.config.methods:
        terms = method.labelled_terms(setup, terms, phase)
    for method in setup.config.methods:
        terms = [*terms, *method.terms(setup, phase)]
    return tuple(terms)


def _groups(setup: RunSetup, phase: int) -> tuple[Group, ...]:
    """The encoder, the heads that a term reads, and the other heads frozen.

    Every task has its own groups, so each starts with fresh moments and counts.
    """
    plan, config = setup.plan, setup.config
    learning = {plan.tasks.head(i) for i in plan.phases[phase]}
    if any(method.trains_earlier_heads for method in config.methods):
        learning |= {plan.tasks.head(i) for i in range(phase)}
    encoder = [path for path in flatten(setup.params) if path.startswith("encoder/")]
    groups = [
        Group("heads", f"^heads/(?:{'|'.join(sorted(learning))})/"),
        *layer_groups(encoder, config.encoder_lr, config.layer_decay),
    ]
    if learning < set(setup.heads):
        groups.insert(1, Group("other heads", "^heads/", freeze=True))
    return tuple(
        dataclasses.replace(group, name=f"{group.name} ({phase + 1})")
        for group in groups
    )


class ContinualJob(FinetuneJob):
    """One run over a sequence of tasks."""

    @property
    def plan(self) -> Plan:
        return self.setup.plan

    def _images(self, phase: int) -> ImageSet:
        """The images a phase trains on."""
        train = self.setup.data.labels.train
        return self.plan.tasks.images(train, self.plan.phases[phase])

    def begin(self, say: Say, stop: StopSignal) -> State:
        """As for one task, but first scores the tasks, for the forward transfer."""
        state = self._fresh(begin(self.setup, self.run, say, self._images(0)))
        if self.plan.tasks.per_task and not self.run.metrics.has(0, "eval/"):
            found = self.evaluate(state, 0, stop)
            row = {f"eval/{name}": value for name, value in found.items()}
            self.run.metrics.write(0, row)
        return state

    def feed(self, phase: int) -> BatchLoader:
        streams = {}
        for method in self.config.methods:
            streams |= method.phase_streams(self.setup, phase)
        return BatchLoader(
            Stream(self._images(phase)).rows(self.config),
            options=self.config,
            mesh=self.setup.mesh,
            streams={name: one.rows(self.config) for name, one in streams.items()},
        )

    def between(self, state: State, phase: int) -> State:
        """Lets the methods remember the task that a phase has learned."""
        stats = dict(state["stats"])
        for method in self.config.methods:
            if method.name in stats:
                stats[method.name] = method.remember(self.setup, state, phase)
        return {**state, "stats": stats}

    def evaluate(self, state: State, step: int, stop: StopSignal) -> dict[str, float]:
        """The test accuracy on every task (`task_1`, …), and the mean over those begun.

        Class-incremental: predictions are among the classes seen so far.
        """
        tasks, stage = self.plan.tasks, self.trainer.stage
        logits = self._logits(self.weights(state)[:2], stop.check)
        begun = self.plan.begun(stage.phase_of(step))
        test, found = self.setup.data.labels.test, {}
        assert test is not None
        for number in range(len(tasks)):
            images = tasks.images(test, [number])
            (piece,) = tasks.slices([number] if tasks.per_task else begun)
            scores = logits(images, piece.head)
            best = scores[:, np.asarray(piece.columns)].argmax(1)
            predicted = np.asarray(piece.classes)[best]
            right = predicted == known_labels(images)
            found[f"task_{number + 1}"] = float(right.mean())
        every = [found[f"task_{i + 1}"] for i in begun]
        return {**found, "mean_accuracy": float(np.mean(every))}

    def table(self) -> tuple[Float[np.ndarray, "t t"], Float[np.ndarray, " t"] | None]:
        """(R, b): accuracy after each task, and before the first, from metrics.jsonl.

        Joint training has only the last row. Missing values are NaN.
        """
        tasks, stage = self.plan.tasks, self.trainer.stage
        rows, count = self.run.metrics.rows, len(tasks)
        at = np.full((self.setup.steps + 1, count), np.nan)
        for task in range(count):
            for step, value in logged(rows, f"eval/task_{task + 1}"):
                at[step, task] = value
        accuracy = np.full((count, count), np.nan)
        phases = len(self.plan.phases)
        for index in range(phases):
            accuracy[count - phases + index] = at[stage.start(index + 1)]
        return accuracy, at[0] if tasks.per_task else None

    def finish(self, state: State, store: Store) -> FinetuneResult:
        params, stats, step = self.weights(state)
        accuracy, before = self.table()
        tasks, task = self.plan.tasks, self.config.task
        names = [tasks.label(i) for i in range(len(tasks))]
        found: dict[str, Any] = {
            "scenario": task.scenario,
            "method": " ".join(m.name for m in self.config.methods)
            or ("joint" if self.plan.joint else "none"),
            "tasks": names,
            "accuracy": finite(accuracy.tolist()),
            "before": None if before is None else finite(before.tolist()),
            **continual_measures(accuracy, before),
        }
        results = outline(self.setup, self.rule, step)
        results |= {"validation": None, "test": None, "continual": found}
        rows = self.run.metrics.rows
        curves = {
            name: logged(rows, f"eval/task_{i}") for i, name in enumerate(names, 1)
        }
        lines = [[name, *line] for name, line in zip(names, found["accuracy"])]
        lines = [line for line in lines if line[-1] is not None]
        figures = ("average_accuracy", "forgetting", "forward_transfer")
        sections = Sections(
            headline={
                name.replace("_", " "): f"{100 * found[name]:.1f} %"
                for name in figures
                if found[name] is not None
            },
            curves={"Test accuracy by task": curves},
            grids={"Test accuracy after each task": (["after", *names], lines)},
        )
        return self.write((params, stats), step, results, task=sections)

    def class_names(self) -> Mapping[str, Sequence[str]]:
        return self.plan.tasks.head_classes()


def continual_measures(
    accuracy: Float[np.ndarray, "t t"],
    before: Float[np.ndarray, " t"] | None,
) -> dict[str, float | None]:
    """Average accuracy, forgetting and forward transfer of R[i, j], in [0, 1].

    R[i, j] is the test accuracy on task j after learning task i, T tasks:

        average_accuracy   ACC = (1/T) Σ_j R[T, j]
        backward_transfer  BWT = (1/(T − 1)) Σ_{j<T} (R[T, j] − R[j, j])
        forgetting         −BWT
        forward_transfer   FWT = (1/(T − 1)) Σ_{j>1} (R[j − 1, j] − b_j)

    where `before` = b is the accuracy before the first step (Lopez-Paz & Ranzato 2017,
    "Gradient episodic memory"; the same sums as `confusion_matrix` in their
    metrics/metrics.py, which divides by T). A figure is None if it needs `before` and
    that is None, or if it needs rows that were not measured (NaN: joint training has
    only the last row).
    """
    count = len(accuracy)

    def known(value: Any) -> float | None:
        return None if np.isnan(value) else float(value)

    last, own = accuracy[-1], np.diag(accuracy)
    backward = known(np.mean(last[:-1] - own[:-1]))
    forward = None
    if before is not None:
        early = accuracy[np.arange(count - 1), np.arange(1, count)]
        forward = known(np.mean(early - before[1:]))
    return {
        "average_accuracy": known(np.mean(last)),
        "backward_transfer": backward,
        "forgetting": None if backward is None else -backward,
        "forward_transfer": forward,
    }
