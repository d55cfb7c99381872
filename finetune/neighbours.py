"""Neighbours in the pretrained features, before any fine-tuning.

NumPy and scikit-learn on the host: 64 numbers per image, ten neighbours.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from afterimage.console import ProgressBar
from afterimage.data import ImageSet
from afterimage.encoder import Encoder
from afterimage.models.heads import pool_features
from afterimage.training.batches import EvaluationRunner, subsample

NEIGHBOURS, COMPONENTS = 10, 64
_MOST_TO_PROJECT = 5_000
_ROWS = 2_000  # searched at a time
Features = Float[np.ndarray, "_n d"]


def unit(x: Features) -> Features:
    """The rows scaled to length one; rows of zeros unchanged."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def nearest(
    x: Features, count: int
) -> tuple[Float[np.ndarray, "_n k"], Int[np.ndarray, "_n k"]]:
    """(distances, rows) of the `count` nearest other rows of each row."""
    from sklearn.neighbors import NearestNeighbors

    n, distances, indices = len(x), [], []
    search = NearestNeighbors(n_neighbors=count + 1).fit(x)
    with ProgressBar(n, "neighbours") as progress:
        for first in range(0, n, _ROWS):
            rows = np.arange(first, min(first + _ROWS, n))
            distance, index = search.kneighbors(x[rows])
            others = index != rows[:, None]
            others[others.all(1), -1] = False  # more duplicates than neighbours
            distances.append(distance[others].reshape(len(rows), count))
            indices.append(index[others].reshape(len(rows), count))
            progress.add(len(rows))
    return np.concatenate(distances), np.concatenate(indices)


def nearest_images(
    encoder: Encoder, images: ImageSet, sweep: EvaluationRunner
) -> Int[np.ndarray, "n k"]:
    """Rows of the ten images nearest to each image, in the features of `encoder`."""
    project = PrincipalFeatures(encoder.apply_maps, encoder.params, sweep)
    project.fit(images)
    return nearest(unit(project(images)), min(NEIGHBOURS, len(images) - 1))[1]


class PrincipalFeatures:
    """Projects an encoder's features of images on 64 principal components.

    `maps(model, uint8 images)` gives the feature maps. All of them are averaged over a
    2 x 2 grid and standardised, batch by batch; only 64 numbers per image are kept.
    """

    def __init__(
        self,
        maps: Callable[[Any, Any], list[Any]],
        model: Any,
        sweep: EvaluationRunner,
        seed: int = 0,
    ):
        self._sweep, self._model, self._seed = sweep, model, seed
        self._features = sweep.jit(
            lambda model, images: pool_features(maps(model, images), "pyramid-grid")
        )
        self._pca: Any = None

    def fit(self, images: ImageSet) -> None:
        """Computes the components from at most 5,000 of these images."""
        from sklearn.decomposition import PCA

        x = np.concatenate(list(self._batches(subsample(images, _MOST_TO_PROJECT))))
        self._mean, self._scale = x.mean(0), x.std(0) + 1e-6
        count = min(COMPONENTS, *x.shape)
        self._pca = PCA(count, random_state=self._seed).fit(self._standard(x))

    def __call__(self, images: ImageSet) -> Features:
        parts = [
            self._pca.transform(self._standard(x)).astype(np.float32)
            for x in self._batches(images)
        ]
        return np.concatenate(parts)

    def _standard(self, x: Features) -> Features:
        return (x - self._mean) / self._scale

    def _batches(self, images: ImageSet) -> Iterator[Features]:
        with ProgressBar(len(images), "features") as progress:
            for _, batch, mask in self._sweep.batches(images):
                yield np.asarray(self._features(self._model, batch["image"]))[mask]
                progress.add(int(mask.sum()))
