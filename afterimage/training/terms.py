"""Terms: the summands of what a phase minimises, over values that they share.

A phase's loss is Σ_t w_t(s) · mean_i ω_i ℓ_t(i), with s the steps since the phase began
and ω the weights of examples where a term has them. Terms give one value per example
and leave the mean to the phase, so that a weighting of examples composes with any of
them; a loss of pairs of examples (a domain distance) gives a scalar.

The shared values have names, and each is computed once. A name says which stream a
value belongs to and what it is: `train/image`, `train/label`, `train/maps`,
`train/features`, `train/logits`; values that belong to no stream are `params`, `stats`
and `step`. A stage supplies the rules; the first reader of a name pays for it, the
next one gets the same array. The memo lives as long as one trace, so a compiled step
contains every forward pass once.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

TermResult = tuple[Array, dict[str, Array]]


class UnknownName(KeyError):
    """A name was read that nothing supplies; the message offers the nearest."""

    def __str__(self) -> str:
        return str(self.args[0])


def near_misses(name: str, known: Iterable[str]) -> str:
    """That `name` is not supplied, with the nearest name, or the whole list."""
    known = sorted(known)
    stream, slash, _ = name.partition("/")
    streams = sorted({other.split("/")[0] for other in known if "/" in other})
    if slash and stream not in streams:
        return (
            f"{name!r} is not supplied: nothing here is called {stream!r}, only "
            f"{', '.join(streams)}; an unlabelled target stream is given by --target"
        )
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"{name!r} is not supplied; did you mean {close[0]!r}?"
    return f"{name!r} is not supplied; this stage supplies {', '.join(known)}"


class Context:
    """Values by name, computed by their rule on first reading.

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
        """Whether anyone has read `name` so far."""
        return name in self._values

    def only(self, names: tuple[str, ...], reader: str) -> "View":
        """This context as one term may see it: `names` and nothing else."""
        return View(self, names, reader)


class View:
    """A context seen through what one term declared in `reads`."""

    def __init__(self, context: Context, names: tuple[str, ...], reader: str):
        self._context, self._names, self._reader = context, names, reader

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise UnknownName(
                f"the term {self._reader!r} reads {name!r} without declaring it; "
                f"its reads are {self._names}"
            )
        return self._context[name]


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand of a phase's loss.

    `fn(view)` gives float32 [B] (one value per example) or a scalar (a loss of the
    batch as a whole), and metrics; it reads the names in `reads` and no others.
    `weight` is a number or a function of the steps since the phase began.
    """

    name: str
    fn: Callable[[View], TermResult]
    reads: tuple[str, ...]
    weight: float | Callable[[Array], Array] = 1.0
    examples: str | None = None
    """The name of the weights of examples, ω [B], e.g. `train/weight`."""
    params: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Its own parameters, initial values: `terms/NAME/…` in the tree. What lies under
    `fixed/` does not learn."""
    adversary_of: str | None = None
    """The stream whose features it learns to tell apart; one adversary a stream."""
    penalises: str | None = None
    """Paths (a regular expression) that it pulls somewhere by a quadratic penalty:
    weight decay must not pull the same leaves elsewhere."""
    task: str | None = None
    """The task it teaches: the tasks' gradients may be weighed against each other."""
    encoder_only: bool = False
    """It acts through the encoder alone: left out of phases in which that is frozen."""

    def times(self, factor: float) -> "Term":
        """The same term at another weight."""
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
