"""Logits of whole image sets, and what they are worth."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from afterimage.data import ImageSet
from afterimage.evaluation.classification import confusion_matrix, macro_f1
from afterimage.training.sweep import Sweep
from finetune.classifier import Classifier


class Scorer:
    """One head's logits of an image set, jitted once for every set."""

    def __init__(self, classifier: Classifier, head: str, sweep: Sweep):
        self._sweep = sweep
        self._predict = sweep.jit(
            lambda params, stats, images: classifier.predict(
                params, stats, images, head
            )
        )

    def logits(
        self,
        params: Any,
        stats: Any,
        images: ImageSet,
        poll: Callable[[], None] = lambda: None,
    ) -> Float[np.ndarray, "n classes"]:
        """Logits in the order of `images`; `poll` is called between batches."""
        parts = []
        for _, batch, mask in self._sweep.batches(images):
            parts.append((self._predict(params, stats, batch["image"]), mask))
            poll()
        return np.concatenate([np.asarray(out)[mask] for out, mask in parts])


def measures(
    logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """Accuracy, macro-F1 and cross-entropy (nats) of labelled examples."""
    logits = logits.astype(np.float64)
    top = logits.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # logits of a diverged run: the loss says so
        log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    right = logits[np.arange(len(labels)), labels]
    predicted = logits.argmax(axis=1)
    counts = confusion_matrix(labels, predicted, logits.shape[1])
    return {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": macro_f1(counts),
        "loss": float((log_sum - right).mean()),
    }
