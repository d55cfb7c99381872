"""Which images to label next, from their feature vectors: active learning's rules."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
from jaxtyping import Float, Int, Num

from afterimage.errors import UserError, did_you_mean
from afterimage.evaluation.configs import Rule
from afterimage.evaluation.nearest import nearest
from afterimage.evaluation.probes import Array, unit_rows

NEEDS_CLASSIFIER = ("margin", "badge")
"""Rules that need class probabilities."""
_MOST_CLUSTERS, _FEWEST_MEMBERS, _NEIGHBOURS = 500, 5, 20  # Hacohen et al., section 3.2
_MANY = 50_000  # vectors from which on k-means works on random batches
_TINY = 1e-6  # a squared distance between unit vectors that is rounding error


def images_to_label(
    features: Num[Array, "n d"],
    count: int,
    *,
    known: Num[Array, "m d"] | None = None,
    probabilities: Float[np.ndarray, "n classes"] | None = None,
    rule: Rule = "typical",
    seed: int = 0,
) -> Int[np.ndarray, " k"]:
    """Rows of the images to label next, the most useful first; k = min(count, n).

    Distances are those of the vectors scaled to length 1. `known` are the vectors of
    images that have a label: what they cover is not chosen again.

    - `typical` (TypiClust, Hacohen et al. 2022): k-means with m + count clusters; from
      the largest clusters without a label, the image nearest to its 20 neighbours.
    - `k-center` (Core-Set, Sener and Savarese 2018): the image farthest from all that
      are known or chosen, again and again.
    - `k-means++`: the same, drawn with a probability that grows with the squared
      distance.
    - `margin`: where the two most probable classes are nearest to each other.
    - `badge` (Ash et al. 2020): k-means++ on the gradient of the loss with respect to
      the last layer, as if the predicted class were right: far apart and uncertain.
    - `random`.

    `margin` and `badge` need the `probabilities` of a classifier. Raises UserError for
    an unknown rule, a count below 1, or vectors that are not finite or do not fit.
    """
    if rule not in get_args(Rule):
        known_rules = ", ".join(get_args(Rule))
        raise UserError(
            f"rule={rule!r}: must be one of {known_rules}{did_you_mean(rule, RULES)}"
        )
    if count < 1:
        raise UserError(f"count={count}: must be at least 1")
    if rule in NEEDS_CLASSIFIER and probabilities is None:
        raise UserError(f"rule={rule!r}: needs the probabilities of a classifier")
    x = np.asarray(features)
    covered = x[:0] if known is None else np.asarray(known)
    if x.ndim != 2 or covered.shape[1:] != x.shape[1:]:
        raise UserError(
            f"features of shape {x.shape} and known of shape {covered.shape}: must be "
            "[n, d] and [m, d]"
        )
    if not (np.isfinite(x).all() and np.isfinite(covered).all()):
        raise UserError("features: some vectors are not finite")
    count = min(count, len(x))
    rng = np.random.default_rng(seed)
    return RULES[rule](unit_rows(x), count, unit_rows(covered), probabilities, rng)


def _random(x, count, known, probabilities, rng) -> np.ndarray:
    return rng.permutation(len(x))[:count]


def _margin(x, count, known, probabilities, rng) -> np.ndarray:
    return np.argsort(margins(probabilities), kind="stable")[:count]


def margins(probabilities: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, " n"]:
    """The highest probability of each row less the second highest."""
    top = np.partition(probabilities, -2, axis=1)[:, -2:]
    return top[:, 1] - top[:, 0]


def _k_center(x, count, known, probabilities, rng) -> np.ndarray:
    return _apart(x, count, known, lambda away: int(np.argmax(away)))


def _k_means(x, count, known, probabilities, rng) -> np.ndarray:
    return _apart(x, count, known, lambda away: _drawn(away, rng))


def _drawn(away: np.ndarray, rng: np.random.Generator) -> int:
    """A row, with a probability in proportion to its squared distance."""
    total = away.sum()
    if not total > 0:
        return int(rng.integers(len(away)))
    return int(rng.choice(len(away), p=away / total))


def _apart(x, count, known, pick: Callable[[np.ndarray], int]) -> np.ndarray:
    """`pick` one at a time by the squared distance to all that are known or chosen.

    Without a known image the first is the one nearest to the mean.
    """

    def chosen_next(row: int) -> np.ndarray:
        return np.maximum(2 - 2 * (x @ x[row]), 0)

    if len(known):
        away = np.maximum(2 - 2 * nearest(x, known, 1)[1][:, 0], 0)
        chosen = [pick(away)]
    else:
        away = np.full(len(x), np.inf)
        chosen = [int(np.argmax(x @ x.mean(0)))]
    return _go_on(away, chosen, chosen_next, count, pick)


def _go_on(away, chosen, distance, count, pick) -> np.ndarray:
    """Continues from the rows `chosen` until there are `count`."""
    for row in chosen:
        away = np.minimum(away, distance(row))
    free = np.ones(len(away), bool)
    free[chosen] = False
    while len(chosen) < count:
        left = np.flatnonzero(free)
        row = int(left[pick(away[left].astype(np.float64))])
        chosen.append(row)
        free[row] = False
        away = np.minimum(away, distance(row))
    return np.array(chosen)


def _badge(x, count, known, probabilities, rng) -> np.ndarray:
    """Distances between p ⊗ x, from those of p and x: they are never computed."""
    residual = np.asarray(probabilities, np.float32).copy()
    residual[np.arange(len(x)), residual.argmax(1)] -= 1
    size = (residual**2).sum(1)  # times |x|² = 1

    def distance(row: int) -> np.ndarray:
        product = (residual @ residual[row]) * (x @ x[row])
        return np.maximum(size + size[row] - 2 * product, 0)

    def pick(away: np.ndarray) -> int:
        return _drawn(away, rng)

    first = [int(size.argmax())]
    return _go_on(np.full(len(x), np.inf), first, distance, count, pick)


def _typical(x, count, known, probabilities, rng) -> np.ndarray:
    groups = _clusters(np.concatenate([x, known]), count + len(known), rng)
    own, covered = groups[: len(x)], groups[len(x) :]
    total = int(groups.max()) + 1
    labels = np.bincount(covered, minlength=total)
    members = {group: np.flatnonzero(own == group) for group in range(total)}
    members = {group: rows for group, rows in members.items() if len(rows)}
    queues: dict[int, list[int]] = {}
    chosen: list[int] = []

    def place(group: int) -> tuple[bool, int, int]:
        size = len(members[group])
        return size < _FEWEST_MEMBERS, int(labels[group]), -size

    while len(chosen) < count:
        group = min(members, key=place)
        if group not in queues:
            queues[group] = list(members[group][_by_density(x[members[group]])])
        chosen.append(int(queues[group].pop(0)))
        labels[group] += 1
        if not queues[group]:
            del members[group]
    return np.array(chosen)


def _clusters(x, count: int, rng: np.random.Generator) -> np.ndarray:
    """The cluster of each vector, by k-means."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    count = min(count, _MOST_CLUSTERS, len(np.unique(x, axis=0)))
    how: Any = {"n_init": 1, "random_state": int(rng.integers(2**31))}
    if len(x) > _MANY:
        return MiniBatchKMeans(count, batch_size=4096, **how).fit_predict(x)
    return KMeans(count, **how).fit_predict(x)


def _by_density(x: Float[np.ndarray, "n d"]) -> np.ndarray:
    """Rows by their mean distance to their 20 nearest, the densest place first."""
    cosines = nearest(x, x, _NEIGHBOURS + 1)[1][:, 1:]  # the first is the row itself
    if not cosines.shape[1]:
        return np.zeros(len(x), np.int64)
    away = np.sqrt(np.maximum(2 - 2 * cosines, 0)).mean(1)
    return np.argsort(away, kind="stable")


RULES: dict[str, Callable[..., np.ndarray]] = {
    "typical": _typical,
    "k-center": _k_center,
    "k-means++": _k_means,
    "margin": _margin,
    "badge": _badge,
    "random": _random,
}
