"""The linear probe: multinomial logistic regression by L-BFGS, C cross-validated."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer, Num

from afterimage.errors import UserError
from afterimage.evaluation.probes import (
    Array,
    LinearProbe,
    check_labelled,
    principal,
    usable_scale,
)

STRENGTHS = tuple(10.0**p for p in range(-4, 3))
"""C, the inverse strength of the penalty, from very strong to almost none."""
DEFAULT_STRENGTH = 1.0
"""C if there are too few labels to hold any out."""
_TOLERANCE, _MOST_ITERATIONS = 1e-4, 200
_PRECISION, _MOST_ROUNDS, _ROWS = 1e-3, 50, 4096


def fit_logistic(
    features: Num[Array, "n d"],
    labels: Integer[Array, " _n"],
    *,
    folds: Integer[np.ndarray, " _n"] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    moments: tuple[np.ndarray, np.ndarray] | None = None,
) -> LinearProbe:
    """Logistic regression on standardised features, C chosen on held-out folds.

    Minimises Σ_i cross-entropy_i + ‖W‖² / (2 C); the intercept is free. Each fold f ≥ 0
    in turn is held out of a fit to the others (examples of fold -1 never are). The C
    with the highest accuracy wins; ties go to the lowest cross-entropy, then to the
    smallest C. The winner is fitted again to all examples. Strengths are tried from the
    smallest up, until one is worse than the best in both measures: the weakest
    penalties are the slowest to fit. Without folds C is `DEFAULT_STRENGTH`, or the only
    one of `strengths`. `moments` is (mean, deviation) to standardise by; default: those
    of `features`.

    L-BFGS starts each C from the solution of the one before. It works along the
    principal directions, each scaled by its initial curvature; with fewer examples than
    dimensions, it works in the examples' span, which contains the solution. It uses
    float32, with objective and sums in float64; the selected solution is then refined
    in float64 to about a ten-thousandth of the lowest objective.

    Raises UserError for an empty set, values that are not finite, unlabelled examples,
    or strengths that are not positive.
    """
    if not strengths or min(strengths) <= 0:
        raise UserError(
            f"strengths={strengths}: give at least one, each greater than 0."
        )
    strengths = sorted(strengths)
    labels = check_labelled("train", features, labels)
    x = np.asarray(features, np.float32)
    mean, deviation = moments or (x.mean(0, np.float64), x.std(0, dtype=np.float64))
    scale = usable_scale(np.asarray(mean), np.asarray(deviation))
    x = (x - mean.astype(np.float32)) / scale.astype(np.float32)
    if x.shape[0] < x.shape[1]:
        energy, x, basis = principal(x)
    else:  # all directions: with this many rows, none is surely below rounding error
        energy, basis = np.linalg.eigh(x.T @ x)
        x = x @ basis
    solution, chosen = _choose(x, np.maximum(energy, 0), labels, folds, strengths)
    solution = _polished(x, labels, chosen, solution)
    weights = basis @ solution[:-1]
    return LinearProbe(
        np.asarray(mean, np.float64),
        scale,
        np.asarray(weights, np.float64),
        solution[-1],
        chosen,
    )


def _choose(x, energy, labels, folds, strengths) -> tuple[np.ndarray, float]:
    """([weights; intercept] of the fit to all examples, its C)."""
    count = 0 if folds is None else int(folds.max()) + 1
    if not count and len(strengths) > 1:
        nearest = min(strengths, key=lambda s: abs(np.log(s / DEFAULT_STRENGTH)))
        strengths = [nearest]
    # The problems are solved together: one without each fold, then the full one.
    held = np.stack([folds == f for f in range(count)] + [labels < 0], axis=1)
    best = (-1.0, 0.0), x[:0], 0.0
    for strength, solution in zip(
        strengths, _path(x, energy, labels, held, strengths), strict=True
    ):
        score = _validation(x, labels, held[:, :-1], solution)
        if score > best[0]:
            best = score, solution[-1], strength
        elif score[0] < best[0][0] and score[1] < best[0][1]:
            break  # worse in only one of them may be chance
    return best[1:]


def _validation(x, labels, held, solution) -> tuple[float, float]:
    """(number of correct held-out examples, minus their cross-entropy)."""
    right = log_likelihood = 0.0
    for fold, rows in enumerate(held.T):
        weights = solution[fold].astype(np.float32)
        logits = x[rows] @ weights[:-1] + weights[-1]
        logits -= logits.max(axis=1, keepdims=True)
        right += float(np.sum(logits.argmax(axis=1) == labels[rows]))
        own = np.take_along_axis(logits, labels[rows][:, None], axis=1)[:, 0]
        log_likelihood += float(np.sum(own - np.log(np.exp(logits).sum(axis=1))))
    return right, log_likelihood


def _path(
    x: Float[np.ndarray, "n d"],
    energy: Float[np.ndarray, " d"],
    labels: Integer[np.ndarray, " n"],
    held: Bool[np.ndarray, "n problems"],
    strengths: Sequence[float],
) -> Iterator[Float[np.ndarray, "problems d_and_1 classes"]]:
    """Solutions [weights; intercept] for each C, each starting from the last.

    `energy` is diag(xᵀ x). Problem p is fitted to the examples that `held[:, p]` does
    not hold out. The sum of all problems is minimised; they do not affect each other.
    L-BFGS works on variables with a curvature near 1 at zero weights, where all classes
    are equally likely: it then needs a fraction of the steps.
    """
    from scipy.optimize import minimize

    (n, d), problems, classes = x.shape, held.shape[1], int(labels.max()) + 1
    fitted = np.sum(~held, axis=0)
    # The mean over examples, so that the tolerance does not depend on their number.
    share = (~held / fitted).T.astype(np.float32)
    own = labels, np.arange(problems)[:, None], np.arange(n)

    def objective(flat, strength, unit) -> tuple[float, np.ndarray]:
        # Examples are the last axis: NumPy then reduces over classes at full width.
        solution = flat.reshape(classes, problems, d + 1) * unit
        narrow = solution.reshape(-1, d + 1).astype(np.float32)
        logits = narrow[:, :-1] @ x.T + narrow[:, -1:]
        logits = logits.reshape(classes, problems, n)
        logits -= logits.max(axis=0, keepdims=True)
        loss = -logits[own]
        slope = np.exp(logits, out=logits)
        total = slope.sum(axis=0)
        loss += np.log(total)
        slope *= (share / total)[None]
        slope[own] -= share
        pull = solution[..., :-1] / (strength * fitted)[None, :, None]
        gradient = np.empty(solution.shape)
        gradient[..., :-1] = (slope.reshape(-1, n) @ x).reshape(pull.shape) + pull
        gradient[..., -1] = slope.sum(axis=2)
        value = np.sum(loss * share, dtype=np.float64)
        value += np.sum(solution[..., :-1] * pull) / 2
        return value, (gradient * unit).reshape(-1)

    solution = np.zeros((classes, problems, d + 1))
    for strength in strengths:
        curvature = np.append(energy / classes + 1 / strength, n / classes) / n
        unit = 1 / np.sqrt(curvature)
        flat = minimize(
            objective,
            (solution / unit).reshape(-1),
            args=(strength, unit),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _MOST_ITERATIONS, "gtol": _TOLERANCE, "ftol": 1e-9},
        ).x
        solution = flat.reshape(classes, problems, d + 1) * unit
        yield solution.transpose(1, 2, 0)


def _polished(
    x: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, " n"],
    strength: float,
    solution: Float[np.ndarray, "d_and_1 classes"],
) -> Float[np.ndarray, "d_and_1 classes"]:
    """The minimum, from a solution near it.

    If a weak penalty lets the classes be separated, the objective shrinks to a
    thousandth of its initial value and its curvature changes. So the objective is
    divided by its magnitude here, and each variable is scaled to a curvature near 1.
    """
    from scipy.optimize import minimize

    def objective(flat, unit, size) -> tuple[float, np.ndarray]:
        solution = flat.reshape(unit.shape) * unit
        value, gradient, _ = _objective(x, labels, strength, solution)
        return value / size, (gradient * unit).reshape(-1) / size

    for _ in range(_MOST_ROUNDS):
        before, _, curvature = _objective(x, labels, strength, solution)
        unit = 1 / np.sqrt(curvature / before + 1e-12)
        found = minimize(
            objective,
            (solution / unit).reshape(-1),
            args=(unit, before),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 200, "maxcor": 20, "ftol": 1e-6, "gtol": 1e-7},
        )
        solution = found.x.reshape(unit.shape) * unit
        if found.fun >= 1 - _PRECISION:
            break
    return solution


def _objective(
    x: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, " n"],
    strength: float,
    solution: Float[np.ndarray, "d_and_1 classes"],
) -> tuple[float, np.ndarray, np.ndarray]:
    """(value, gradient, diagonal curvature), in float64, a block of rows at a time, so
    that features need no float64 copy."""
    weights = solution[:-1]
    value = np.sum(weights**2) / (2 * strength)
    gradient, curvature = np.zeros(solution.shape), np.zeros(solution.shape)
    gradient[:-1], curvature[:-1] = weights / strength, 1 / strength
    for first in range(0, len(x), _ROWS):
        rows = x[first : first + _ROWS].astype(np.float64)
        each = np.arange(len(rows))
        own = each, labels[first : first + _ROWS]
        logits = rows @ weights + solution[-1]
        logits -= logits[own][:, None]
        best = each, logits.argmax(axis=1)
        top = logits[best]
        p = np.exp(logits - top[:, None])
        # Handle the largest term separately, so that a tiny rest keeps its digits.
        p[best] = 0
        rest = p.sum(axis=1)
        p[best] = 1
        value += np.sum(top + np.log1p(rest))
        p /= (1 + rest)[:, None]
        spread = p * (1 - p)
        p[own] -= 1
        gradient += np.vstack([rows.T @ p, p.sum(axis=0)])
        curvature += np.vstack([(rows**2).T @ spread, spread.sum(axis=0)])
    return float(value), gradient, curvature
