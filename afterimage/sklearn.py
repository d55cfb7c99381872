"""Encoder and classifier as scikit-learn estimators."""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import issparse
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)

from afterimage.classifier import Classifier, load_classifier, probabilities
from afterimage.data.preprocessing import Preprocessing
from afterimage.encoder import Encoder, load_encoder
from afterimage.errors import UserError

_POOLS = {"features": "vector", "maps": "pyramid"} | {
    name: name for name in ("last", "grid", "grid-3", "pyramid-grid")
}
"""How each output pools the maps."""


@functools.lru_cache(maxsize=4)
def _cached(load: Callable[[str], Any], path: str, written: int) -> Any:
    return load(path)


def _loaded(load: Callable[[str], Any], path: str | os.PathLike[str]) -> Any:
    """What `load` reads at `path`, once per process; again if the folder changes."""
    place = os.path.abspath(path)
    written = os.stat(place).st_mtime_ns if os.path.exists(place) else 0
    return _cached(load, place, written)


def _encoder(path: str | os.PathLike[str]) -> Encoder:
    return _loaded(load_encoder, path)


def _images(X: Any, preprocessing: Preprocessing) -> Any:
    """Images as they are, or rows of H·W·C numbers as images of the trained size."""
    if isinstance(X, list | tuple) and len(X) and np.ndim(X[0]) == 3:
        return X
    if not issparse(X) and np.asarray(X).ndim > 2:
        return np.asarray(X)
    return _rows_as_images(check_array(X), preprocessing)


def _rows_as_images(rows: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    width = rows.shape[-1]
    shape = (*preprocessing.image_size, preprocessing.channels)
    if width != np.prod(shape):
        raise UserError(
            f"rows of {width} numbers, but this encoder's images "
            f"({' x '.join(map(str, shape))}) have {np.prod(shape)}. Pass images "
            "of other sizes as [N, H, W, C]."
        )
    return rows.reshape(-1, *shape)


class EncoderTransformer(TransformerMixin, BaseEstimator):
    """Images -> features of a pretrained encoder; learns nothing from the data.

    Parameters: `path` of a run, step or encoder folder; `batch_size` of the forward
    passes; `output`: "features" for the encoder's own feature vector, "last" for the
    mean of the last map, "maps" for the concatenated means of all feature maps, "grid",
    "grid-3" or "pyramid-grid" for means over a grid;
    `views`: "none", or "flip", "shift", "shift-flip" for the mean over several views of
    each image, as in `Encoder.features`.

    Takes what `Encoder.features` takes, or rows of H·W·C numbers at the trained size:
    uint8, or float in [0, 1]. `clone`, `GridSearchCV` (also with `n_jobs`) and pickling
    store the path, not the weights, so the folder must exist when it is used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        batch_size: int = 256,
        output: str = "features",
        views: str = "none",
    ):
        self.path = path
        self.batch_size = batch_size
        self.output = output
        self.views = views

    def fit(self, X: Any, y: Any = None) -> "EncoderTransformer":
        """Check parameters and images; remember the length of a row."""
        if self.output not in _POOLS:
            raise UserError(
                f"output={self.output!r}; expected one of {', '.join(_POOLS)}."
            )
        encoder = _encoder(self.path)
        images = _images(X, encoder.preprocessing)
        if not len(images):
            raise UserError("there are no images to fit on.")
        self.n_features_in_ = int(np.prod(np.shape(images[0])))
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features, float32 [N, D]."""
        check_is_fitted(self)
        encoder = _encoder(self.path)
        how: Any = {"views": self.views, "batch_size": self.batch_size}
        return encoder.features(
            _images(X, encoder.preprocessing), pool=_POOLS[self.output], **how
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """`features0`, …, or `stages/0:0`, … by map and channel, or `grid:0`, …."""
        encoder = _encoder(self.path)
        if self.output == "features":
            names = [f"features{i}" for i in range(encoder.num_features)]
        elif self.output != "maps":
            size = encoder.vector_size(self.output)
            names = [f"{self.output}:{i}" for i in range(size)]
        else:
            names = [
                f"{info.name}:{i}"
                for info in encoder.feature_info
                for i in range(info.channels)
            ]
        return np.asarray(names, dtype=object)


def _check_known(y: np.ndarray, classes: np.ndarray) -> None:
    unknown = sorted(set(map(str, y)) - set(classes))
    if unknown:
        raise UserError(
            f"the classifier does not know the classes {', '.join(unknown[:5])}; it "
            f"knows {', '.join(classes)}"
        )


class ImageClassifier(ClassifierMixin, BaseEstimator):
    """Images -> classes of a trained classifier, which `fit` does not train further.

    Parameters: `path` of a fine-tuning run, step or classifier folder; `task`, the head
    where there are several; `batch_size` of the forward passes; `views` as in
    `Classifier.predict_proba`.

    For what scikit-learn does with a finished classifier: scores, curves, calibration,
    threshold tuning, voting. It predicts without `fit`, and takes what
    `EncoderTransformer` takes. Copies and pickles hold the path, not the weights.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        task: str | None = None,
        batch_size: int = 256,
        views: str = "none",
    ):
        self.path = path
        self.task = task
        self.batch_size = batch_size
        self.views = views

    @property
    def _classifier(self) -> Classifier:
        found = _loaded(load_classifier, self.path)
        found.require_classes(found.task(self.task), "ImageClassifier")
        return found

    @property
    def classes_(self) -> np.ndarray:
        """The class names, in the order of the probabilities."""
        return self._classifier.classes(self.task)

    @property
    def n_features_in_(self) -> int:
        """Numbers in an image of the trained size."""
        preprocessing = self._classifier.preprocessing
        return int(np.prod([*preprocessing.image_size, preprocessing.channels]))

    def fit(self, X: Any, y: Any = None) -> "ImageClassifier":
        """Check the images, and that the classes in `y` are known; learn nothing."""
        images = _images(X, self._classifier.preprocessing)
        if not len(images):
            raise UserError("there are no images to fit to.")
        if y is not None:
            y = column_or_1d(y, warn=True)
            check_classification_targets(y)
            check_consistent_length(images, y)
            _check_known(y, self.classes_)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The name of the most probable class of each image."""
        return self.classes_[self._logits(X).argmax(1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities, [N, classes]."""
        return probabilities(self._logits(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the probabilities."""
        return log_softmax(self._logits(X).astype(np.float64), axis=1)

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits, [N, classes]; of two classes the second less the first, [N]."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def _logits(self, X: Any) -> np.ndarray:
        classifier = self._classifier
        how: Any = {"task": self.task, "views": self.views}
        images = _images(X, classifier.preprocessing)
        return classifier.logits(images, batch_size=self.batch_size, **how)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags
