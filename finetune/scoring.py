"""Logits of whole image sets, and their scores."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from afterimage.data import ImageSet
from afterimage.models.classifier import ClassifierNetwork, over_views
from afterimage.outputs import Activation, Outputs
from afterimage.training.batches import EvaluationRunner


class Scorer:
    """One head's logits and features of an image set, jitted once for all sets.

    Logits combine the `views` of each image (see VIEWS); features use a single view.
    """

    def __init__(
        self,
        classifier: ClassifierNetwork,
        head: str,
        sweep: EvaluationRunner,
        views: str = "none",
        activation: Activation = "softmax",
    ):
        self._sweep, self.head = sweep, head

        def predict(params, stats, images):
            return classifier.predict(params, stats, images, head)

        self.predict = sweep.jit(over_views(predict, views, activation))

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
        """The features the head reads, standardised, in the order of `images`."""
        return self._over(self._features, params, stats, images, lambda: None)

    def all_features(
        self, params: Any, stats: Any, images: ImageSet
    ) -> Float[np.ndarray, "n d"]:
        """The same before feature selection."""
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
    outputs: Outputs,
    *,
    seed: int,
    kept: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """{name: the report of the set by `outputs`, or None for a missing set}.

    The logits are put into `kept`, by name.
    """
    found: dict[str, Any] = dict.fromkeys(sets)
    for name, images in sets.items():
        if images is not None:
            assert images.truth is not None
            logits = scorer.logits(*model, images)
            if kept is not None:
                kept[name] = logits
            found[name] = outputs.report(logits, images.truth, seed=seed)
    return found


def softmax(logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """Class probabilities in float64."""
    logits = logits.astype(np.float64)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)
