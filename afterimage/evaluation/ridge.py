"""The ridge probe: a linear classifier in closed form, its penalty chosen on train."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, Num

from afterimage.errors import UserError
from afterimage.evaluation.checks import Array, check_labelled
from afterimage.evaluation.linear import LinearProbe, principal, usable_scale
from afterimage.evaluation.moments import Moments

# Per training example, on standardised features: from almost none to crushing.
PENALTIES = tuple(10.0**p for p in range(-6, 2))


def fit_ridge(
    features: Num[Array, "n d"],
    labels: Integer[Array, " _n"],
    *,
    penalties: Sequence[float] = PENALTIES,
) -> LinearProbe:
    """Least squares on one-hot targets with an L2 penalty, exactly.

    Minimises ‖X W + b - Y‖² + λ n ‖W‖² over features standardised by the training
    set's mean and deviation (a constant feature is only centred). λ is the one of
    `penalties` with the least squared leave-one-out error, also in closed form: with
    the hat matrix H the residual without example i is r_i / (1 - H_ii). No validation
    data is used. In float64; costs one eigendecomposition of the smaller of X Xᵀ, XᵀX.

    Raises UserError for an empty set, values that are not finite, unlabelled examples,
    or penalties that are not positive.
    """
    _check(penalties)
    labels = check_labelled("train", features, labels)
    x = np.asarray(features, np.float64)
    y = np.eye(int(labels.max()) + 1)[labels]
    mean = x.mean(axis=0)
    scale = usable_scale(mean, x.std(axis=0))
    intercept = y.mean(axis=0)
    energy, z, basis = principal(np.subtract(x, mean) / scale)
    targets = y - intercept
    projected = z.T @ targets
    errors = [_left_out(energy, z, projected, targets, p) for p in penalties]
    best = penalties[int(np.argmin(errors))]
    weights = basis @ (projected / (energy + best * len(x))[:, None])
    return LinearProbe(mean, scale, weights, intercept, best)


def _left_out(energy, z, projected, targets, penalty) -> float:
    """Sum of squared leave-one-out residuals; the intercept's leverage is 1/n."""
    shrunk = z / (energy + penalty * len(z))
    leverage = np.einsum("nr,nr->n", shrunk, z) + 1 / len(z)
    # Leverage 1 (a single example) leaves nothing to predict it from.
    free = np.maximum(1 - leverage, np.finfo(z.dtype).eps)
    return float((((targets - shrunk @ projected) / free[:, None]) ** 2).sum())


class StreamedRidge:
    """The same probe from moments alone, for data that never is in memory together.

    `moments` are of [features, one-hot labels] side by side: they hold the normal
    equations, which are solved by a Cholesky factorisation for each penalty.
    """

    def __init__(self, moments: Moments, classes: int):
        d = len(moments.mean) - classes
        self._count = moments.count
        self._mean, self._intercept = moments.mean[:d], moments.mean[d:]
        self._scale = usable_scale(self._mean, moments.deviation[:d])
        self._normal = moments.scatter[:d, :d] / np.outer(self._scale, self._scale)
        self._targets = moments.scatter[:d, d:] / self._scale[:, None]

    def probe(self, penalty: float) -> LinearProbe:
        """The minimiser for λ = `penalty`, as `fit_ridge` defines it."""
        from scipy.linalg import cho_factor, cho_solve

        shifted = self._normal + penalty * self._count * np.eye(len(self._mean))
        weights = cho_solve(cho_factor(shifted, overwrite_a=True), self._targets)
        return LinearProbe(self._mean, self._scale, weights, self._intercept, penalty)

    def choose(
        self, held: Moments, *, penalties: Sequence[float] = PENALTIES
    ) -> LinearProbe:
        """The probe with the least squared error on the examples of `held`."""
        _check(penalties)
        probes = [self.probe(penalty) for penalty in penalties]
        return min(probes, key=lambda probe: _squared_error(probe, held))


def _squared_error(probe: LinearProbe, moments: Moments) -> float:
    """Σ ‖scores - one-hot‖² over the examples that the moments are of."""
    weights = probe.weights / probe.scale[:, None]
    residual = np.concatenate([weights, -np.eye(weights.shape[1])])
    constant = probe.intercept - probe.mean @ weights
    centre = moments.mean @ residual + constant
    spread = np.sum((moments.scatter @ residual) * residual)
    return float(spread + moments.count * np.sum(centre**2))


def _check(penalties: Sequence[float]) -> None:
    if not penalties or min(penalties) <= 0:
        raise UserError(f"penalties={penalties}: give at least one, each > 0.")


def ridge_accuracy(
    train_features: Num[Array, "n d"],
    train_labels: Integer[Array, " _n"],
    features: Num[Array, "m _d"],
    labels: Integer[Array, " _m"],
) -> float:
    """Share of `features` in [0, 1] that a probe fitted on train classifies right."""
    labels = check_labelled("validation", features, labels)
    probe = fit_ridge(train_features, train_labels)
    return float(np.mean(probe.predict(features) == labels))
