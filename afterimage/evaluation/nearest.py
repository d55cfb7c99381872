"""Nearest vectors by cosine: exact, in blocks of one matrix product each."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from afterimage.evaluation.probes import unit_rows

_BLOCK = 2**26
"""Similarities held at once, 256 MiB of float32."""
_GROUP = 512
NEIGHBOUR = 5
"""A distance to training images is that to the fifth nearest: one odd or mislabelled
image among them does not make an image look usual."""
_SHARES = np.linspace(0, 1, 101)


def nearest(
    queries: Float[np.ndarray, "q d"], vectors: Float[np.ndarray, "n d"], count: int
) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
    """(rows, cosines) of the `count` vectors nearest to each query, nearest first.

    Both are unit vectors, as `unit_rows` makes them; `vectors` may be float16, on disk
    or in memory. k = min(count, n).
    """
    count = min(count, len(vectors))
    rows = np.empty((len(queries), 0), np.int64)
    cosines = np.empty((len(queries), 0), np.float32)
    queries = np.asarray(queries, np.float32)
    block = max(1, min(_BLOCK // max(1, len(queries)), _BLOCK // vectors.shape[1]))
    for start in range(0, len(vectors), block):
        part = np.asarray(vectors[start : start + block], np.float32)
        found = queries @ part.T
        most = _largest(found, count)
        rows = np.concatenate([rows, start + most], 1)
        cosines = np.concatenate([cosines, np.take_along_axis(found, most, 1)], 1)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        rows = np.take_along_axis(rows, order, 1)
        cosines = np.take_along_axis(cosines, order, 1)
    return rows, cosines


def _largest(values: Float[np.ndarray, "q n"], count: int) -> Int[np.ndarray, "q k"]:
    """Columns of the `count` largest values of each row, and perhaps some more.

    The largest are in the groups with the largest maxima: one fast pass over all
    values, and a search among few.
    """
    queries, n = values.shape
    groups = n // _GROUP
    if groups <= count:
        every = np.arange(n)
        return np.broadcast_to(every, values.shape)
    top = values[:, : groups * _GROUP].reshape(queries, groups, _GROUP).max(2)
    best = np.argpartition(top, groups - count, axis=1)[:, -count:]
    inside = (best[:, :, None] * _GROUP + np.arange(_GROUP)).reshape(queries, -1)
    rest = np.broadcast_to(np.arange(groups * _GROUP, n), (queries, n % _GROUP))
    inside = np.concatenate([inside, rest], 1)
    found = np.take_along_axis(values, inside, 1)
    own = np.argpartition(found, found.shape[1] - count, axis=1)[:, -count:]
    return np.sort(np.take_along_axis(inside, own, 1), axis=1)


@dataclasses.dataclass(frozen=True)
class Reference:
    """Features of some training images, and how far usual images are from them.

    The distance of an image is 1 − cos to its fifth nearest training image, in [0, 2]
    (`distance`). Its rank is the share of usual images that are nearer, in [0, 1]:
    above 0.99 the image is unlike nearly all of them.
    """

    vectors: Float[np.ndarray, "m d"]
    """Unit vectors."""
    usual: Float[np.ndarray, " 101"]
    """Quantiles 0, 0.01, … 1 of the distances of usual images."""

    @classmethod
    def measure(
        cls,
        features: Float[np.ndarray, "m d"],
        held: Float[np.ndarray, "h d"] | None = None,
    ) -> "Reference":
        """Of training images; usual are the `held` ones, not trained on, if given.

        Otherwise usual are the training images, each without itself. A network knows
        the images it was trained on, so they are nearer to each other than new ones.
        """
        vectors = unit_rows(features).astype(np.float16)
        if held is None:
            _, cosines = nearest(unit_rows(features), vectors, NEIGHBOUR + 1)
            distances = 1 - cosines[:, -1]  # the first is the image itself
        else:
            distances = cls(vectors, _SHARES).distance(held)
        return cls(vectors, np.quantile(distances, _SHARES).astype(np.float32))

    def distance(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """1 − cos to the fifth nearest training image."""
        _, cosines = nearest(unit_rows(features), self.vectors, NEIGHBOUR)
        return np.clip(1 - cosines[:, -1], 0, 2)

    def rank(self, distances: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The share of usual images with a smaller distance."""
        return np.interp(distances, self.usual, _SHARES)
