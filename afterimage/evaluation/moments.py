"""Mean and covariance of vectors that come in batches: all that streaming needs."""

import numpy as np
from jaxtyping import Float, Num


class Moments:
    """Count, mean and scatter Σ (x - mean)(x - mean)ᵀ of all vectors added so far.

    In float64, by exact merging: with δ the difference of the means of two sets of n
    and m vectors, scatter = scatter₁ + scatter₂ + δ δᵀ n m / (n + m). The order and the
    sizes of the batches change rounding only. Memory is a few times size² numbers,
    however many vectors there are.
    """

    def __init__(self, size: int):
        self._size, self._count = size, 0
        self._mean, self._scatter = np.zeros(size), np.zeros((size, size))
        # Vectors to be merged together: a merge passes over size² numbers, and of wide
        # vectors a batch is few.
        self._waiting: list[np.ndarray] = []

    def add(self, vectors: Num[np.ndarray, "n d"]) -> None:
        """`vectors` [n, size] more; none at all is allowed. They are kept as given."""
        if len(vectors):
            self._waiting.append(vectors)
        if sum(map(len, self._waiting)) >= self._size:
            self._settle()

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets together."""
        both = Moments(self._size)
        for one in (self, other):
            if one.count:
                both._merge(one.count, one.mean, one.scatter)
        return both

    def _settle(self) -> None:
        if not self._waiting:
            return
        x = np.concatenate(self._waiting).astype(np.float64)
        self._waiting = []
        mean = x.mean(axis=0)
        x -= mean
        self._merge(len(x), mean, x.T @ x)

    def _merge(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total, delta = self._count + count, mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(delta, delta) * (self._count * count / total)
        self._mean += delta * (count / total)
        self._count = total

    @property
    def count(self) -> int:
        """Vectors so far."""
        self._settle()
        return self._count

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """Their mean."""
        self._settle()
        return self._mean

    @property
    def scatter(self) -> Float[np.ndarray, "d d"]:
        """The sum of the outer products of their differences from it."""
        self._settle()
        return self._scatter

    @property
    def deviation(self) -> Float[np.ndarray, " d"]:
        """Standard deviation of each dimension."""
        return np.sqrt(np.diag(self.scatter) / max(self.count, 1))
