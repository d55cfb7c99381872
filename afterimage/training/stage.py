"""A stage: consecutive phases, each with its terms, groups and steps.

A term is one summand of a phase's loss, computed from values that terms share: the loss
is Σ_t w_t(s) · mean_i ω_i ℓ_t(i), with s the steps since the phase began and ω the
example weights, if a term has them. Terms give one value per example and leave the mean
to the phase, so that example weights work with any term; a loss over pairs of examples
(a domain distance) gives a scalar.

The shared values have names, and each is computed once. A name gives the stream and the
kind of value: `train/image`, `train/label`, `train/maps`, `train/features`,
`train/logits`; values without a stream are `params`, `step` and `progress` (the share
of the phase that is done). Values are cached for one trace, so a compiled step contains
every forward pass once.

A stage counts steps globally, so the step alone determines the current phase. A
checkpoint written at the last step of a phase belongs to that phase: resuming from it
crosses the boundary again. All mistakes in a stage are found before the first step,
from shapes alone, and reported together.
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from afterimage.checkpoints.trees import flatten
from afterimage.errors import UserError
from afterimage.training.optimiser import (
    Group,
    Partition,
    changed_groups,
    decays,
    split_groups,
    trainable_parts,
)
from afterimage.training.options import TrainingOptions
from afterimage.training.step import Combine, Estimator, plain_gradient

TermResult = tuple[Array, dict[str, Array]]


class UnknownName(KeyError):
    """A name was read that no rule provides; the message suggests the nearest."""

    def __str__(self) -> str:
        return str(self.args[0])


def near_misses(name: str, known: Iterable[str]) -> str:
    """A message that `name` is not provided, with the nearest name or all names."""
    known = sorted(known)
    stream, slash, _ = name.partition("/")
    streams = sorted({other.split("/")[0] for other in known if "/" in other})
    if slash and stream not in streams:
        return (
            f"{name!r} is not available: there is no stream {stream!r}, only "
            f"{', '.join(streams)}"
            + ("; --target adds a target domain" if stream == "target" else "")
        )
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"{name!r} is not available; did you mean {close[0]!r}?"
    return f"{name!r} is not available; this stage has {', '.join(known)}"


class Context:
    """Values by name, each computed by its rule when first read.

    `rules` maps a name to a function of the context, which may read other names.
    """

    def __init__(self, rules: Mapping[str, Callable[["Context"], Any]]):
        self._rules = dict(rules)
        self._values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            if name not in self._rules:
                raise UnknownName(near_misses(name, self._rules))
            self._values[name] = self._rules[name](self)
        return self._values[name]

    def __contains__(self, name: str) -> bool:
        return name in self._rules

    def read(self, name: str) -> bool:
        """Whether `name` has been read so far."""
        return name in self._values

    def only(self, names: tuple[str, ...], reader: str) -> "View":
        """This context restricted to `names`, which are all that one term may read."""
        return View(self, names, reader)


class View:
    """A context restricted to what one term declared in `reads`."""

    def __init__(self, context: Context, names: tuple[str, ...], reader: str):
        self._context, self._names, self._reader = context, names, reader

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise UnknownName(
                f"the term {self._reader!r} reads {name!r}, but declares only "
                f"{self._names}"
            )
        return self._context[name]


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand of a phase's loss.

    `fn(view)` gives float32 [B] (one value per example) or a scalar (a loss of the
    whole batch), and metrics; it reads only the names in `reads`. `weight` is a number
    or a function of the steps since the phase began.
    """

    name: str
    fn: Callable[[View], TermResult]
    reads: tuple[str, ...]
    weight: float | Callable[[Array], Array] = 1.0
    examples: str | None = None
    """The name of the example weights, ω [B], e.g. `train/weight`."""
    params: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Initial values of its own parameters: `terms/NAME/…` in the tree. Those under
    `fixed/` do not learn."""
    adversary_of: str | None = None
    """The stream whose features it learns to distinguish; at most one adversary per
    stream."""
    penalises: str | None = None
    """A regular expression for the paths that it pulls towards a point with a quadratic
    penalty. Weight decay on these leaves would conflict with it."""
    task: str | None = None
    """The task it trains: the tasks' gradients may be weighted against each other."""
    encoder_only: bool = False
    """It acts only through the encoder: left out of phases in which the encoder is
    frozen."""

    def times(self, factor: float) -> "Term":
        """The same term with its weight multiplied by `factor`."""
        weight = self.weight
        if callable(weight):
            return replace(self, weight=lambda step: weight(step) * factor)
        return replace(self, weight=weight * factor)

    def value(self, context: Context, step: Array) -> TermResult:
        """(w(s) · mean ω ℓ, metrics); the unweighted mean is the metric `NAME`."""
        each, metrics = self.fn(context.only(self.reads, self.name))
        metrics = {self.name: jnp.mean(each), **metrics}
        if self.examples is not None:
            each = each * context[self.examples]
        weight = self.weight(step) if callable(self.weight) else self.weight
        return weight * jnp.mean(each), metrics


Providers = Callable[..., Mapping[str, Callable[[Context], Any]]]
"""providers(params, stats, batch, key, step, trainable) -> rules of a context; the rule
`stats/next` gives the normalisation statistics after everything computed. The stage
adds `progress`, the share of the phase that is done, in [0, 1)."""


Follow = Callable[[Any, Any, Array, Array], Any]
"""follow(params, stats, step, progress) -> the statistics after a step, changed once
for all its micro-batches; `params` are those that the losses saw."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A number of steps with fixed terms and optimiser groups.

    `options` has the phase's learning rate, decay, clipping and the like; the schedule
    warms up and decays over this phase alone. A group that keeps its name from one
    phase to the next keeps its moments and update count, and so must keep its
    parameters; newly unfrozen parameters go in a group with a new name and start fresh.
    """

    name: str
    terms: tuple[Term, ...]
    groups: tuple[Group, ...]
    steps: int
    options: TrainingOptions
    gradient: Estimator = plain_gradient
    """How the loss is differentiated: directly, or through an adaptation (MAML)."""

    def partition(self, params: Mapping[str, Any]) -> Partition:
        """The phase's groups over these parameters; UserError if they do not fit."""
        return split_groups(params, self.groups)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Phases, and the providers of the values their terms read."""

    phases: tuple[Phase, ...]
    providers: Providers
    combine: Combine | None = None
    """Combines the tasks' gradients into one; None differentiates the sum of losses."""
    follow: Follow | None = None
    """Changes the statistics once a step, e.g. those that are a teacher."""

    @property
    def steps(self) -> int:
        """Steps of all phases together."""
        return sum(phase.steps for phase in self.phases)

    def start(self, index: int) -> int:
        """The global step at which a phase begins."""
        return sum(phase.steps for phase in self.phases[:index])

    def phase_of(self, step: int) -> int:
        """The phase that wrote the state at `step`, i.e. took the step before it.

        At a boundary that is the earlier phase: its groups are those of the optimiser
        state on disk. Step 0 belongs to the first.
        """
        ends = accumulate(phase.steps for phase in self.phases)
        for index, end in enumerate(ends):
            if step <= end:
                return index
        raise UserError(
            f"the checkpoint is from step {step}, but this run has {self.steps} "
            "steps. It was probably made with other phases; give another --out"
        )

    def loss(self, index: int, params: Mapping[str, Any]) -> Callable[..., Any]:
        """loss(params, stats, batch, key, step) -> (scalar, (metrics, stats)).

        The sum of the phase's terms over one shared context; for `combine`, several
        sums [1 + T]: the terms without a task, then those of each task.
        """
        phase, start = self.phases[index], self.start(index)
        trainable = trainable_parts(phase.partition(params))

        def loss(params, stats, batch, key, step):
            rules = self.providers(params, stats, batch, key, step, trainable)
            progress = (step - start) / phase.steps
            context = Context({**rules, "progress": lambda _: progress})
            values = [term.value(context, step - start) for term in phase.terms]
            metrics = {name: v for _, found in values for name, v in found.items()}
            if self.combine is None:
                total = sum((value for value, _ in values), jnp.zeros(()))
            else:
                total = _by_task(phase.terms, [value for value, _ in values])
            return total, (metrics, context["stats/next"])

        return loss

    def following(self, index: int) -> Callable[[Any, Any, Array], Any] | None:
        """follow(params, stats, step) -> stats in a phase, if anything follows."""
        follow = self.follow
        if follow is None:
            return None
        phase, start = self.phases[index], self.start(index)
        return lambda params, stats, step: follow(
            params, stats, step, (step - start) / phase.steps
        )

    def check(self, params: Any, stats: Any, batch: Any) -> None:
        """Raises one UserError listing everything that cannot work in any phase.

        `params`, `stats` and `batch` may be arrays or their shapes; nothing is run.
        """
        problems = self._check_phases()
        partitions: list[Partition | None] = []
        for phase in self.phases:
            try:
                partition = phase.partition(params)
            except UserError as error:
                partitions.append(None)
                problems.append(f"phase {phase.name!r}: {error}")
                continue
            partitions.append(partition)
            problems += _conflicts(phase, partition, params)
            problems += self._check_terms(phase, partition, params, stats, batch)
        for (before, after), (old, new) in zip(
            pairwise(self.phases), pairwise(partitions)
        ):
            if old is not None and new is not None:
                where = f"phases {before.name!r} and {after.name!r}"
                problems += [f"{where}: {p}" for p in changed_groups(old, new)]
        if problems:
            raise UserError("This stage is not valid:\n  " + "\n  ".join(problems))

    def _check_phases(self) -> list[str]:
        problems = [] if self.phases else ["a stage needs at least one phase"]
        problems += _twice("phases", [phase.name for phase in self.phases])
        for phase in self.phases:
            if phase.steps < 1:
                problems.append(
                    f"phase {phase.name!r}: steps={phase.steps} must be at least 1"
                )
            if not phase.terms:
                problems.append(
                    f"phase {phase.name!r} has no term, so there is nothing to minimise"
                )
            problems += _twice(
                f"terms of phase {phase.name!r}", [term.name for term in phase.terms]
            )
        return problems

    def _check_terms(self, phase, partition, params, stats, batch) -> list[str]:
        """Traces each term once over shapes."""
        trainable, problems = trainable_parts(partition), []

        def value(term: Term):
            def run(params, stats, batch, step):
                key = jax.random.key(0)
                rules = dict(self.providers(params, stats, batch, key, step, trainable))
                rules["progress"] = lambda _: step / phase.steps
                context = Context(rules)
                wanted = (*term.reads, *((term.examples,) if term.examples else ()))
                unknown = [name for name in wanted if name not in context]
                if unknown:
                    raise UnknownName(
                        "; ".join(near_misses(name, rules) for name in unknown)
                    )
                weights = context[term.examples] if term.examples else None
                return *term.fn(context.only(term.reads, term.name)), weights

            step = jax.ShapeDtypeStruct((), jnp.int32)
            return jax.eval_shape(run, params, stats, batch, step)

        metrics: list[str] = []
        for term in phase.terms:
            where = f"phase {phase.name!r}, term {term.name!r}"
            try:
                each, extra, weights = value(term)
            except (UnknownName, UserError) as error:
                problems.append(f"{where}: {error}")
                continue
            metrics += [term.name, *extra]
            sizes = sorted({leaf.shape[:1] for leaf in jax.tree.leaves(batch)})
            if each.shape not in [(), *sizes]:
                problems.append(
                    f"{where}: the loss has shape {each.shape}; expected one value "
                    f"per example, {' or '.join(map(str, sizes))}, or a scalar"
                )
            elif weights is not None and each.shape != weights.shape:
                problems.append(
                    f"{where}: a loss of shape {each.shape} cannot be weighted by the "
                    f"example weights {term.examples!r} of shape {weights.shape}; "
                    "remove `examples`"
                )
        return problems + _twice(f"metrics of phase {phase.name!r}", metrics)


def _by_task(terms: Sequence[Term], values: Sequence[Array]) -> Array:
    """[1 + T] sums: terms without a task, then each task's, in order of appearance."""
    tasks = (None, *dict.fromkeys(t.task for t in terms if t.task is not None))
    sums = {task: jnp.zeros(()) for task in tasks}
    for term, value in zip(terms, values, strict=True):
        sums[term.task] = sums[term.task] + value
    return jnp.stack([sums[task] for task in tasks])


def _conflicts(phase: Phase, partition: Partition, params: Any) -> list[str]:
    """Terms of one phase that work against each other, or against the optimiser."""
    where, problems = f"phase {phase.name!r}", []
    attacked = Counter(term.adversary_of for term in phase.terms if term.adversary_of)
    for stream, count in attacked.items():
        if count > 1:
            names = [t.name for t in phase.terms if t.adversary_of == stream]
            problems.append(
                f"{where}: {count} adversaries on the stream {stream!r} "
                f"({', '.join(names)}); keep only one"
            )
    decay = {
        group.name: phase.options.weight_decay
        if group.weight_decay is None
        else group.weight_decay
        for group in partition.groups
        if not group.freeze
    }
    decayed = [
        path
        for path, leaf in flatten(params).items()
        if decay.get(partition.of[path], 0.0) and decays(path, leaf)
    ]
    pulls = {term.name: term.penalises for term in phase.terms if term.penalises}
    for name, rule in pulls.items():
        both = [path for path in decayed if re.search(rule, path)]
        if both:
            problems.append(
                f"{where}: weight decay and the term {name!r} pull {len(both)} "
                f"leaves, e.g. {both[0]}, to different points; set --weight-decay 0 "
                "(l2-sp has its own weight for the heads)"
            )
    return problems


def _twice(what: str, names: Sequence[str]) -> list[str]:
    return [
        f"{what}: {name!r} appears {count} times"
        for name, count in Counter(names).items()
        if count > 1
    ]


def describe(stage: Stage, params: Mapping[str, Any]) -> str:
    """What each phase trains and freezes, one line per group."""
    size = {path: leaf.size for path, leaf in flatten(params).items()}
    lines = []
    for phase in stage.phases:
        partition = phase.partition(params)
        frozen = sum(
            size[p] for p, g in partition.of.items() if g in partition.frozen_names
        )
        total = sum(size.values())
        lines.append(
            f"phase {phase.name}: {phase.steps} steps at {phase.options.lr:g}, "
            f"{total - frozen:,} of {total:,} parameters learn, {frozen:,} are frozen"
        )
        lines.append(partition.describe(params))
    return "\n".join(lines)
