"""The encoder as a step in a scikit-learn pipeline."""

import functools
import os
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from afterimage.encoder import Encoder, load_encoder
from afterimage.errors import UserError

_POOLS = {"features": "vector", "maps": "pyramid"} | {
    name: name for name in ("grid", "grid-3", "pyramid-grid")
}
"""How each output pools the maps."""


@functools.lru_cache(maxsize=4)
def _cached(path: str, written: int) -> Encoder:
    return load_encoder(path)


def _encoder(path: str | os.PathLike[str]) -> Encoder:
    """The encoder at `path`, loaded once per process; again if the folder changes."""
    place = os.path.abspath(path)
    written = os.stat(place).st_mtime_ns if os.path.exists(place) else 0
    return _cached(place, written)


class EncoderTransformer(TransformerMixin, BaseEstimator):
    """Images -> features of a pretrained encoder; learns nothing from the data.

    Parameters: `path` of a run, step or encoder folder; `batch_size` of the forward
    passes; `output`: "features" for the feature vector, "maps" for the concatenated
    means of all feature maps, "grid", "grid-3" or "pyramid-grid" for means over a grid;
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
        images = self._images(X, encoder)
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
            self._images(X, encoder), pool=_POOLS[self.output], **how
        )

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

    def _images(self, X: Any, encoder: Encoder) -> Any:
        if isinstance(X, list | tuple) and len(X) and np.ndim(X[0]) == 3:
            return X
        rows = np.asarray(X)
        if rows.ndim != 2:
            return rows
        width = rows.shape[-1]
        shape = (*encoder.preprocessing.image_size, encoder.preprocessing.channels)
        if width != np.prod(shape):
            raise UserError(
                f"rows of {width} numbers, but this encoder's images "
                f"({' x '.join(map(str, shape))}) have {np.prod(shape)}. Pass images "
                "of other sizes as [N, H, W, C]."
            )
        return rows.reshape(-1, *shape)
