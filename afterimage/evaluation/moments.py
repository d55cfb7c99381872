"""Mean and covariance of vectors that come in batches: all that streaming needs."""

import numpy as np
from jaxtyping import Float, Num


class Moments:
    """Count, mean and scatter Σ (x - mean)(x - mean)ᵀ of all vectors added so far.

    In float64, by exact merging: with δ the difference of the means of two sets of n
    and m vectors, scatter = scatter₁ + scatter₂ + δ δᵀ n m / (n + m). The order and the
    sizes of the batches change rounding only. Memory is size² numbers, however many
    vectors there are.
    """

    def __init__(self, size: int):
        self.count = 0
        self.mean = np.zeros(size)
        self.scatter = np.zeros((size, size))

    def add(self, vectors: Num[np.ndarray, "n d"]) -> None:
        """`vectors` [n, size] more; none at all is allowed."""
        if not len(vectors):
            return
        x = np.asarray(vectors, np.float64)
        mean = x.mean(axis=0)
        x = x - mean
        self._merge(len(x), mean, x.T @ x)

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets together."""
        both = Moments(len(self.mean))
        for one in (self, other):
            if one.count:
                both._merge(one.count, one.mean, one.scatter)
        return both

    def _merge(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total, delta = self.count + count, mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(delta, delta) * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total

    @property
    def deviation(self) -> Float[np.ndarray, " d"]:
        """Standard deviation of each dimension."""
        return np.sqrt(np.diag(self.scatter) / max(self.count, 1))
