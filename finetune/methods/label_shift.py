"""Label shift: the classes look the same, only their frequencies differ.

p_target(x | y) = p_source(x | y). The target's class frequencies q are estimated from a
source classifier's predictions on unlabelled target examples; the corrected classifier
is p(y | x) ∝ p_source(y | x) · q_y / p_y.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from afterimage.errors import DataError
from afterimage.finetune.data import known_labels, labelled
from afterimage.finetune.method import METHODS, Method
from afterimage.finetune.scoring import softmax
from afterimage.models.classifier import HEAD
from afterimage.training.batches import subsample

_MOST_TARGET = 20_000
Probabilities = Float[np.ndarray, "_n c"]
Frequencies = Float[np.ndarray, " c"]


@METHODS.add("label-shift", group="target")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelShift(Method):
    """Corrects the finished classifier for the target's class frequencies."""

    estimator: Literal["bbse", "em"] = "bbse"
    """How the frequencies are estimated. bbse: from the confusion matrix alone; em: by
    expectation-maximisation, for well-calibrated probabilities."""

    def problems(self, config):
        if config.label_smoothing:
            return ["needs calibrated probabilities: set label_smoothing to 0"]
        return []

    def state(self, setup):
        # Raises before the first step, not after the last.
        labels = setup.data.labels
        frequencies(labels.classes, len(labels.class_names))

    def correct(self, setup, model):
        """The head's bias shifted by log(q / p), and both frequencies.

        BBSE's confusion matrix is measured on validation images if there are any, else
        on the training images, which flatters the classifier; the result says which.
        """
        params, labels = model[0], setup.data.labels
        known = frequencies(labels.classes, len(labels.class_names))
        some = subsample(setup.data.target_images, _MOST_TARGET)
        of_target = softmax(setup.scorer.logits(*model, some))
        held = labelled(labels.validation) or labelled(labels.train)
        assert held is not None
        if self.estimator == "bbse":
            of_source = softmax(setup.scorer.logits(*model, held))
            estimate = bbse(of_source, known_labels(held), of_target)
        else:
            estimate = em(of_target, known)
        moved = jnp.asarray(logit_shift(estimate, known), jnp.float32)
        head = params["heads"][HEAD]
        linear = {**head["linear"], "bias": head["linear"]["bias"] + moved}
        heads = {**params["heads"], HEAD: {**head, "linear": linear}}
        record = {
            "method": self.estimator,
            "source_frequencies": known.tolist(),
            "target_frequencies": estimate.tolist(),
            "confusions_on": None if self.estimator == "em" else held.name,
        }
        return {**params, "heads": heads}, {"label_shift": record}


def frequencies(labels: Int[np.ndarray, " n"], classes: int) -> Frequencies:
    """n_c / N. Raises DataError for a class without examples."""
    counts = np.bincount(labels, minlength=classes)
    if (counts == 0).any():
        raise DataError(
            "label-shift needs labelled images of every class; classes "
            f"{np.flatnonzero(counts == 0).tolist()} have none"
        )
    return counts / counts.sum()


def bbse(
    source: Probabilities, labels: Int[np.ndarray, " n"], target: Probabilities
) -> Frequencies:
    """Black-box shift estimation (Lipton et al. 2018): q from the confusion matrix.

    Solves C w = μ, C_ij = P_source(predicted i, true j), μ_i = P_target(predicted i),
    w = q / p. `source` holds held-out predictions. Negative entries are set to zero and
    q is normalised. Raises DataError if C cannot be inverted: the classifier does not
    distinguish two classes.
    """
    classes = source.shape[1]
    known = frequencies(labels, classes)
    joint = np.zeros((classes, classes))
    np.add.at(joint, (source.argmax(1), labels), 1.0 / len(labels))
    found = np.bincount(target.argmax(1), minlength=classes) / len(target)
    if np.linalg.cond(joint) > 1e6:
        raise DataError(
            "label-shift: some classes are never predicted, so their frequency "
            "cannot be estimated; use --label-shift.estimator em, or train longer"
        )
    estimate = np.maximum(np.linalg.solve(joint, found), 0.0) * known
    return estimate / estimate.sum()


def em(target: Probabilities, known: Frequencies, *, rounds: int = 1000) -> Frequencies:
    """The most likely q by expectation-maximisation (Saerens et al. 2002).

    Starts from q = `known`, the source's; r_ic ∝ target_ic · q_c / known_c, then
    q = mean_i r. Works well if the probabilities are calibrated.
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
