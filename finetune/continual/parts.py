"""The phases of a sequence of tasks: one a task, or one of all tasks together."""

import dataclasses
from typing import Any

import jax

from afterimage.checkpoints.trees import flatten
from afterimage.data import ImageSet
from afterimage.data.augmentations import make_augment
from afterimage.errors import DataError
from afterimage.finetune import streams
from afterimage.finetune.classifier import HeadConfig
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.continual.memory import first_memory, memory_rules
from afterimage.finetune.continual.tasks import make_tasks
from afterimage.finetune.modes import Recipe, layer_groups, shares
from afterimage.finetune.opening import Opened
from afterimage.finetune.parts import Parts
from afterimage.finetune.terms.continual import elastic, task_loss, without_forgetting
from afterimage.training.groups import Group
from afterimage.training.stage import Phase, Stage
from afterimage.training.terms import Term

REPLAY = "replay"
_WEIGHTS = {"ewc": 1e3, "lwf": 1.0}


class ContinualParts(Parts):
    """The parts of a run over a sequence of tasks.

    Raises UserError and DataError as `Parts` does, and for tasks that cannot be.
    """

    def __init__(self, config: FinetuneConfig, opened: Opened):
        chosen = opened.chosen
        self.tasks = make_tasks(config, chosen.class_names)
        every = range(len(self.tasks))
        if chosen.test is None:
            raise DataError(
                f"{chosen.train.name} has no test split, and a sequence of tasks is "
                "scored on one after each task; give one as test/ beside train/"
            )
        train = self.tasks.images(chosen.train, every)
        self.joint = config.continual == "joint"
        self.rows = (tuple(every),) if self.joint else tuple((i,) for i in every)
        """The tasks of each phase."""
        chosen = dataclasses.replace(chosen, train=train)
        super().__init__(config, dataclasses.replace(opened, chosen=chosen))
        self.known = self.tasks.images(train, self.rows[0])

    def make_heads(self) -> dict[str, HeadConfig]:
        return self.tasks.heads(self.config)

    def extend(self, source_head: Any) -> None:
        kept = first_memory(self.config.continual, self.params, self.stats)
        if kept:
            self.stats["continual"] = kept

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = super().batch_shapes()
        return shapes | {f"{REPLAY}/{name}": leaf for name, leaf in shapes.items()}

    def images(self, index: int) -> ImageSet:
        """What phase `index` trains on."""
        return self.tasks.images(self.chosen.train, self.rows[index])

    def memory(self, index: int) -> ImageSet | None:
        """The images of earlier tasks that phase `index` sees again."""
        if self.config.continual != "replay" or not index:
            return None
        size, seed = self.config.memory, self.config.seed
        return self.tasks.memory(self.chosen.train, index, size, seed)

    def seen(self, step: int) -> int:
        """How many tasks have been begun when `step` steps are done."""
        return len(self.tasks) if self.joint else self.stage.phase_of(step) + 1

    def make_stage(self) -> Stage:
        lengths = shares(self.total, len(self.rows))
        phases = [
            Phase(
                name="joint" if self.joint else f"task {self.tasks.label(i)}",
                terms=self._terms(i),
                groups=self._groups(i),
                steps=steps,
                options=self.config,
            )
            for i, steps in enumerate(lengths)
        ]
        names = (streams.TRAIN, REPLAY)
        augment = make_augment(self.config.augment)
        base = streams.supply(self.classifier, augment, streams=names)

        def supply(params, stats, batch, key, step, moving):
            kept, method = stats.get("continual", {}), self.config.continual
            return {
                **base(params, stats, batch, key, step, moving),
                **memory_rules(self.classifier, method, kept),
            }

        return Stage(phases=tuple(phases), supply=supply)

    def _terms(self, index: int) -> tuple[Term, ...]:
        """New images, and what holds the old tasks.

        Replay weighs new and old images as the share of tasks behind them: with n tasks
        begun 1/n and (n − 1)/n (van de Ven et al. 2022).
        """
        tasks, method = self.tasks, self.config.continual
        begun = self.rows[0] if self.joint else tuple(range(index + 1))
        now = self.rows[index] if tasks.per_task else begun
        replayed = self.memory(index) is not None
        new = task_loss(
            tasks.outlets(now),
            stream=streams.TRAIN,
            name="cross_entropy",
            weight=1 / len(begun) if replayed else 1.0,
        )
        if self.joint or not index:
            return (new,)
        weight = self.config.continual_weight or _WEIGHTS.get(method, 1.0)
        old = tasks.outlets(begun[:-1])
        if replayed:
            outlets = old if tasks.per_task else tasks.outlets(begun)
            share = index / len(begun)
            return new, task_loss(outlets, stream=REPLAY, name=REPLAY, weight=share)
        if method == "ewc":
            return new, elastic(weight)
        if method == "lwf":
            return new, without_forgetting(old, weight)
        return (new,)

    def _groups(self, index: int) -> tuple[Group, ...]:
        """The encoder, the heads that a term reads, and the other heads frozen.

        Every task has groups of its own, so each begins with fresh moments and counts.
        """
        tasks, paths = self.tasks, list(flatten(self.params))
        learning = {tasks.head(i) for i in self.rows[index]}
        if self.config.continual in ("lwf", "replay"):
            learning |= {tasks.head(i) for i in range(index)}
        config = self.config
        recipe = Recipe(encoder_lr=config.encoder_lr, layer_decay=config.layer_decay)
        encoder = [path for path in paths if path.startswith("encoder/")]
        groups = [
            Group("heads", f"^heads/(?:{'|'.join(sorted(learning))})/"),
            *layer_groups(encoder, recipe),
        ]
        if learning < set(tasks.heads(config)):
            groups.insert(1, Group("other heads", "^heads/", freeze=True))
        return tuple(
            dataclasses.replace(group, name=f"{group.name} ({index + 1})")
            for group in groups
        )
