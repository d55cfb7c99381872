"""Label propagation: classes of many images from few labels and near neighbours.

Once before the first step, on the features as they were pretrained, NumPy and SciPy on
the host. What a classifier of few labels takes for another class, its neighbours may
still tell: a second opinion on its pseudo-labels (`finetune.terms.consistency`).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from afterimage.data import ImageSet
from afterimage.data.progress import Progress
from afterimage.training.sweep import Sweep, spaced
from finetune.classifier import Classifier

FEATURES = "pyramid-grid"
NEIGHBOURS, COMPONENTS, ALPHA = 10, 64, 0.99
_MOST, _MOST_TO_PROJECT = 60_000, 5_000
_ROWS = 2_000  # of the graph at a time
Features = Float[np.ndarray, "_n d"]
NONE = -1


def propagate(
    features: Features, labels: Int[np.ndarray, " _n"], classes: int
) -> Int[np.ndarray, " _n"]:
    """The class of each row: argmax_c F_c / Σ F_c, F = (I − αS)⁻¹ Y; -1 for none.

    Y are the `labels` as rows of one 1, of zeros where the label is -1; S = D^-½ W
    D^-½ of the graph of the ten nearest neighbours, W_ij = exp(−‖x_i − x_j‖² / σ²), σ
    the median distance, the larger of W_ij and W_ji for both; α = 0.99 (Zhou et al.
    2004, "Learning with local and global consistency"; on pseudo-labels of a network
    Iscen et al. 2019). Rows are taken at unit length. A row that no label reaches over
    the graph has none.
    """
    from scipy import sparse
    from scipy.sparse.linalg import cg

    n = len(features)
    x = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    count = min(NEIGHBOURS, n - 1)
    distance, index = _neighbours(x, count)
    width = max(float(np.median(distance)), 1e-12)
    near = np.exp(-np.square(distance / width)).ravel()
    rows = np.repeat(np.arange(n), count)
    graph = sparse.csr_matrix((near, (rows, index.ravel())), (n, n))
    graph = graph.maximum(graph.T)
    degree = np.maximum(np.asarray(graph.sum(1)).ravel(), 1e-12)
    scale = sparse.diags(1 / np.sqrt(degree))
    system = sparse.identity(n) - ALPHA * (scale @ graph @ scale)
    reached = np.zeros((n, classes))
    for one in range(classes):
        wanted = (labels == one).astype(np.float64)
        if wanted.any():
            found = np.maximum(cg(system, wanted, rtol=1e-6, maxiter=100)[0], 0.0)
            reached[:, one] = found / found.sum()
    return np.where(reached.max(1) > 0, reached.argmax(1), NONE)


def _neighbours(
    x: Features, count: int
) -> tuple[Float[np.ndarray, "_n k"], Int[np.ndarray, "_n k"]]:
    """(distances, rows) of the `count` nearest others of each row."""
    from sklearn.neighbors import NearestNeighbors

    n, distances, indices = len(x), [], []
    search = NearestNeighbors(n_neighbors=count + 1).fit(x)
    with Progress(n, "neighbours") as progress:
        for first in range(0, n, _ROWS):
            rows = np.arange(first, min(first + _ROWS, n))
            distance, index = search.kneighbors(x[rows])
            others = index != rows[:, None]
            others[others.all(1), -1] = False  # more equals than neighbours
            distances.append(distance[others].reshape(len(rows), count))
            indices.append(index[others].reshape(len(rows), count))
            progress.add(len(rows))
    return np.concatenate(distances), np.concatenate(indices)


class Projector:
    """Features of images on 64 principal components of what the encoder makes of them.

    All maps as means of a 2 x 2 grid, standardised, one batch after the other: what is
    kept is 64 numbers an image.
    """

    def __init__(
        self, classifier: Classifier, sweep: Sweep, model: tuple[Any, Any], seed: int
    ):
        def features(params, stats, images):
            pixels = classifier.preprocessing.normalise(images)
            maps, _ = classifier.maps(params, stats, pixels)
            return classifier.features(params, stats, maps, FEATURES)

        self._sweep, self._model, self._seed = sweep, model, seed
        self._features = sweep.jit(features)
        self._pca: Any = None

    def fit(self, images: ImageSet) -> None:
        """The components, from at most 5,000 of these images."""
        from sklearn.decomposition import PCA

        x = np.concatenate(list(self._batches(spaced(images, _MOST_TO_PROJECT))))
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
        with Progress(len(images), "features") as progress:
            for _, batch, mask in self._sweep.batches(images):
                yield np.asarray(self._features(*self._model, batch["image"]))[mask]
                progress.add(int(mask.sum()))


def propagated(
    project: Projector, known: ImageSet, images: ImageSet, classes: int
) -> Int[np.ndarray, " n"]:
    """Classes of `images` from the labels of `known`, -1 where no label reaches.

    The graph holds at most 60,000 of the images, evenly spaced; each other has the
    class of the nearest among them.
    """
    from sklearn.neighbors import NearestNeighbors

    assert known.labels is not None
    project.fit(images)
    some = spaced(images, _MOST)
    graph = np.concatenate([project(known), project(some)])
    labels = np.concatenate([known.labels, np.full(len(some), NONE)])
    found = propagate(graph, labels, classes)[len(known) :]
    if len(some) == len(images):
        return found
    nearest = NearestNeighbors(n_neighbors=1).fit(graph[len(known) :])
    return found[nearest.kneighbors(project(images))[1][:, 0]]
