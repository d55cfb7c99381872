"""A run over episodes, and what the held-out classes say of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.evaluation.probes import unit_rows
from afterimage.finetune.artefact import head_entry, write_artefacts
from afterimage.finetune.episodes.parts import EpisodeParts
from afterimage.finetune.episodes.sampler import EpisodeLoader, Sampler, Shape
from afterimage.finetune.labels import HEAD
from afterimage.finetune.results import outline
from afterimage.finetune.running import Program
from afterimage.finetune.source import load_weights
from afterimage.finetune.summary import FinetuneResult, write_results, write_run_report
from afterimage.finetune.terms.classification import smoothed_cross_entropy
from afterimage.runs import Run
from afterimage.training.batches import BatchLoader
from afterimage.training.signals import StopSignal
from afterimage.training.stage import describe
from afterimage.training.state import State

_ON_THE_WAY = 50
Leaves = dict[str, Any]
Score = Callable[[int], float]
"""The accuracy on one held-out episode, by its number."""


class EpisodeProgram(Program):
    """One run over episodes. On the way it is scored on 50 fresh episodes of the
    training classes, at its end once on those of the held-out classes."""

    parts: EpisodeParts

    def __init__(self, parts: EpisodeParts, folder: Run):
        super().__init__(parts, folder)
        self._adapted = parts.sweep.jit(self._predict)

    def feed(self, phase: int) -> BatchLoader:
        del phase
        parts = self.parts
        return EpisodeLoader(parts.sampler, options=parts.config, mesh=parts.mesh)

    def evaluate(self, state: State, step: int, stop: StopSignal) -> dict[str, float]:
        parts = self.parts
        params, stats, _ = parts.weights(state)
        # Behind those of the last training step.
        first = parts.total * parts.config.episodes_per_step
        score, scores = self._scorer(parts.sampler, params, stats), []
        for number in range(first, first + _ON_THE_WAY):
            scores.append(score(number))
            stop.check()
        return {"train_accuracy": float(np.mean(scores))}

    def _scorer(self, sampler: Sampler, params: Any, stats: Any) -> Score:
        """The run's method on episodes of `sampler`."""
        if self.parts.config.meta == "prototypical":
            features = self.parts.scorer.features(params, stats, sampler.images)
            return lambda n: by_prototype(features[sampler.episode(n)], sampler.shape)
        labels = sampler.shape.labels[sampler.shape.support :]
        leaves = flatten({name: params[name] for name in ("encoder", "heads")})

        def score(number: int) -> float:
            images = sampler.images.gather(sampler.episode(number))
            return float((self._adapted(leaves, stats, images) == labels).mean())

        return score

    def _predict(self, leaves: Leaves, stats: Any, images: Any) -> Any:
        """Classes of an episode's queries after adapting to its support."""
        parts, support = self.parts, self.parts.shape.support
        labels = jnp.asarray(parts.shape.labels[:support])

        def logits(leaves: Leaves, images: Any) -> Any:
            return parts.classifier.predict(unflatten(leaves), stats, images, HEAD)

        def loss(leaves: Leaves, _: Any, given: Any, key: Any) -> Any:
            found = logits(leaves, given["image"])
            return smoothed_cross_entropy(found, labels, 0.0).mean(), None

        steps = parts.config.test_inner_steps or parts.config.inner_steps
        adaptation = dataclasses.replace(parts.adaptation, steps=steps)
        key = jax.random.key(0)  # evaluation draws nothing
        given = {"image": images[:support]}
        adapted = adaptation(loss, leaves, stats, given, key)
        return logits(adapted, images[support:]).argmax(-1)

    def _frozen(self) -> dict[str, Score]:
        """What the source's encoder does without learning, where it has this
        architecture."""
        parts, held = self.parts, self.parts.held
        if parts.config.model or parts.config.width:
            return {}
        params, stats, _ = load_weights(
            parts.opened.source, parts.params, parts.stats, parts.config.may_differ
        )
        features = parts.scorer.features(params, stats, held.images)

        def scored(how: Callable[..., float]) -> Score:
            return lambda number: how(features[held.episode(number)], held.shape)

        return {
            "frozen encoder, nearest neighbour": scored(by_neighbour),
            "frozen encoder, prototypes": scored(by_prototype),
        }

    def finish(self, state: State, store: Store) -> FinetuneResult:
        parts, run = self.parts, self.folder
        config, held = parts.config, parts.held
        params, stats, step = parts.weights(state)
        scorers = {config.meta: self._scorer(held, params, stats), **self._frozen()}
        rows = {
            name: summarised([score(n) for n in range(config.test_episodes)])
            for name, score in scorers.items()
        }
        names = held.images.class_names or ()
        labels = held.images.labels
        assert labels is not None
        results = outline(parts, step)
        results |= {"validation": None, "test": None}
        results["episodes"] = {
            "method": config.meta,
            "ways": config.ways,
            "shots": config.shots,
            "queries": config.queries,
            "test_episodes": config.test_episodes,
            "held_out_classes": [names[c] for c in np.unique(labels)],
            "accuracy": rows,
        }
        if run.is_main_process:
            entry = head_entry(
                parts.heads[HEAD], [f"way {i + 1}" for i in range(config.ways)]
            )
            manifest = parts.manifest(step)
            write_artefacts(run.path, params, stats, manifest, {HEAD: entry})
            run.metrics.flush()
            keys = ("value", "low", "high")
            lines = [[name, *(row[k] for k in keys)] for name, row in rows.items()]
            write_run_report(
                run,
                config,
                results,
                description=describe(parts.stage, parts.params),
                more_grids={"Held-out classes": (["", "accuracy", *keys[1:]], lines)},
            )
            write_results(run, results)
        return FinetuneResult.of(run, complete=False, results=results)


def summarised(scores: list[float]) -> dict[str, float]:
    """Mean and 95 % interval, mean ± 1.96 s / √n, over episodes."""
    mean = float(np.mean(scores))
    half = 1.96 * float(np.std(scores, ddof=1)) / np.sqrt(len(scores))
    return {"value": mean, "low": mean - half, "high": mean + half}


def by_prototype(features: Float[np.ndarray, "rows d"], shape: Shape) -> float:
    """Accuracy of the nearest class mean on an episode's rows of features."""
    support, queries = features[: shape.support], features[shape.support :]
    prototypes = support.reshape(shape.ways, shape.shots, -1).mean(1)
    square = ((queries[:, None] - prototypes[None]) ** 2).sum(-1)
    return float((square.argmin(1) == shape.labels[shape.support :]).mean())


def by_neighbour(features: Float[np.ndarray, "rows d"], shape: Shape) -> float:
    """Accuracy of the support image of largest cosine on an episode's features."""
    unit = unit_rows(features)
    near = (unit[shape.support :] @ unit[: shape.support].T).argmax(1)
    right = shape.labels[shape.support :]
    return float((shape.labels[: shape.support][near] == right).mean())
