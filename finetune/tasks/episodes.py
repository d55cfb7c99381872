"""Episodes: initial weights from which new classes are learned with a few images each.

Meta-learning as one phase, with episodes as batches and an estimator for the gradient.
During training a run is scored on 50 fresh episodes of the training classes; at the
end it is scored once on episodes of the held-out classes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.errors import UserError
from afterimage.evaluation.nearest import Reference
from afterimage.evaluation.text import percent
from afterimage.fields import at_least_1
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.data import known_labels
from afterimage.finetune.method import Model, Sections
from afterimage.finetune.methods._episodes import EpisodeMethod, Score
from afterimage.finetune.modes import layer_groups
from afterimage.finetune.report import FinetuneResult, outline
from afterimage.finetune.run import FinetuneJob
from afterimage.finetune.selection import Rule, choose_rule
from afterimage.finetune.setup import RunSetup, build, make_head, stage_of
from afterimage.finetune.source import load_weights
from afterimage.finetune.tasks import TASKS, Task
from afterimage.finetune.tasks._sampler import (
    EpisodeLoader,
    Sampler,
    Shape,
    by_neighbour,
    by_prototype,
    split_classes,
)
from afterimage.models.classifier import HEAD
from afterimage.runs import Run
from afterimage.training.batches import BatchLoader
from afterimage.training.loop import StopSignal
from afterimage.training.optimiser import Group
from afterimage.training.stage import Phase, Stage
from afterimage.training.step import State

_ALONE = ("target", "class_weights", "label_smoothing", "ema", "accumulate")
_ALONE += ("whole_photos",)
_TEST = 1
"""Added to the seed of the training episodes."""
_ON_THE_WAY = 50


@TASKS.add("episodes")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Episodes(Task):
    """New classes from a few images each, by meta-learning."""

    kept_step: ClassVar[str | None] = "the last step"

    ways: int = 5
    """Classes per episode."""

    shots: int = 1
    """Images per class to learn from."""

    queries: int = 15
    """Images per class to score."""

    per_step: int = 4
    """Episodes per training step; replaces batch_size."""

    test_classes: float = 0.3
    """Share of the classes to hold out, by seed; the result is measured on them."""

    test_episodes: int = 600
    """Number of held-out episodes; the result has a 95 % interval."""

    def problems(self, config):
        found = self.leave_out(config, _ALONE)
        methods = [m.name for m in config.methods if m.task == self.name]
        if len(methods) != 1:
            found.append("give one method that learns over episodes, e.g. maml")
        found += at_least_1(self, "shots", "queries", "per_step")
        if self.ways < 2:
            found.append(f"ways={self.ways}: must be at least 2")
        if self.test_episodes < 2:
            found.append(
                f"test_episodes={self.test_episodes}: must be at least 2; 600 are "
                "common"
            )
        if not 0 < self.test_classes < 1:
            found.append(f"test_classes={self.test_classes}: must be a share in (0, 1)")
        return found

    def job(self, config, data, run):
        shape = Shape(self.ways, self.shots, self.queries)
        config = self._sized(config, shape)
        train, held = split_classes(data.labels.train, self.test_classes, config.seed)
        sampler = Sampler(train, shape, config.seed)
        test = Sampler(held, shape, config.seed + _TEST)
        labels = dataclasses.replace(data.labels, train=train)
        data = dataclasses.replace(data, labels=labels)
        heads = {HEAD: make_head(config, self.ways)}
        setup = build(config, data, heads=heads, plan=sampler)
        method: Any = config.methods[0]
        return EpisodeJob(setup, method, choose_rule(config, data), run, test)

    def _sized(self, config: FinetuneConfig, shape: Shape) -> FinetuneConfig:
        """The settings, with batch_size set for these episodes."""
        size = self.per_step * shape.rows
        if config.batch_size not in (type(config).batch_size, size):
            raise UserError(
                f"batch_size={config.batch_size}: is set by the episodes "
                f"(per_step={self.per_step} episodes of {shape.rows} images); leave "
                "it out"
            )
        return dataclasses.replace(config, batch_size=size)


def _make_stage(setup: RunSetup, method: EpisodeMethod) -> Stage:
    config = setup.config
    paths = [p for p in flatten(setup.params) if p.startswith("encoder/")]
    head = Group("heads", "^heads/", freeze=not method.trains_head)
    phase = Phase(
        name=method.name,
        terms=(method.term(setup),),
        groups=(head, *layer_groups(paths, config.encoder_lr, config.layer_decay)),
        steps=setup.steps,
        options=config,
        gradient=method.gradient(setup),
    )
    return stage_of(setup, [phase], {})


class EpisodeJob(FinetuneJob):
    """One run over episodes; `held` draws episodes of the held-out classes."""

    def __init__(
        self,
        setup: RunSetup,
        method: EpisodeMethod,
        rule: Rule,
        run: Run,
        held: Sampler,
    ):
        super().__init__(setup, _make_stage(setup, method), rule, run)
        self.method, self.held = method, held
        self._scorer = method.scorer(setup)

    def feed(self, phase: int) -> BatchLoader:
        return EpisodeLoader(self.setup.plan, options=self.config, mesh=self.setup.mesh)

    def evaluate(self, state: State, step: int, stop: StopSignal) -> dict[str, float]:
        # After those of the last training step.
        first = self.setup.steps * self.config.task.per_step
        score = self._scorer(self.setup.plan, self.weights(state)[:2])
        scores = []
        for number in range(first, first + _ON_THE_WAY):
            scores.append(score(number))
            stop.check()
        return {"train_accuracy": float(np.mean(scores))}

    def _frozen(self) -> dict[str, Score]:
        """Scores of the frozen source encoder, if it has this architecture."""
        setup, held, source = self.setup, self.held, self.setup.data.source
        known, own = source.model, setup.data.model
        if (known.name, known.width) != (own.name, own.width):
            return {}
        may_differ = self.config.may_differ
        params, stats, _ = load_weights(source, setup.params, setup.stats, may_differ)
        features = setup.scorer.features(params, stats, held.images)

        def scored(how: Callable[..., float]) -> Score:
            return lambda number: how(features[held.episode(number)], held.shape)

        return {
            "frozen encoder, nearest neighbour": scored(by_neighbour),
            "frozen encoder, prototypes": scored(by_prototype),
        }

    def finish(self, state: State, store: Store) -> FinetuneResult:
        task, held = self.config.task, self.held
        params, stats, step = self.weights(state)
        own = self._scorer(held, (params, stats))
        scorers = {self.method.name: own, **self._frozen()}
        rows = {
            name: summarised([score(n) for n in range(task.test_episodes)])
            for name, score in scorers.items()
        }
        names = held.images.class_names or ()
        results = outline(self.setup, self.rule, step)
        results |= {"validation": None, "test": None}
        results["episodes"] = {
            "method": self.method.name,
            "ways": task.ways,
            "shots": task.shots,
            "queries": task.queries,
            "test_episodes": task.test_episodes,
            "held_out_classes": [
                names[c] for c in np.unique(known_labels(held.images))
            ],
            "accuracy": rows,
        }
        keys = ("value", "low", "high")
        lines = [[name, *(row[k] for k in keys)] for name, row in rows.items()]
        label = f"on {task.test_episodes} held-out episodes (95 % interval)"
        sections = Sections(
            headline={label: percent(rows[self.method.name])},
            grids={"Held-out classes": (["", "accuracy", *keys[1:]], lines)},
        )
        return self.write((params, stats), step, results, task=sections)

    def class_names(self) -> Mapping[str, Sequence[str]]:
        ways = self.config.task.ways
        return {HEAD: [f"way {i + 1}" for i in range(ways)]}

    def _references(self, model: Model) -> dict[str, Reference]:
        return {}  # the head is for classes that are yet to come


def summarised(scores: list[float]) -> dict[str, float]:
    """Mean and 95 % interval, mean ± 1.96 s / √n, over episodes."""
    mean = float(np.mean(scores))
    half = 1.96 * float(np.std(scores, ddof=1)) / np.sqrt(len(scores))
    return {"value": mean, "low": mean - half, "high": mean + half}
