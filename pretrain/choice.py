"""The feature vector of a finished run: chosen among candidates by labelled images.

Candidates are three poolings (mean, 2x2 grid, 2x2 grids of all maps), each plain,
standardised and whitened. The statistics are of training images. The score is the mean
of three accuracies on held-out images: kNN, and a linear probe (ridge) with ten labels
a class and with all. The objective's own vector is kept unless the best is ahead of it
by more than one standard error of their difference, paired over images (Breiman et al.
1984, the one-standard-error rule).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from afterimage.encoder import vector_entry
from afterimage.evaluation import fit_ridge, knn_predict
from afterimage.evaluation.probes import few_labels_right
from afterimage.models.vector import TRANSFORMS, VectorRecipe, moments_of
from afterimage.training.batches import spaced

RULE = (
    "highest mean of kNN and linear probes with ten labels a class and with all, on "
    "held-out images; the objective's own unless another is ahead by more than one "
    "standard error"
)
DECLARED = "the objective's own: there were no labels to choose by"
_MOST = 2000

Pooled = Mapping[str, Float[np.ndarray, "_n _d"]]
Labels = Integer[np.ndarray, " _n"]


def declared(
    own: tuple[str, str], pooled: Pooled
) -> tuple[VectorRecipe, dict[str, Any]]:
    """(the objective's own vector, its manifest entry), fitted to training images."""
    pool, transform = own
    vector = VectorRecipe.fit(pool, transform, moments_of(pooled[pool]))
    return vector, vector_entry(vector, len(pooled[pool]), rule=DECLARED)


def choose(
    own: tuple[str, str],
    train: Pooled,
    held: Pooled,
    labels: tuple[Labels, Labels],
    *,
    k: int,
) -> tuple[VectorRecipe, dict[str, Any]]:
    """(the chosen vector, its manifest entry with the scores of all candidates).

    `train` and `held` map each candidate pooling to the pooled maps of images with
    these labels; `own` is the objective's (pool, transform). At most 2,000 images of
    each are scored; statistics are of all.
    """
    here, there = (spaced(len(part), _MOST) for part in labels)
    known, truth = labels[0][here], labels[1][there]
    recipes: dict[tuple[str, str], VectorRecipe] = {}
    right: dict[tuple[str, str], np.ndarray] = {}
    scores = []
    for pool, pooled in train.items():
        moments = moments_of(pooled)
        found: dict[str, np.ndarray] = {}
        for transform in TRANSFORMS:
            vector = VectorRecipe.fit(pool, transform, moments)
            x, z = (vector.transformed(p) for p in (pooled[here], held[pool][there]))
            found["knn"] = knn_predict(x, known, z, k=k) == truth
            if transform != "standardise":  # ridge standardises by itself
                found["ridge_10"] = few_labels_right(x, known, z, truth)
                found["ridge"] = fit_ridge(x, known).predict(z) == truth
            recipes[pool, transform] = vector
            right[pool, transform] = np.mean(list(found.values()), axis=0)
            accuracy = {probe: float(hits.mean()) for probe, hits in found.items()}
            scores.append({"pool": pool, "transform": transform, **accuracy})
    best = max(right, key=lambda name: float(right[name].mean()))
    gain = right[best] - right[own]
    if gain.mean() <= gain.std() / np.sqrt(len(gain)):
        best = own
    images = len(labels[0])
    entry = vector_entry(recipes[best], images, rule=RULE, scores=scores)
    return recipes[best], entry
