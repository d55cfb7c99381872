"""How many dimensions the features really use."""

from typing import Any, cast

import numpy as np
import scipy.linalg
from jaxtyping import Float, Num

from afterimage.errors import UserError
from afterimage.evaluation.checks import Array
from afterimage.evaluation.moments import Moments


def thin_svd(
    x: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, "n r"], Float[np.ndarray, " r"], Float[np.ndarray, "r d"]]:
    """(U, σ, Vᵀ), r = min(n, d), also where NumPy's way gives up.

    LAPACK's divide and conquer was seen to fail on finite features of which some are
    constant; its older QR iteration (gesvd) is slower and does not.
    """
    try:
        u, s, vt = np.linalg.svd(x, full_matrices=False)
    except np.linalg.LinAlgError:
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
            f"the spectrum of features {x.shape} needs at least one vector, all finite."
        )
    return np.linalg.svd(x - x.mean(axis=0), compute_uv=False)


def effective_rank(features: Num[Array, "n d"]) -> float:
    """exp(-Σ p_i log p_i), p_i = σ_i / Σ σ over the centred features' singular values.

    Between 1 (one direction) and min(n, d) (all alike); 0 if all vectors are equal (Roy
    & Vetterli 2007). RankMe (Garrido et al. 2023) does not centre: features with a
    large mean then score near 1, so the two figures cannot be compared.
    """
    return _entropy_rank(singular_values(features), _noise(features))


def collapsed_dimensions(features: Num[Array, "n d"], *, below: float = 1e-3) -> int:
    """How many feature dimensions vary less than `below` times the most varied one.

    Such a dimension (a dead channel, say) tells images apart no more. All d if every
    vector is equal.
    """
    deviation = np.asarray(features, np.float64).std(axis=0)
    if not np.isfinite(deviation).all():
        raise UserError("collapsed_dimensions needs at least one vector, all finite.")
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
    """Deviations below this are float32 rounding of equal values."""
    return 1e-6 * float(np.abs(np.asarray(features)).max())
