"""Meta-learning as one phase: episodes for batches, an estimator for the gradient."""

import dataclasses
from typing import Any

from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.data.augmentations import make_augment
from afterimage.errors import UserError
from afterimage.finetune import streams
from afterimage.finetune.classifier import HeadConfig
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.episodes.estimators import (
    Adaptation,
    Leaves,
    Start,
    adapted_gradient,
    one_for_all,
    reptile_gradient,
)
from afterimage.finetune.episodes.sampler import Sampler, Shape, split_classes
from afterimage.finetune.labels import HEAD
from afterimage.finetune.modes import HEADS, Recipe, layer_groups
from afterimage.finetune.opening import Opened
from afterimage.finetune.parts import Parts
from afterimage.finetune.terms.classification import cross_entropy
from afterimage.finetune.terms.prototypes import nearest_mean, prototypical
from afterimage.training.groups import Group
from afterimage.training.stage import Phase, Stage
from afterimage.training.step import Estimator, plain_gradient

LAST = f"heads/{HEAD}/linear"
_TEST = 1  # apart from the seed of the training episodes


class EpisodeParts(Parts):
    """The parts of a run over episodes. `sampler` draws those to learn from, `held`
    those of the held-out classes.

    Raises as `Parts` does, and DataError for classes or images too few.
    """

    def __init__(self, config: FinetuneConfig, opened: Opened):
        chosen = opened.chosen
        self.shape = Shape(config.ways, config.shots, config.queries)
        size = config.episodes_per_step * self.shape.rows
        default = FinetuneConfig.batch_size
        if config.batch_size not in (default, size):
            raise UserError(
                f"batch_size={config.batch_size}: with meta a step has "
                f"episodes_per_step={config.episodes_per_step} episodes of "
                f"{self.shape.rows} images; leave batch_size out"
            )
        train, held = split_classes(chosen.train, config.test_classes, config.seed)
        self.sampler = Sampler(train, self.shape, config.seed)
        self.held = Sampler(held, self.shape, config.seed + _TEST)
        chosen = dataclasses.replace(chosen, train=train)
        super().__init__(
            dataclasses.replace(config, batch_size=size),
            dataclasses.replace(opened, chosen=chosen),
        )

    @property
    def adaptation(self) -> Adaptation:
        """What happens within an episode."""
        config = self.config
        return Adaptation(
            steps=config.inner_steps,
            lr=config.inner_lr,
            first_order=config.meta in ("maml-first-order", "reptile"),
            only="heads/" if config.meta == "anil" else "",
            start=self._start,
        )

    @property
    def _start(self) -> Start | None:
        """Where an episode's descent begins; None for the parameters themselves."""
        if self.config.meta == "proto-maml":
            return self._nearest_mean
        if self.config.tied_head:
            return lambda leaves, stats, support: one_for_all(leaves, LAST)
        return None

    def _nearest_mean(self, leaves: Leaves, stats: Any, support: Any) -> Leaves:
        """The head as the nearest mean of this support, before its augmentation."""
        params, read = unflatten(leaves), self.classifier
        images = read.preprocessing.normalise(support["image"])
        maps, _ = read.maps(params, stats, images)
        features = read.head_features(params, stats, maps, HEAD)
        kernel, bias = nearest_mean(features, self.shape)
        return {**leaves, f"{LAST}/kernel": kernel, f"{LAST}/bias": bias}

    @property
    def estimator(self) -> Estimator:
        """How a step's gradient comes from its episodes."""
        if self.config.meta == "prototypical":
            return plain_gradient
        if self.config.meta == "reptile":
            return reptile_gradient(self.shape, self.adaptation)
        return adapted_gradient(self.shape, self.adaptation)

    def make_heads(self) -> dict[str, HeadConfig]:
        config = self.config
        width = config.head_width
        return {
            HEAD: HeadConfig(config.ways, config.head, config.features, width=width)
        }

    def extend(self, source_head: Any) -> None:
        """Nothing: an episode's loss reads its images alone."""

    def make_stage(self) -> Stage:
        config, by_prototypes = self.config, self.config.meta == "prototypical"
        recipe = Recipe(encoder_lr=config.encoder_lr, layer_decay=config.layer_decay)
        paths = [p for p in flatten(self.params) if p.startswith("encoder/")]
        term = cross_entropy(config.ways, head=HEAD)
        if by_prototypes:
            term = prototypical(self.shape, head=HEAD)
        head = Group("heads", HEADS.match, freeze=by_prototypes)
        phase = Phase(
            name=config.meta,
            terms=(term,),
            groups=(head, *layer_groups(paths, recipe)),
            steps=self.total,
            options=config,
            gradient=self.estimator,
        )
        augment = make_augment(config.augment)
        return Stage(phases=(phase,), supply=streams.supply(self.classifier, augment))
