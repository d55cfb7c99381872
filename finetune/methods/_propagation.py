"""Label propagation: classes of many images from few labels and near neighbours.

Runs once before the first step, on the pretrained features, with NumPy and SciPy on the
host.
"""

import numpy as np
from jaxtyping import Int

from afterimage.data import ImageSet
from afterimage.finetune.neighbours import (
    NEIGHBOURS,
    Features,
    PrincipalFeatures,
    nearest,
    unit,
)
from afterimage.training.batches import subsample

ALPHA = 0.99
_MOST = 60_000
NONE = -1


def propagate(
    features: Features, labels: Int[np.ndarray, " _n"], classes: int
) -> Int[np.ndarray, " _n"]:
    """The class of each row: argmax_c F_c / Σ F_c, F = (I − αS)⁻¹ Y; -1 for none.

    Y holds the one-hot `labels`, zeros where the label is -1. S = D^-½ W D^-½ on the
    graph of the ten nearest neighbours, W_ij = exp(−‖x_i − x_j‖² / σ²), σ the median
    distance; the larger of W_ij and W_ji is used for both. α = 0.99 (Zhou et al. 2004,
    "Learning with local and global consistency"; for pseudo-labels of a network, Iscen
    et al. 2019). Rows are scaled to unit length. A row that no label reaches over the
    graph has no class.
    """
    from scipy import sparse
    from scipy.sparse.linalg import cg

    n = len(features)
    count = min(NEIGHBOURS, n - 1)
    distance, index = nearest(unit(features), count)
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


def propagated(
    project: PrincipalFeatures, known: ImageSet, images: ImageSet, classes: int
) -> Int[np.ndarray, " n"]:
    """Classes of `images` from the labels of `known`, -1 where no label reaches.

    The graph holds at most 60,000 of the images, evenly spaced; every other image gets
    the class of the nearest one in the graph.
    """
    from sklearn.neighbors import NearestNeighbors

    assert known.labels is not None
    project.fit(images)
    some = subsample(images, _MOST)
    graph = np.concatenate([project(known), project(some)])
    labels = np.concatenate([known.labels, np.full(len(some), NONE)])
    found = propagate(graph, labels, classes)[len(known) :]
    if len(some) == len(images):
        return found
    search = NearestNeighbors(n_neighbors=1).fit(graph[len(known) :])
    return found[search.kneighbors(project(images))[1][:, 0]]
