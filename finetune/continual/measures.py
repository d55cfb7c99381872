"""What a sequence of tasks was worth, from the accuracies after each of them."""

from typing import Any

import numpy as np
from jaxtyping import Float


def continual_measures(
    accuracy: Float[np.ndarray, "t t"],
    before: Float[np.ndarray, " t"] | None,
) -> dict[str, float | None]:
    """Average accuracy, forgetting and forward transfer of R[i, j], in [0, 1].

    R[i, j] is the test accuracy on task j after learning task i, T tasks:

        average_accuracy   ACC = (1/T) Σ_j R[T, j]
        backward_transfer  BWT = (1/(T − 1)) Σ_{j<T} (R[T, j] − R[j, j])
        forgetting         −BWT
        forward_transfer   FWT = (1/(T − 1)) Σ_{j>1} (R[j − 1, j] − b_j)

    with `before` = b the accuracy before the first step (Lopez-Paz & Ranzato 2017,
    "Gradient episodic memory"; the same sums as `confusion_matrix` in their
    metrics/metrics.py, which divides by T). Rows that were not measured (NaN: joint
    training has only the last) make what needs them None; so does `before=None`.
    """
    count = len(accuracy)

    def known(value: Any) -> float | None:
        return None if np.isnan(value) else float(value)

    last, own = accuracy[-1], np.diag(accuracy)
    backward = known(np.mean(last[:-1] - own[:-1]))
    forward = None
    if before is not None:
        early = accuracy[np.arange(count - 1), np.arange(1, count)]
        forward = known(np.mean(early - before[1:]))
    return {
        "average_accuracy": known(np.mean(last)),
        "backward_transfer": backward,
        "forgetting": None if backward is None else -backward,
        "forward_transfer": forward,
    }
