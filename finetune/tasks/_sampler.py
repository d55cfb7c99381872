"""Episodes: small classification tasks, a pure function of (labels, seed, step)."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Int32

from afterimage.data import ImageSet
from afterimage.data.sets import Empty
from afterimage.errors import DataError
from afterimage.evaluation.probes import unit_rows
from afterimage.finetune.data import known_labels
from afterimage.training.batches import Batches, BatchLoader


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of an episode.

    `ways` classes, each with `shots` images to learn from (the support) and `queries`
    images to score. Its rows are the support, then the queries, each sorted by class.
    """

    ways: int
    shots: int
    queries: int

    @property
    def support(self) -> int:
        """Rows of the support."""
        return self.ways * self.shots

    @property
    def rows(self) -> int:
        """Rows of the whole episode."""
        return self.ways * (self.shots + self.queries)

    @property
    def labels(self) -> Int32[np.ndarray, " rows"]:
        """The class of each row within the episode, 0 … ways − 1."""
        parts = [np.repeat(np.arange(self.ways), n) for n in (self.shots, self.queries)]
        return np.concatenate(parts).astype(np.int32)


class Sampler:
    """Episodes of one image set; classes and images of each are drawn by seed.

    Raises DataError for classes with too few images, naming them, and for fewer than
    `ways` classes.
    """

    def __init__(self, images: ImageSet, shape: Shape, seed: int):
        self.images, self.shape, self.seed = images, shape, seed
        names, labels = images.class_names or (), known_labels(images)
        present = np.unique(labels[labels >= 0])
        self._rows = [np.flatnonzero(labels == label) for label in present]
        wanted = shape.shots + shape.queries
        short = [
            f"{names[label]!r} has {len(rows)}"
            for label, rows in zip(present, self._rows)
            if len(rows) < wanted
        ]
        problems = []
        if short:
            problems.append(
                f"an episode needs {wanted} images per class (shots + queries); "
                f"{'; '.join(short[:10])}"
            )
        if len(present) < shape.ways:
            problems.append(
                f"an episode needs {shape.ways} classes, but there are {len(present)}"
            )
        if problems:
            raise DataError(
                f"{images.name}: {'. '.join(problems)}. Reduce ways, shots or "
                "queries, or leave such classes out"
            )

    def episode(self, number: int) -> Int[np.ndarray, " rows"]:
        """Positions in the image set of episode `number`."""
        rng = np.random.default_rng([self.seed, number])
        classes = rng.permutation(len(self._rows))[: self.shape.ways]
        wanted = self.shape.shots + self.shape.queries
        rows = np.stack(
            [rng.permutation(self._rows[c])[:wanted] for c in classes], axis=0
        )
        shots = self.shape.shots
        return np.concatenate([rows[:, :shots].ravel(), rows[:, shots:].ravel()])


class EpisodeBatches(Batches):
    """Batches of whole episodes: batch s holds episodes s·E … (s+1)·E − 1."""

    def __init__(self, sampler: Sampler, **settings: Any):
        super().__init__(sampler.images, **settings)
        self.sampler = sampler

    def batch(self, step: int, empty: Empty | None = None) -> dict[str, Any]:
        count = self.batch_size // self.sampler.shape.rows
        share = count // self.hosts
        first = step * count + self.host * share
        numbers = range(first, first + share)
        index = np.concatenate([self.sampler.episode(n) for n in numbers])
        batch: dict[str, Any] = {"step": step, "index": index.astype(np.int32)}
        batch["label"] = np.tile(self.sampler.shape.labels, share)
        if not self.resident:
            batch |= self.images.inputs(index, empty)
        return batch


class EpisodeLoader(BatchLoader):
    """Batches of episodes; `label` is the class within the episode."""

    def __init__(self, sampler: Sampler, **settings: Any):
        # The set's own labels would replace the episodes' labels on the device.
        bare = dataclasses.replace(sampler.images, labels=None)
        super().__init__(bare, **settings)
        self._sampler = sampler

    def host_batches(self, start: int, prefix: str = "") -> EpisodeBatches:
        return EpisodeBatches(
            self._sampler,
            start=start,
            resident=bool(self.data),
            batch_size=self.options.batch_size,
            seed=self.options.seed,
            host=jax.process_index(),
            hosts=jax.process_count(),
        )


def split_classes(
    images: ImageSet, share: float, seed: int
) -> tuple[ImageSet, ImageSet]:
    """(training images, held-out images): `share` of the classes held out by seed."""
    labels = known_labels(images)
    present = np.unique(labels[labels >= 0])
    order = np.random.default_rng(seed).permutation(present)
    held = order[: round(share * len(present))]
    mask = np.isin(labels, held)
    return images.subset(np.flatnonzero(~mask)), images.subset(np.flatnonzero(mask))


def by_prototype(features: Float[np.ndarray, "rows d"], shape: Shape) -> float:
    """Accuracy of the nearest class mean on the features of an episode."""
    support, queries = features[: shape.support], features[shape.support :]
    prototypes = support.reshape(shape.ways, shape.shots, -1).mean(1)
    square = ((queries[:, None] - prototypes[None]) ** 2).sum(-1)
    return float((square.argmin(1) == shape.labels[shape.support :]).mean())


def by_neighbour(features: Float[np.ndarray, "rows d"], shape: Shape) -> float:
    """Accuracy of the nearest support image (by cosine) on an episode's features."""
    unit = unit_rows(features)
    near = (unit[shape.support :] @ unit[: shape.support].T).argmax(1)
    right = shape.labels[shape.support :]
    return float((shape.labels[: shape.support][near] == right).mean())
