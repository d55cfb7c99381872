"""Linear centred kernel alignment: how much two layers say the same."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num

from afterimage.errors import UserError
from afterimage.evaluation.checks import Array
from afterimage.evaluation.moments import Moments


def alignment_matrix(
    moments: Moments, sizes: Sequence[int]
) -> Float[np.ndarray, "k k"]:
    """Linear CKA between all pairs of layers, whose vectors were added side by side.

    CKA(X, Y) = ‖XᵀY‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F) over centred columns, in [0, 1]: HSIC with
    linear kernels, normalised (Kornblith et al. 2019, arXiv:1905.00414). 1 for layers
    that differ by a rotation and a scale; 0 where one does not vary at all. `sizes` are
    the layers' dimensions in order.
    """
    edges = np.cumsum([0, *sizes])
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    energy = np.array(
        [[np.sum(moments.scatter[a, b] ** 2) for b in parts] for a in parts]
    )
    size = np.sqrt(np.outer(np.diag(energy), np.diag(energy)))
    # Rounding may leave a hair above 1.
    return np.minimum(energy / np.where(size > 0, size, 1), 1.0)


def linear_cka(x: Num[Array, "n d"], y: Num[Array, "n e"]) -> float:
    """Linear CKA of two sets of vectors of the same images, see `alignment_matrix`.

    Raises UserError for values that are not finite.
    """
    both = np.concatenate([np.asarray(x), np.asarray(y)], axis=1).astype(np.float64)
    if not np.isfinite(both).all():
        raise UserError("CKA needs vectors that are finite.")
    moments = Moments(both.shape[1])
    moments.add(both)
    return float(alignment_matrix(moments, [x.shape[1], y.shape[1]])[0, 1])
