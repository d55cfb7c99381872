"""Optimiser groups, and AdamW with warm-up and a cosine schedule.

Groups are ordered rules over parameter paths; the first match wins. A frozen group is
not differentiated at all: its leaves never reach the gradient, so it costs no backward
pass, holds no moments, and stays bit-identical. (A mask in the optimiser, or a
global-norm clip over all leaves, would bring it back.)
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.errors import UserError
from afterimage.training.options import TrainingOptions


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters whose path matches, and how they learn."""

    name: str
    match: str
    """Regular expression searched in the path, e.g. `^encoder/stages/[01]/`."""
    lr: float = 1.0
    """Multiplies the learning rate of the schedule."""
    weight_decay: float | None = None
    """Overrides the weight decay of the options."""
    freeze: bool = False
    """Frozen: bit-identical leaves, no moments, no backward pass."""


EVERYTHING = (Group("all", ".*"),)


@dataclasses.dataclass(frozen=True)
class Partition:
    """Which parameter belongs to which group: `of` maps each path to a group name."""

    groups: tuple[Group, ...]
    of: Mapping[str, str]

    @property
    def frozen_names(self) -> frozenset[str]:
        return frozenset(group.name for group in self.groups if group.freeze)

    def split(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Nested parameters -> (trainable, frozen), both `{path: leaf}`."""
        trainable, frozen = {}, {}
        for path, leaf in flatten(params).items():
            target = frozen if self.of[path] in self.frozen_names else trainable
            target[path] = leaf
        return trainable, frozen

    def merge(
        self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The inverse of `split`."""
        return unflatten({**frozen, **trainable})

    def describe(self, params: Mapping[str, Any]) -> str:
        """One line per group: name, leaves, parameters, learning rate or frozen."""
        rows = []
        flat = flatten(params)
        for group in self.groups:
            leaves = [flat[p] for p, name in self.of.items() if name == group.name]
            count = sum(leaf.size for leaf in leaves)
            how = "frozen" if group.freeze else f"learning rate x {group.lr:g}"
            rows.append(
                f"  {group.name}: {len(leaves)} leaves, {count:,} parameters, {how}"
            )
        return "\n".join(rows)


def split_groups(
    params: Mapping[str, Any], groups: Sequence[Group] = EVERYTHING
) -> Partition:
    """Assigns every leaf of nested `params` to the first group whose rule matches.

    Raises:
      UserError: a rule matches nothing, no rule matches a leaf, two groups share a
        name, or everything is frozen; every case is listed.
    """
    paths = list(flatten(params))
    of: dict[str, str] = {}
    for path in paths:
        for group in groups:
            if re.search(group.match, path):
                of[path] = group.name
                break
    problems = []
    names = [group.name for group in groups]
    problems += [
        f"two groups are named {n!r}" for n in {n for n in names if names.count(n) > 1}
    ]
    for group in groups:
        if group.name not in of.values():
            hidden = any(re.search(group.match, path) for path in paths)
            why = "is hidden by earlier rules" if hidden else "matches no parameter"
            problems.append(f"group {group.name!r}: rule {group.match!r} {why}")
    problems += [f"no group covers {path}" for path in paths if path not in of]
    partition = Partition(tuple(groups), of)
    if not problems and set(of.values()) <= partition.frozen_names:
        problems.append("every group is frozen, so nothing can learn")
    if problems:
        known = "\n  ".join(paths)
        raise UserError(
            "The optimiser groups do not fit the parameters:\n  "
            + "\n  ".join(problems)
            + f"\nThe parameters are:\n  {known}"
        )
    return partition


def count_parameters(tree: Any) -> int:
    """Number of scalars in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def trainable_parts(partition: Partition) -> frozenset[str]:
    """Parts whose normalisation statistics are updated: `encoder`, `heads/NAME`.

    A part with any frozen leaf runs in evaluation mode and keeps its statistics, bit
    for bit (Keras's rule: untrainable layers run in inference mode); a part whose
    leaves all learn runs in training mode.
    """
    parts: dict[str, bool] = {}
    for path, group in partition.of.items():
        part = part_of(path)
        parts[part] = parts.get(part, True) and group not in partition.frozen_names
    return frozenset(part for part, trains in parts.items() if trains)


def part_of(path: str) -> str:
    """`heads/classes/kernel` -> `heads/classes`; else the first name of the path."""
    names = path.split("/")
    return "/".join(names[:2]) if names[0] == "heads" else names[0]


def migrate(old: Any, new: Any, before: Partition, after: Partition) -> Any:
    """The optimiser state `new`, with carried-over parts taken from `old`.

    Leaves are matched by their path in the state, which names group and parameter: a
    group in both phases keeps its moments and count, every other one is as in `new`.
    """
    stay = {
        group.name
        for group in after.groups
        if not group.freeze and _members(before, group.name) is not None
    }
    known = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(old)[0]
    }
    leaves, structure = jax.tree_util.tree_flatten_with_path(new)
    return structure.unflatten(
        known[jax.tree_util.keystr(path)] if _group_in(path) in stay else leaf
        for path, leaf in leaves
    )


def _group_in(path: Sequence[Any]) -> str | None:
    """The group in an optimiser state's path: what follows `.inner_states`."""
    names = [getattr(key, "name", getattr(key, "key", None)) for key in path]
    if "inner_states" not in names:
        return None
    return names[names.index("inner_states") + 1]


def _members(partition: Partition, name: str) -> frozenset[str] | None:
    """Paths of a learning group; None if it is frozen or absent."""
    if name in partition.frozen_names or name not in partition.of.values():
        return None
    return frozenset(path for path, group in partition.of.items() if group == name)


def changed_groups(old: Partition, new: Partition) -> list[str]:
    """Problems: groups that keep their name but change their parameters."""
    problems = []
    for group in new.groups:
        was, now = _members(old, group.name), _members(new, group.name)
        if was is None or now is None or was == now:
            continue
        changed = sorted(was ^ now)
        problems.append(
            f"group {group.name!r} changes its parameters ({len(changed)} differ, "
            f"e.g. {changed[0]}). Put newly trainable parameters into a group of "
            "their own, so that they do not inherit its count of updates"
        )
    return problems


Schedule = Callable[[jax.Array], jax.Array]


def make_schedule(
    options: TrainingOptions, total: int, warmup: int, start: int = 0
) -> Schedule:
    """Learning rate by global step: linear warm-up, then cosine to zero or constant.

    The first step already learns, at lr/warmup. A phase that begins at `start` has its
    own warm-up and cosine over its `total` steps.
    """

    def schedule(step: jax.Array) -> jax.Array:
        t = (step - start).astype(jnp.float32)
        rate = jnp.minimum(1.0, (t + 1) / max(warmup, 1))
        if options.schedule == "cosine":
            progress = jnp.clip((t - warmup) / max(total - warmup, 1), 0.0, 1.0)
            rate = rate * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return options.lr * rate

    return schedule


def decays(path: str, leaf: Any) -> bool:
    """Whether weight decay applies: to kernels, never to norms and biases."""
    name = path.rsplit("/", 1)[-1]
    return leaf.ndim >= 2 and name not in {"bias", "scale", "gamma", "beta"}


def make_optimiser(
    options: TrainingOptions, partition: Partition
) -> optax.GradientTransformation:
    """AdamW's update of the flat trainable parameters, before the learning rate.

    The step multiplies by the schedule, so the rate follows the global step while each
    group counts its own updates: a newly unfrozen group gets a fresh bias correction.
    Clipping uses trainable leaves only.
    """

    # Leaves of other groups arrive as MaskedNode.
    def mask(flat: Mapping[str, Any]) -> dict[str, bool]:
        return {
            path: not isinstance(leaf, optax.MaskedNode) and decays(path, leaf)
            for path, leaf in flat.items()
        }

    def adamw(scale: float, weight_decay: float) -> optax.GradientTransformation:
        parts = [optax.scale_by_adam(b1=0.9, b2=options.beta2)]
        if weight_decay:
            parts.append(optax.add_decayed_weights(weight_decay, mask=mask))
        return optax.chain(*parts, optax.scale(scale))

    transforms = {}
    for group in partition.groups:
        if not group.freeze:
            decay = group.weight_decay
            decay = options.weight_decay if decay is None else decay
            transforms[group.name] = adamw(group.lr, decay)
    grouped = optax.partition(
        transforms, lambda flat: {path: partition.of[path] for path in flat}
    )
    if options.clip:
        return optax.chain(optax.clip_by_global_norm(options.clip), grouped)
    return grouped
