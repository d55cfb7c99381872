"""How good features are, judged without labels: decay, spread, agreement of views."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Num

from afterimage.errors import UserError
from afterimage.evaluation.probes import Array, unit_rows
from afterimage.evaluation.spectrum import effective_rank, singular_values

NEIGHBOURS = 10
"""Neighbours that two views of an image are compared by."""
_FIRST, _LAST = 3, 100  # directions that the decay is fitted to
_MOST_PAIRS = 2_000


def spectral_decay(features: Num[Array, "n d"]) -> float:
    """α of the power law λ_j ∝ j^-α of the centred features' variances, α-ReQ.

    The slope of log λ_j on log j, least squares over j = 3 … 100, as far as there are
    such directions with a variance above rounding error; each j has the weight 1/j, so
    that every octave counts alike. Near 1 for features that transfer well; above, few
    directions carry everything; below, noise fills many (Agrawal et al. 2022,
    arXiv:2202.05808). NaN for fewer than two directions.

    Raises UserError for no features or values that are not finite.
    """
    energy = singular_values(features) ** 2
    ranks = np.arange(1, len(energy) + 1)
    used = (ranks >= _FIRST) & (ranks <= _LAST) & (energy > 1e-12 * energy[0])
    if used.sum() < 2:
        return float("nan")
    x, y, weight = np.log(ranks[used]), np.log(energy[used]), 1 / ranks[used]
    x = x - np.average(x, weights=weight)
    return float(-np.sum(weight * x * y) / np.sum(weight * x * x))


def alignment(first: Num[Array, "n d"], second: Num[Array, "_n _d"]) -> float:
    """Mean squared distance of two views' unit vectors, in [0, 4]; 0 if they are equal.

    E ‖f(x) - f(x⁺)‖² (Wang & Isola 2020, arXiv:2005.10242). Row i of both is the same
    image. A low value is no merit by itself: constant features have it.
    """
    a, b = _pair(first, second)
    return float(np.sum((a - b) ** 2, axis=1).mean())


def uniformity(features: Num[Array, "n d"]) -> float:
    """log E exp(-2 ‖f(x) - f(y)‖²) over pairs of images, in [-8, 0]; low is spread out.

    The vectors are scaled to length 1 (Wang & Isola 2020). Of more than 2,000 images
    the first are taken.
    """
    unit = unit_rows(np.asarray(features)[:_MOST_PAIRS])
    if len(unit) < 2:
        raise UserError("uniformity needs at least two images.")
    squared = np.maximum(2 - 2 * (unit @ unit.T).astype(np.float64), 0)
    pairs = squared[np.triu_indices(len(unit), 1)]
    return float(np.log(np.exp(-2 * pairs).mean()))


def neighbour_agreement(
    first: Num[Array, "n d"], second: Num[Array, "_n _d"], *, k: int = NEIGHBOURS
) -> float:
    """Share of the k nearest images that two views of an image have in common, [0, 1].

    Neighbours by cosine, each among the other images of its own view. Chance is
    k / (n - 1).
    """
    views = _pair(first, second)
    count = len(views[0])
    if count < 3:
        raise UserError("neighbour_agreement needs at least three images.")
    k = min(k, count - 2)
    a, b = (_nearest(view, k) for view in views)
    return float(np.mean([np.isin(x, y).mean() for x, y in zip(a, b)]))


def own_view_retrieval(first: Num[Array, "n d"], second: Num[Array, "_n _d"]) -> float:
    """Share of images, [0, 1], whose nearest vector in the other view is their own."""
    a, b = _pair(first, second)
    return float(np.mean(np.argmax(a @ b.T, axis=1) == np.arange(len(a))))


CRITERIA: Mapping[str, Callable[[Array, Array, Array], float]] = {
    "effective rank": lambda plain, a, b: effective_rank(plain),
    "α-ReQ, -|α - 1|": lambda plain, a, b: -abs(spectral_decay(plain) - 1),
    "alignment": lambda plain, a, b: -alignment(a, b),
    "uniformity": lambda plain, a, b: -uniformity(plain),
    "alignment + uniformity": lambda plain, a, b: -alignment(a, b) - uniformity(plain),
    "neighbour agreement": lambda plain, a, b: neighbour_agreement(a, b),
    "own view": lambda plain, a, b: own_view_retrieval(a, b),
}
"""{name: score of the features of (images, one view of them, another)}; more is better,
by the argument of its source."""


DEFAULT_CRITERION = "own view"
"""The one to choose by: of all, it ranked encoders most as labels did
(docs/design/recipe.md)."""


def label_free_report(
    plain: Num[Array, "n d"], first: Num[Array, "n d"], second: Num[Array, "n d"]
) -> dict[str, float]:
    """Every criterion of `CRITERIA`: features of images, and of two views of each."""
    return {name: score(plain, first, second) for name, score in CRITERIA.items()}


def _pair(
    first: Num[Array, "n d"], second: Num[Array, "_n _d"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape or not len(a):
        raise UserError(
            f"two views with features {a.shape} and {b.shape}; expected one vector of "
            "each view for every image."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("the features of two views must be finite.")
    return unit_rows(a), unit_rows(b)


def _nearest(unit: Float[np.ndarray, "n d"], k: int) -> np.ndarray:
    """The k nearest other rows of each row, in no order."""
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argpartition(similarity, -k, axis=1)[:, -k:]
