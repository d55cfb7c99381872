"""Logits of whole image sets, and what they are worth."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from afterimage.data import ImageSet
from afterimage.data.augment import make_augment
from afterimage.evaluation.classification import (
    classification_report,
    confusion_matrix,
    macro_f1,
)
from afterimage.training.sweep import Sweep
from finetune.classifier import Classifier

Predict = Callable[[Any, Any, Array], Array]


@dataclasses.dataclass(frozen=True)
class Views:
    """Test-time augmentation: an image's class is told from several views of it.

    The first is the image as it is; the others are drawn by `augment`, the same changes
    for every image, so that no prediction depends on what else is in the batch.
    """

    count: int = 1
    augment: str = "shift"

    def over(self, predict: Predict) -> Predict:
        """Logits of uint8 images: the log of the mean of the views' probabilities."""
        if self.count == 1:
            return predict
        change = make_augment(self.augment)

        def viewed(params: Any, stats: Any, images: Array) -> Array:
            pixels = images.astype(jnp.float32) / 255

            def view(key: Array) -> Array:
                changed = jax.vmap(lambda image: change(key, image[None])[0])(pixels)
                return _log_probabilities(predict(params, stats, changed))

            keys = jax.random.split(jax.random.key(0), self.count - 1)
            first = _log_probabilities(predict(params, stats, images))
            every = jnp.concatenate([first[None], jax.lax.map(view, keys)])
            return jax.nn.logsumexp(every, axis=0) - math.log(self.count)

        return viewed


_ONE = Views()


def _log_probabilities(logits: Array) -> Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32))


class Scorer:
    """One head's logits and features of an image set, jitted once for every set."""

    def __init__(
        self, classifier: Classifier, head: str, sweep: Sweep, views: Views = _ONE
    ):
        self._sweep, self.head = sweep, head
        self.predict = sweep.jit(
            views.over(
                lambda params, stats, images: classifier.predict(
                    params, stats, images, head
                )
            )
        )

        def features(of):
            def run(params, stats, images):
                pixels = classifier.preprocessing.normalise(images)
                maps, _ = classifier.maps(params, stats, pixels)
                return of(params, stats, maps, head)

            return sweep.jit(run)

        self._features = features(classifier.head_features)
        self._all_features = features(classifier.all_features)

    def logits(
        self,
        params: Any,
        stats: Any,
        images: ImageSet,
        poll: Callable[[], None] = lambda: None,
    ) -> Float[np.ndarray, "n classes"]:
        """Logits in the order of `images`; `poll` is called between batches."""
        return self._over(self.predict, params, stats, images, poll)

    def features(
        self, params: Any, stats: Any, images: ImageSet
    ) -> Float[np.ndarray, "n d"]:
        """What the head reads, standardised, in the order of `images`."""
        return self._over(self._features, params, stats, images, lambda: None)

    def all_features(
        self, params: Any, stats: Any, images: ImageSet
    ) -> Float[np.ndarray, "n d"]:
        """The same before the selection of features."""
        return self._over(self._all_features, params, stats, images, lambda: None)

    def _over(self, function, params, stats, images, poll) -> np.ndarray:
        parts = []
        for _, batch, mask in self._sweep.batches(images):
            parts.append((function(params, stats, batch["image"]), mask))
            poll()
        return np.concatenate([np.asarray(out)[mask] for out, mask in parts])


def reports(
    scorer: Scorer,
    model: tuple[Any, Any],
    sets: Mapping[str, ImageSet | None],
    class_names: Sequence[str],
    *,
    seed: int,
) -> dict[str, Any]:
    """{name: `classification_report` of the set, or None where there is none}."""
    found: dict[str, Any] = dict.fromkeys(sets)
    for name, images in sets.items():
        if images is not None:
            assert images.labels is not None
            logits = scorer.logits(*model, images)
            found[name] = classification_report(
                logits, images.labels, class_names, seed=seed
            )
    return found


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
