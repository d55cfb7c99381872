"""Fine-tuning modes: which parameters learn, when, and how fast.

`encoder` below means everything that is not a head: the encoder and, where there is
one, its bottleneck. A mode is turned into phases over the paths of the parameters.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from afterimage.errors import UserError
from afterimage.fields import above_0, at_least_1
from afterimage.plugins import Registry

if TYPE_CHECKING:
    from afterimage.finetune.config import FinetuneConfig
    from afterimage.models import ModelConfig
    from afterimage.training.optimiser import Group
    from afterimage.training.stage import Phase, Term
else:  # naming a mode must not start JAX
    FinetuneConfig = ModelConfig = Group = Phase = Term = Any

MODES: Registry[Any] = Registry("mode", "afterimage.finetune.modes")
DISCRIMINATIVE = 1 / 2.6
"""ULMFiT's ratio of one layer's rate to that of the layer below."""
_HEADS, _REST = "^heads/", "^(?!heads/)"
_UNIT = re.compile(r"^encoder/stages/(\d+)/(?:blocks/(\d+)/)?")
_STEM = re.compile(r"^encoder/(stem[^/]*/)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode:
    """Which parameters learn, when, and how fast."""

    name: ClassVar[str]
    trains_encoder: ClassVar[bool] = True
    loads_source: ClassVar[bool] = True
    """It starts from the weights of the source model."""

    def problems(self, config: "FinetuneConfig") -> list[str]:
        """Problems with the settings, one sentence each, without the mode's name."""
        return []

    def architecture(self, source: "ModelConfig") -> "ModelConfig":
        """The architecture of the encoder, from that of the source model."""
        return source

    def phases(
        self,
        paths: Sequence[str],
        terms: "tuple[Term, ...]",
        steps: int,
        config: "FinetuneConfig",
    ) -> "tuple[Phase, ...]":
        """The phases over parameters with these paths, `steps` in all.

        Terms that act only through the encoder are left out of phases in which it is
        frozen; their own parameters start to learn with the encoder.

        Raises UserError for a rule that matches nothing, for more stages than the
        encoder has, or for a first phase as long as the whole run.
        """
        return _Phases(paths, terms, config).all_at_once(self.name, steps)


@MODES.add("probe")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe(Mode):
    """Only the head learns; the encoder is frozen."""

    trains_encoder: ClassVar[bool] = False

    head_lr: float | None = None
    """Learning rate of the head. Default: ten times lr, which works as features are
    standardised."""

    def problems(self, config):
        found = above_0(self, "head_lr")
        if config.layer_decay is not None:
            found.append("layer_decay: has no effect, as the encoder does not learn")
        return found

    def phases(self, paths, terms, steps, config):
        return (_Phases(paths, terms, config).of_head("probe", steps, self.head_lr),)


@MODES.add("partial")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Partial(Mode):
    """The head learns with the encoder's last stages, or with parameters by path."""

    stages: int | None = None
    """Number of the encoder's last stages that learn."""

    unfreeze: tuple[str, ...] = ()
    """Regular expressions: parameters whose paths match learn, e.g.
    '^encoder/stages/2/'."""

    def problems(self, config):
        found = pattern_problems("unfreeze", self.unfreeze)
        found += at_least_1(self, "stages")
        if self.stages is None and not self.unfreeze:
            found.append(
                "give stages or unfreeze, to choose what learns besides the head"
            )
        return found

    def phases(self, paths, terms, steps, config):
        made = _Phases(paths, terms, config)
        groups = partial_groups(
            made.encoder,
            stages=self.stages,
            unfreeze=self.unfreeze,
            lr=config.encoder_lr,
            decay=config.layer_decay,
        )
        return (made.phase("partial", groups, steps),)


@MODES.add("two-phase")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoPhase(Mode):
    """First the head alone, then everything (LP-FT, Kumar et al. 2022)."""

    head_steps: int | None = None
    """Steps in which the head learns alone. Default: a tenth of the run."""

    head_lr: float | None = None
    """Learning rate of these steps. Default: ten times lr."""

    def problems(self, config):
        return above_0(self, "head_lr") + at_least_1(self, "head_steps")

    def phases(self, paths, terms, steps, config):
        made = _Phases(paths, terms, config)
        groups = layer_groups(made.encoder, config.encoder_lr, config.layer_decay)
        head = max(1, steps // 10) if self.head_steps is None else self.head_steps
        return made.head_first([("all", groups)], steps, head, self.head_lr)


@MODES.add("gradual")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradual(Mode):
    """First the head, then one more stage in each phase, starting with the last.

    Each layer has a lower rate than the one above (ULMFiT, Howard & Ruder 2018).
    """

    head_steps: int | None = None
    """Steps in which the head learns alone. Default: the same as in each other
    phase."""

    head_lr: float | None = None
    """Learning rate of these steps. Default: ten times lr."""

    def problems(self, config):
        return above_0(self, "head_lr") + at_least_1(self, "head_steps")

    def phases(self, paths, terms, steps, config):
        made = _Phases(paths, terms, config)
        thaws = gradual_groups(made.encoder, config.encoder_lr, config.layer_decay)
        head = self.head_steps
        if head is None:
            head = max(1, steps // (len(thaws) + 1))
        return made.head_first(thaws, steps, head, self.head_lr)


@MODES.add("full")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Full(Mode):
    """Everything learns from the first step."""


@MODES.add("scratch")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scratch(Mode):
    """As full, from random weights: the control for every transfer."""

    loads_source: ClassVar[bool] = False

    model: str | None = None
    """Architecture, e.g. conv. Default: the source's."""

    width: float | None = None
    """Multiplies the channels of every stage. Default: the source's, or 1 if model is
    set."""

    def problems(self, config):
        if self.width is not None and not 0 < self.width <= 16:
            return [f"width={self.width}: must be in (0, 16]"]
        return []

    def architecture(self, source):
        from afterimage.models import ModelConfig

        if self.model in (None, source.name):
            return dataclasses.replace(source, width=self.width or source.width)
        return ModelConfig(
            name=self.model,
            image_size=source.image_size,
            channels=source.channels,
            width=self.width or 1.0,
        )


def pattern_problems(name: str, patterns: Iterable[str]) -> list[str]:
    """A problem for each pattern that is not a regular expression."""
    found = []
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            found.append(
                f"{name}={pattern!r}: not a valid regular expression ({error})"
            )
    return found


def group(name: str, match: str, **settings: Any) -> "Group":
    """A group of the optimiser, imported here: naming a mode must not start JAX."""
    from afterimage.training.optimiser import Group

    return Group(name, match, **settings)


class _Phases:
    """Phases over given paths and terms, with the groups that all modes share."""

    def __init__(
        self,
        paths: Sequence[str],
        terms: "tuple[Term, ...]",
        config: "FinetuneConfig",
    ):
        self.terms, self.config = terms, config
        self.encoder = [p for p in paths if not p.startswith(("heads/", "terms/"))]
        self._weighing = weighing_groups(terms)
        rest = [
            path
            for path in paths
            if not any(re.search(g.match, path) for g in self._weighing)
        ]
        heads = group("heads", _HEADS)
        self._own = (heads, *self._weighing, *term_groups(rest))
        self._alone = (heads, *self._weighing, group("frozen", _REST, freeze=True))

    def of_head(self, name: str, steps: int, head_lr: float | None) -> "Phase":
        """A phase in which only the heads learn."""
        from afterimage.training.stage import Phase

        rate = head_lr or 10 * self.config.lr
        return Phase(
            name=name,
            terms=tuple(term for term in self.terms if not term.encoder_only),
            groups=self._alone,
            steps=steps,
            options=dataclasses.replace(self.config, lr=rate),
        )

    def phase(self, name: str, groups: "Iterable[Group]", steps: int) -> "Phase":
        """A phase in which these groups of the encoder learn too."""
        from afterimage.training.stage import Phase

        return Phase(
            name=name,
            terms=self.terms,
            groups=(*self._own, *groups),
            steps=steps,
            options=self.config,
        )

    def all_at_once(self, name: str, steps: int) -> "tuple[Phase, ...]":
        """One phase in which everything learns."""
        config = self.config
        groups = layer_groups(self.encoder, config.encoder_lr, config.layer_decay)
        return (self.phase(name, groups, steps),)

    def head_first(
        self,
        thaws: "Sequence[tuple[str, tuple[Group, ...]]]",
        steps: int,
        head_steps: int,
        head_lr: float | None,
    ) -> "tuple[Phase, ...]":
        """A phase for the head, then one for each (name, groups), of equal length."""
        lengths = shares(steps - head_steps, len(thaws))
        if head_steps < 1 or lengths[0] < 1:
            raise UserError(
                f"head_steps={head_steps} of {steps} steps: the head's phase needs at "
                f"least 1 step, and the {len(thaws)} phases after it at least 1 each"
            )
        later = [
            self.phase(name, groups, n) for (name, groups), n in zip(thaws, lengths)
        ]
        return (self.of_head("head", head_steps, head_lr), *later)


def shares(steps: int, count: int) -> list[int]:
    """`steps` in `count` equal parts, the remainder in the last."""
    each = steps // count
    return [each] * (count - 1) + [steps - each * (count - 1)]


def weighing_groups(terms: "Iterable[Term]") -> "tuple[Group, ...]":
    """A group for the parameters of terms that do not need the encoder.

    They learn whenever the heads do.
    """
    names = [t.name for t in terms if t.params and not t.encoder_only]
    rule = f"^terms/(?:{'|'.join(map(re.escape, names))})/"
    return (group("weights of tasks", rule),) if names else ()


def term_groups(paths: Iterable[str]) -> "tuple[Group, ...]":
    """Groups for the terms' other parameters: those fixed, and those that learn."""
    own = [path for path in paths if path.startswith("terms/")]
    groups = []
    if any("/fixed/" in path for path in own):
        groups.append(group("terms, fixed", "^terms/.*/fixed/", freeze=True))
    if own:
        groups.append(group("terms", "^terms/"))
    return tuple(groups)


def gradual_groups(
    encoder: Sequence[str], lr: float, decay: float | None
) -> "list[tuple[str, tuple[Group, ...]]]":
    """(name, groups) of each phase after the head's: one more stage learns in each.

    Layer l of L learns at lr · encoder_lr · 2.6^−(L−l), or with `decay` in place of
    1/2.6. A stage keeps its groups, and so its moments and count, from phase to phase.
    """
    decay = DISCRIMINATIVE if decay is None else decay
    count = len({m[1] for path in encoder if (m := _UNIT.match(path))})
    phases = [
        (f"last {n}", partial_groups(encoder, stages=n, lr=lr, decay=decay))
        for n in range(1, count)
    ]
    return [*phases, ("all", layer_groups(encoder, lr, decay))]


def partial_groups(
    encoder: Sequence[str],
    *,
    stages: int | None = None,
    unfreeze: Sequence[str] = (),
    lr: float = 1.0,
    decay: float | None = None,
) -> "tuple[Group, ...]":
    """The frozen group first, then the layers that learn."""
    rules = list(unfreeze)
    if stages is not None:
        rules.append(last_stages(encoder, stages))
    idle = [r for r in rules if not any(re.search(r, path) for path in encoder)]
    if idle:
        raise UserError(
            f"unfreeze rules {', '.join(map(repr, idle))} match no parameter of the "
            "encoder:\n  " + "\n  ".join(encoder)
        )
    thawed = "|".join(f"(?:{rule})" for rule in rules)
    learning = [path for path in encoder if re.search(thawed, path)]
    if len(learning) == len(encoder):
        return layer_groups(encoder, lr, decay)
    # (?s:.*) before the rule lets it match anywhere, as re.search would.
    frozen = group("frozen", rf"^(?!heads/)(?!(?s:.*)(?:{thawed}))", freeze=True)
    return (frozen, *layer_groups(learning, lr, decay, among=encoder))


def last_stages(encoder: Sequence[str], count: int) -> str:
    """A rule for the last `count` stages and what comes after them.

    The stem stays frozen even if `count` is the number of stages.
    """
    stages = sorted({int(m[1]) for path in encoder if (m := _UNIT.match(path))})
    if not 1 <= count <= len(stages):
        raise UserError(
            f"partial.stages={count}: must be from 1 to {len(stages)}, the number of "
            "stages of this encoder"
        )
    frozen = "|".join(map(str, stages[: len(stages) - count]))
    earlier = rf"(?!encoder/stages/(?:{frozen})/)" if frozen else ""
    return rf"^(?!encoder/stem){earlier}(?!heads/)"


def depths(encoder: Iterable[str]) -> dict[str, int]:
    """{path: layer}: 0 is the stem, then one layer per block, in order of depth.

    Down-sampling before a stage belongs to the stage's first block; anything after the
    stages (a last norm, a bottleneck) belongs to the last block.
    """
    units = {path: _unit(path) for path in encoder}
    order = {u: i for i, u in enumerate(sorted({u for u in units.values() if u}), 1)}
    last = len(order)
    return {
        path: order[unit] if unit else 0 if _STEM.match(path) else last
        for path, unit in units.items()
    }


def _unit(path: str) -> tuple[int, int] | None:
    found = _UNIT.match(path)
    return (int(found[1]), int(found[2] or 0)) if found else None


def layer_groups(
    learning: Sequence[str],
    lr: float,
    decay: float | None,
    *,
    among: Sequence[str] | None = None,
) -> "tuple[Group, ...]":
    """One group for the learning part of the encoder, or one per layer with `decay` d.

    Layer l of L learns at the run's rate · `lr` · d^(L−l), the heads (l = L) at the
    run's rate: BEiT's rule (Bao et al. 2021) as in timm, with blocks as layers. `among`
    holds all paths of the encoder, which determine L.
    """
    if decay is None:
        return (group("encoder", _REST, lr=lr),)
    depth = depths(among or learning)
    top = max(depth.values()) + 1
    groups = []
    for layer in sorted({depth[path] for path in learning}):
        prefixes = sorted({_prefix(p) for p in learning if depth[p] == layer})
        match = f"^(?:{'|'.join(map(re.escape, prefixes))})"
        groups.append(group(f"layer {layer}", match, lr=lr * decay ** (top - layer)))
    return tuple(groups)


def _prefix(path: str) -> str:
    """The prefix for a layer's rule: a block, the rest of a stage, or a model part."""
    found = re.match(
        r"^(?:encoder/stages/\d+/(?:blocks/\d+|[^/]+)/|encoder/[^/]+/)", path
    )
    return found[0] if found else path
