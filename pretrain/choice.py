"""The feature vector of a finished run: chosen among candidates by labelled images.

Candidates are three poolings (mean, 2x2 grid, 2x2 grids of all maps), each plain,
standardised and whitened; and the objective's own pooling joined with a dictionary of
patches, without HOG and with it, standardised. The last is the default. The statistics
are of training images. The score is the mean of three accuracies on held-out images:
kNN, and a linear probe (ridge) with ten labels a class and with all. The default is
kept unless the best is ahead of it by more than one standard error of their difference,
paired over images (Breiman et al. 1984, the one-standard-error rule).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from afterimage.encoder import vector_entry
from afterimage.evaluation import fit_ridge, knn_predict
from afterimage.evaluation.probes import few_labels_right
from afterimage.models.dictionary import PatchDictionary
from afterimage.models.vector import TRANSFORMS, Parts, VectorRecipe, moments_of
from afterimage.training.batches import spaced

RULE = (
    "highest mean of kNN and linear probes with ten labels a class and with all, on "
    "held-out images; the default unless another is ahead by more than one standard "
    "error"
)
DECLARED = "the default: there were no labels to choose by"
_PROBES = ("knn", "ridge_10", "ridge")
_MOST = 2000

Pooled = Mapping[str, Float[np.ndarray, "_n _d"]]
Labels = Integer[np.ndarray, " _n"]


@dataclasses.dataclass(frozen=True)
class Joined:
    """What is joined to the pooled maps: of training images, and of held-out ones."""

    dictionary: PatchDictionary
    train: Parts
    held: Parts | None = None

    def to(
        self, pool: str, pooled: Float[np.ndarray, "_n _p"], *, hog: bool = True
    ) -> VectorRecipe:
        """The pooled maps of the training images with the patches and HOG, the default
        vector; or with the patches alone."""
        plain = VectorRecipe(pool, dictionary=self.dictionary, hog=hog)
        moments = moments_of(plain.joined(pooled, self.train))
        return VectorRecipe.fit(pool, "standardise", moments, self.dictionary, hog=hog)


def declared(
    own: tuple[str, str], pooled: Pooled, joined: Joined | None
) -> tuple[VectorRecipe, dict[str, Any]]:
    """(the default vector, its manifest entry), fitted to training images."""
    pool, transform = own
    if joined is None:
        vector = VectorRecipe.fit(pool, transform, moments_of(pooled[pool]))
    else:
        vector = joined.to(pool, pooled[pool])
    return vector, vector_entry(vector, len(pooled[pool]), rule=DECLARED)


def choose(
    own: tuple[str, str],
    train: Pooled,
    held: Pooled,
    labels: tuple[Labels, Labels],
    *,
    k: int,
    joined: Joined | None = None,
) -> tuple[VectorRecipe, dict[str, Any]]:
    """(the chosen vector, its manifest entry with the scores of all candidates).

    `train` and `held` map each candidate pooling to the pooled maps of images with
    these labels, and `joined` has the parts of the same images; `own` is the
    objective's (pool, transform). At most 2,000 images of each are scored; statistics
    are of all.
    """
    here, there = (spaced(len(part), _MOST) for part in labels)
    known, truth = labels[0][here], labels[1][there]
    right: dict[str, np.ndarray] = {}
    recipes: dict[str, VectorRecipe] = {}
    scores = []

    def score(vector: VectorRecipe, x: np.ndarray, z: np.ndarray, found: dict) -> None:
        """Adds a candidate; `found` has what other transforms of it have as well."""
        x, z = vector.transformed(x[here]), vector.transformed(z[there])
        found["knn"] = knn_predict(x, known, z, k=k) == truth
        # Ridge standardises by itself.
        if vector.transform != "standardise" or not found.keys() - {"knn"}:
            found["ridge_10"] = few_labels_right(x, known, z, truth)
            found["ridge"] = fit_ridge(x, known).predict(z) == truth
        name = str(vector)
        recipes[name] = vector
        right[name] = np.mean([found[n] for n in _PROBES], axis=0)
        accuracy = {probe: float(found[probe].mean()) for probe in _PROBES}
        kind = vector_entry(vector, len(known))
        scores.append({n: kind[n] for n in kind if n != "images"} | accuracy)

    for pool, pooled in train.items():
        moments, found = moments_of(pooled), {}
        for transform in TRANSFORMS:
            vector = VectorRecipe.fit(pool, transform, moments)
            score(vector, pooled, held[pool], found)
    default = next(n for n, v in recipes.items() if (v.pool, v.transform) == own)
    if joined is not None:
        assert joined.held is not None
        pool = own[0]
        for hog in (False, True):
            vector = joined.to(pool, train[pool], hog=hog)
            default = str(vector)
            x = vector.joined(train[pool], joined.train)
            score(vector, x, vector.joined(held[pool], joined.held), {})
    best = max(right, key=lambda name: float(right[name].mean()))
    gain = right[best] - right[default]
    if gain.mean() <= gain.std() / np.sqrt(len(gain)):
        best = default
    entry = vector_entry(recipes[best], len(labels[0]), rule=RULE, scores=scores)
    return recipes[best], entry
