"""Fine-tuning modes as phases: which parameters learn, when, and how fast.

`encoder` below means everything that is not a head: the encoder and, where there is
one, its bottleneck.

probe       the encoder is frozen, the head learns
partial     the last stages, or what path rules name, learn with the head
two-phase   first the head alone, then everything (Kumar et al. 2022, LP-FT)
gradual     first the head, then one stage more a phase, the last stage first, each
            layer at a lower rate than the one above (Howard & Ruder 2018, ULMFiT)
full        everything learns from the first step
scratch     as full, from random weights: the control every transfer needs
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from afterimage.errors import UserError
from afterimage.training.groups import Group
from afterimage.training.options import TrainingOptions
from afterimage.training.stage import Phase
from afterimage.training.terms import Term

Mode = Literal["probe", "partial", "two-phase", "gradual", "full", "scratch"]
MODES: tuple[str, ...] = get_args(Mode)

HEADS = Group("heads", "^heads/")
FROZEN = Group("frozen", "^(?!heads/)", freeze=True)
DISCRIMINATIVE = 1 / 2.6
"""ULMFiT's factor from one layer's rate to the next below."""
_UNIT = re.compile(r"^encoder/stages/(\d+)/(?:blocks/(\d+)/)?")
_STEM = re.compile(r"^encoder/(stem[^/]*/)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the encoder learns, apart from the mode.

    `encoder_lr` multiplies the learning rate for all of it, `layer_decay` d once more
    by d^(L−l) for layer l; `unfreeze_stages` and `unfreeze` say what `partial` thaws;
    a head alone learns at `head_lr` (by default ten times the rate), for `head_steps`
    (by default a tenth of two-phase, one of gradual's equal parts).
    """

    encoder_lr: float = 1.0
    layer_decay: float | None = None
    unfreeze_stages: int | None = None
    unfreeze: tuple[str, ...] = ()
    head_steps: int | None = None
    head_lr: float | None = None


def make_phases(
    mode: Mode,
    paths: Sequence[str],
    terms: tuple[Term, ...],
    steps: int,
    options: TrainingOptions,
    recipe: Recipe,
) -> tuple[Phase, ...]:
    """The phases of a mode over parameters with these paths, `steps` in all.

    Terms that act through the encoder alone stay out of phases in which it is frozen;
    their own parameters begin to learn with the encoder.

    Raises:
      UserError: a rule matches nothing, more stages than there are, or a first phase
        as long as the whole run.
    """
    encoder = [path for path in paths if not path.startswith(("heads/", "terms/"))]
    weighing = weighing_groups(terms)
    rest = [p for p in paths if not any(re.search(g.match, p) for g in weighing)]
    own = (HEADS, *weighing, *term_groups(rest))

    def head_phase(name: str, steps: int) -> Phase:
        rate = recipe.head_lr or 10 * options.lr
        return Phase(
            name=name,
            terms=tuple(term for term in terms if not term.encoder_only),
            groups=(HEADS, *weighing, FROZEN),
            steps=steps,
            options=dataclasses.replace(options, lr=rate),
        )

    def phase(name: str, groups: Iterable[Group], steps: int) -> Phase:
        groups = (*own, *groups)
        return Phase(
            name=name, terms=terms, groups=groups, steps=steps, options=options
        )

    if mode == "probe":
        return (head_phase("probe", steps),)
    if mode == "partial":
        return (phase("partial", partial_groups(encoder, recipe), steps),)
    if mode in ("full", "scratch"):
        return (phase(mode, layer_groups(encoder, recipe), steps),)
    thaws = [("all", layer_groups(encoder, recipe))]
    if mode == "gradual":
        thaws = gradual_groups(encoder, recipe)
    head_steps = recipe.head_steps
    if head_steps is None:
        head_steps = max(1, steps // (10 if mode == "two-phase" else len(thaws) + 1))
    lengths = shares(steps - head_steps, len(thaws))
    if head_steps < 1 or lengths[0] < 1:
        raise UserError(
            f"head_steps={head_steps} of {steps} steps: the head's phase needs at "
            f"least one step and must leave some for the {len(thaws)} after it"
        )
    later = [phase(name, groups, n) for (name, groups), n in zip(thaws, lengths)]
    return (head_phase("head", head_steps), *later)


def shares(steps: int, count: int) -> list[int]:
    """`steps` in `count` equal parts, the remainder in the last."""
    each = steps // count
    return [each] * (count - 1) + [steps - each * (count - 1)]


def weighing_groups(terms: Iterable[Term]) -> tuple[Group, ...]:
    """A group for the parameters of terms that do without the encoder: they learn
    whenever the heads do."""
    names = [t.name for t in terms if t.params and not t.encoder_only]
    rule = f"^terms/(?:{'|'.join(map(re.escape, names))})/"
    return (Group("weights of tasks", rule),) if names else ()


def term_groups(paths: Iterable[str]) -> tuple[Group, ...]:
    """Groups for the terms' other parameters: what is fixed, and what learns at lr."""
    own = [path for path in paths if path.startswith("terms/")]
    groups = []
    if any("/fixed/" in path for path in own):
        groups.append(Group("terms, fixed", "^terms/.*/fixed/", freeze=True))
    if own:
        groups.append(Group("terms", "^terms/"))
    return tuple(groups)


def gradual_groups(
    encoder: Sequence[str], recipe: Recipe
) -> list[tuple[str, tuple[Group, ...]]]:
    """(name, groups) of each phase after the head's: one stage more learns in each.

    Layer l of L learns at lr · encoder_lr · 2.6^−(L−l), or by `layer_decay`. A stage
    keeps its groups from phase to phase, and with them moments and count.
    """
    decay = DISCRIMINATIVE if recipe.layer_decay is None else recipe.layer_decay
    recipe = dataclasses.replace(recipe, layer_decay=decay, unfreeze=())
    stages = len({m[1] for path in encoder if (m := _UNIT.match(path))})
    phases = []
    for count in range(1, stages):
        some = dataclasses.replace(recipe, unfreeze_stages=count)
        phases.append((f"last {count}", partial_groups(encoder, some)))
    return [*phases, ("all", layer_groups(encoder, recipe))]


def partial_groups(encoder: Sequence[str], recipe: Recipe) -> tuple[Group, ...]:
    """The frozen group first, then the layers of what thaws."""
    rules = list(recipe.unfreeze)
    if recipe.unfreeze_stages is not None:
        rules.append(last_stages(encoder, recipe.unfreeze_stages))
    if not rules:
        raise UserError(
            "mode partial needs to know what thaws: unfreeze_stages=1 for the last "
            "stage, or a path rule such as unfreeze='^encoder/stages/2/'"
        )
    idle = [r for r in rules if not any(re.search(r, path) for path in encoder)]
    if idle:
        raise UserError(
            f"unfreeze rules {', '.join(map(repr, idle))} match no parameter of the "
            "encoder:\n  " + "\n  ".join(encoder)
        )
    thawed = "|".join(f"(?:{rule})" for rule in rules)
    learning = [path for path in encoder if re.search(thawed, path)]
    if len(learning) == len(encoder):
        return layer_groups(encoder, recipe)
    # (?s:.*) before the rule: re.search's freedom of place inside a lookahead.
    frozen = Group("frozen", rf"^(?!heads/)(?!(?s:.*)(?:{thawed}))", freeze=True)
    return (frozen, *layer_groups(learning, recipe, among=encoder))


def last_stages(encoder: Sequence[str], count: int) -> str:
    """A rule for the last `count` stages and what comes after them.

    Counting every stage leaves the stem frozen.
    """
    stages = sorted({int(m[1]) for path in encoder if (m := _UNIT.match(path))})
    if not 1 <= count <= len(stages):
        raise UserError(
            f"unfreeze_stages={count}: this encoder has {len(stages)} stages, so "
            f"1 to {len(stages)}"
        )
    frozen = "|".join(map(str, stages[: len(stages) - count]))
    earlier = rf"(?!encoder/stages/(?:{frozen})/)" if frozen else ""
    return rf"^(?!encoder/stem){earlier}(?!heads/)"


def depths(encoder: Iterable[str]) -> dict[str, int]:
    """{path: layer}: 0 the stem, then one layer a block, in order of depth.

    Down-sampling before a stage belongs to the stage's first block; what stands after
    the stages (a last norm, a bottleneck) to the last block.
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
    learning: Sequence[str], recipe: Recipe, among: Sequence[str] | None = None
) -> tuple[Group, ...]:
    """One group for the learning part of the encoder, or one a layer under decay.

    Layer l of L learns at lr · encoder_lr · d^(L−l), the heads (l = L) at lr: BEiT's
    rule (Bao et al. 2021) as timm has it, with blocks as layers. `among` are all paths
    of the encoder, which set L.
    """
    if recipe.layer_decay is None:
        return (Group("encoder", "^(?!heads/)", lr=recipe.encoder_lr),)
    depth = depths(among or learning)
    top = max(depth.values()) + 1
    groups = []
    for layer in sorted({depth[path] for path in learning}):
        prefixes = sorted({_prefix(p) for p in learning if depth[p] == layer})
        match = f"^(?:{'|'.join(map(re.escape, prefixes))})"
        scale = recipe.encoder_lr * recipe.layer_decay ** (top - layer)
        groups.append(Group(f"layer {layer}", match, lr=scale))
    return tuple(groups)


def _prefix(path: str) -> str:
    """What a layer's rule names: a block, a stage's other parts, or a model's part."""
    found = re.match(
        r"^(?:encoder/stages/\d+/(?:blocks/\d+|[^/]+)/|encoder/[^/]+/)", path
    )
    return found[0] if found else path
