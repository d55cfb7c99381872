"""What linear probes share: the fitted probe, standardising, principal coordinates."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer, Num

from afterimage.evaluation.checks import Array

_WORTH_THREADS = 1_000_000


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: scores = (features - mean) / scale @ weights + intercept."""

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    weights: Float[np.ndarray, "d classes"]
    intercept: Float[np.ndarray, " classes"]
    chosen: float
    """What was chosen: ridge's penalty λ per example, or logistic regression's C."""

    def scores(self, features: Num[Array, "m d"]) -> Float[np.ndarray, "m classes"]:
        """Ridge: regression scores, near 1 for the class. Logistic: logits."""
        features = np.asarray(features)
        # Standardising is folded into the weights, not done to every vector.
        weights = self.weights / self.scale[:, None]
        shift = self.intercept - self.mean @ weights
        return features.astype(np.float64, copy=False) @ weights + shift

    def predict(self, features: Num[Array, "m d"]) -> Integer[np.ndarray, " m"]:
        """Class with the largest score."""
        return np.argmax(self.scores(features), axis=1).astype(np.int32)


@contextlib.contextmanager
def single_thread(size: int) -> Iterator[None]:
    """Linear algebra of `size` numbers on one thread, where more only wait.

    Thousands of products of a few microseconds are 4-8 times slower on two threads, on
    a machine that has other work to do.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1 if size < _WORTH_THREADS else None, user_api="blas"):
        yield


def usable_scale(
    mean: Float[np.ndarray, " d"], deviation: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " d"]:
    """The deviation to divide by: 1 where a dimension is constant.

    A constant column has rounding noise for a deviation; dividing by it would turn
    noise into a feature.
    """
    floor = 1e-7 * (np.abs(mean) + deviation.max(initial=0))
    return np.where(deviation > floor, deviation, 1.0)


def principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies s, coordinates z and basis v with x = z vᵀ, zᵀz = diag(s).

    From the smaller of x xᵀ and xᵀ x.
    """
    wide = x.shape[0] < x.shape[1]
    energy, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    # What is left below this is rounding error of the product.
    keep = energy > energy[-1] * max(x.shape) * np.finfo(x.dtype).eps
    energy, vectors = energy[keep], vectors[:, keep]
    if not wide:
        return energy, x @ vectors, vectors
    size = np.sqrt(energy)
    return energy, vectors * size, x.T @ vectors / size
