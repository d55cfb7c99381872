"""Moments of vectors that arrive in batches; rank, collapsed dimensions, alignment."""

import itertools
from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Float, Num

from afterimage.errors import UserError

Array = np.ndarray | jax.Array


class Moments:
    """Count, mean and scatter Σ (x - mean)(x - mean)ᵀ of all vectors added so far.

    In float64, by exact merging: with δ the difference of the means of two sets of n
    and m vectors, scatter = scatter₁ + scatter₂ + δ δᵀ n m / (n + m). The order and
    sizes of batches affect only rounding. Memory use is a few times size² numbers,
    however many vectors there are.
    """

    def __init__(self, size: int):
        self._size, self._count = size, 0
        self._mean, self._scatter = np.zeros(size), np.zeros((size, size))
        # Vectors waiting to be merged together: each merge passes over size² numbers,
        # and batches of wide vectors are small.
        self._waiting: list[np.ndarray] = []

    def add(self, vectors: Num[np.ndarray, "n d"]) -> None:
        """Add `vectors` [n, size]; n may be 0. They are kept as given, not copied."""
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
        """Number of vectors so far."""
        self._settle()
        return self._count

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """Mean of the vectors."""
        self._settle()
        return self._mean

    @property
    def scatter(self) -> Float[np.ndarray, "d d"]:
        """Sum of outer products of the vectors' differences from the mean."""
        self._settle()
        return self._scatter

    @property
    def deviation(self) -> Float[np.ndarray, " d"]:
        """Standard deviation of each dimension."""
        return np.sqrt(np.diag(self.scatter) / max(self.count, 1))


def thin_svd(
    x: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, "n r"], Float[np.ndarray, " r"], Float[np.ndarray, "r d"]]:
    """(U, σ, Vᵀ), r = min(n, d), even if NumPy's method fails to converge.

    LAPACK's divide and conquer can fail on finite features if some are constant; its
    older QR iteration (gesvd) is slower but does not.
    """
    try:
        u, s, vt = np.linalg.svd(x, full_matrices=False)
    except np.linalg.LinAlgError:
        import scipy.linalg

        u, s, vt = cast(Any, scipy.linalg.svd)(
            x, full_matrices=False, lapack_driver="gesvd"
        )
    return u, s, vt


def singular_values(features: Num[Array, "n d"]) -> Float[np.ndarray, " r"]:
    """Singular values of the centred features, largest first, r = min(n, d).

    Raises UserError for no features or values that are not finite.
    """
    x = np.asarray(features, np.float64)
    if not x.size or not np.isfinite(x).all():
        raise UserError(
            f"features of shape {x.shape} have no spectrum: at least one vector is "
            "needed, all finite."
        )
    return np.linalg.svd(x - x.mean(axis=0), compute_uv=False)


def effective_rank(features: Num[Array, "n d"]) -> float:
    """exp(-Σ p_i log p_i), p_i = σ_i / Σ σ over the centred features' singular values.

    Between 1 (one direction) and min(n, d) (all equal); 0 if all vectors are equal (Roy
    & Vetterli 2007). RankMe (Garrido et al. 2023) does not centre: features with a
    large mean then score near 1, so the two values cannot be compared.
    """
    return _entropy_rank(singular_values(features), _noise(features))


def collapsed_dimensions(features: Num[Array, "n d"], *, below: float = 1e-3) -> int:
    """How many feature dimensions vary less than `below` times the most varied one.

    Such a dimension (a dead channel, say) no longer tells images apart. All d count if
    every vector is equal.
    """
    deviation = np.asarray(features, np.float64).std(axis=0)
    if not np.isfinite(deviation).all():
        raise UserError(
            "features have no collapsed dimensions to count: at least one vector is "
            "needed, all finite."
        )
    return _idle(deviation, _noise(features), below)


def spectrum_report(moments: Moments, size: int) -> dict[str, float]:
    """`effective_rank` and `collapsed` of the first `size` dimensions of moments."""
    energy = np.linalg.eigvalsh(moments.scatter[:size, :size])[::-1]
    deviation, mean = moments.deviation[:size], np.abs(moments.mean[:size])
    noise = 1e-6 * float((mean + deviation).max())
    return {
        "effective_rank": _entropy_rank(np.sqrt(np.maximum(energy, 0)), noise),
        "collapsed": _idle(deviation, noise, 1e-3),
    }


def _entropy_rank(sigma: Float[np.ndarray, " r"], noise: float) -> float:
    if sigma[0] <= noise:
        return 0.0
    p = sigma / sigma.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def _idle(deviation: Float[np.ndarray, " d"], noise: float, below: float) -> int:
    if deviation.max() <= noise:
        return deviation.size
    return int((deviation < below * deviation.max()).sum())


def _noise(features: Num[Array, "n d"]) -> float:
    """Deviations below this are float32 rounding error of equal values."""
    return 1e-6 * float(np.abs(np.asarray(features)).max())


def alignment_matrix(
    moments: Moments, sizes: Sequence[int]
) -> Float[np.ndarray, "k k"]:
    """Linear CKA between all pairs of layers, added to the moments side by side.

    CKA(X, Y) = ‖XᵀY‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F) over centred columns, in [0, 1]: HSIC with
    linear kernels, normalised (Kornblith et al. 2019, arXiv:1905.00414). 1 for layers
    that differ by a rotation and a scale; 0 if one does not vary at all. `sizes` are
    the layers' dimensions in order.
    """
    edges = np.cumsum([0, *sizes])
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    energy = np.array(
        [[np.sum(moments.scatter[a, b] ** 2) for b in parts] for a in parts]
    )
    size = np.sqrt(np.outer(np.diag(energy), np.diag(energy)))
    # Rounding may leave it slightly above 1.
    return np.minimum(energy / np.where(size > 0, size, 1), 1.0)


def linear_cka(x: Num[Array, "n d"], y: Num[Array, "n e"]) -> float:
    """Linear CKA of two sets of vectors of the same images, see `alignment_matrix`.

    Raises UserError for values that are not finite.
    """
    both = np.concatenate([np.asarray(x), np.asarray(y)], axis=1).astype(np.float64)
    if not np.isfinite(both).all():
        raise UserError("CKA needs finite vectors.")
    moments = Moments(both.shape[1])
    moments.add(both)
    return float(alignment_matrix(moments, [x.shape[1], y.shape[1]])[0, 1])
