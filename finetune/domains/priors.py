"""Label shift: the classes are as before, only their frequencies differ.

p_target(x | y) = p_source(x | y). From a classifier of the source and its predictions
on unlabelled target examples the target's class frequencies q follow, and with them
the corrected classifier p(y | x) ∝ p_source(y | x) · q_y / p_y.
"""

import numpy as np
from jaxtyping import Float, Int

from afterimage.errors import DataError

Probabilities = Float[np.ndarray, "_n c"]
Frequencies = Float[np.ndarray, " c"]


def frequencies(labels: Int[np.ndarray, " n"], classes: int) -> Frequencies:
    """n_c / N. Raises DataError for a class without an example."""
    counts = np.bincount(labels, minlength=classes)
    if (counts == 0).any():
        raise DataError(
            f"label_shift needs a labelled image of every class; classes "
            f"{np.flatnonzero(counts == 0).tolist()} have none"
        )
    return counts / counts.sum()


def bbse(
    source: Probabilities, labels: Int[np.ndarray, " n"], target: Probabilities
) -> Frequencies:
    """Black-box shift estimation (Lipton et al. 2018): q from confusions alone.

    Solves C w = μ, C_ij = P_source(predicted i, true j), μ_i = P_target(predicted i), w
    = q / p. `source` are held-out predictions. Negative parts are cut off and q is
    normalised. Raises DataError where C cannot be inverted: the classifier never tells
    two classes apart.
    """
    classes = source.shape[1]
    known = frequencies(labels, classes)
    joint = np.zeros((classes, classes))
    np.add.at(joint, (source.argmax(1), labels), 1.0 / len(labels))
    found = np.bincount(target.argmax(1), minlength=classes) / len(target)
    if np.linalg.cond(joint) > 1e6:
        raise DataError(
            "label_shift=bbse: some classes are never predicted, so that their "
            "frequency cannot be told; use --label-shift em, or train longer"
        )
    estimate = np.maximum(np.linalg.solve(joint, found), 0.0) * known
    return estimate / estimate.sum()


def em(target: Probabilities, known: Frequencies, *, rounds: int = 1000) -> Frequencies:
    """The most likely q by expectation-maximisation (Saerens et al. 2002).

    From q = `known`, the source's: r_ic ∝ target_ic · q_c / known_c, then q = mean_i r.
    Good where the probabilities are calibrated.
    """
    now = known
    for _ in range(rounds):
        joint = target * (now / known)
        following = (joint / joint.sum(1, keepdims=True)).mean(0)
        if np.abs(following - now).max() < 1e-8:
            return following
        now = following
    return now


def logit_shift(estimate: Frequencies, known: Frequencies) -> Frequencies:
    """log(q / p), to be added to the logits; q is kept above 1e-4."""
    kept = np.maximum(estimate, 1e-4)
    return np.log(kept / kept.sum() / known)


def softmax(logits: Float[np.ndarray, "n c"]) -> Probabilities:
    """Class probabilities in float64."""
    logits = logits.astype(np.float64)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)
