"""kNN and ridge probe of the encoder, beside raw pixels and the untrained encoder."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from afterimage.checkpoints import schemas
from afterimage.checkpoints.errors import CheckpointError
from afterimage.data import ImageSet
from afterimage.evaluation import pixel_vectors, probe_report
from afterimage.runs import write_json
from afterimage.training.sweep import spaced

RAW, UNTRAINED, TRAINED = "raw pixels", "untrained encoder", "this encoder"
PROBES = ("knn", "ridge")
Report = dict[str, dict[str, Any]]


class Probes:
    """Both probes learn from labelled training images and are scored on held-out ones.

    The encoder never sees a label: the probes only ask what its features are worth.
    """

    def __init__(self, train: ImageSet, held: ImageSet, *, k: int):
        self.train, self.held, self.k = train, held, k

    @classmethod
    def of(
        cls, train: ImageSet, validation: ImageSet | None, *, most: int, k: int
    ) -> "Probes | None":
        """None without held-out images, without labels, or with a single class."""
        if validation is None or most == 0:
            return None
        pair = _labelled(train, most), _labelled(validation, most)
        if pair[0] is None or pair[1] is None:
            return None
        assert pair[0].labels is not None
        if len(np.unique(pair[0].labels)) < 2:
            return None
        return cls(pair[0], pair[1], k=k)

    def measure(self, name: str, features: Callable[[ImageSet], np.ndarray]) -> Report:
        """`probe_report` of what `features` makes of the images, under `name`."""
        pair = features(self.train), features(self.held)
        assert self.train.labels is not None
        assert self.held.labels is not None
        labels = self.train.labels, self.held.labels
        return probe_report({name: pair}, labels, k=self.k)

    def baselines(
        self, file: pathlib.Path, untrained: Callable[[ImageSet], np.ndarray]
    ) -> Report:
        """Raw pixels and the untrained encoder: measured once a run, kept in `file`."""
        # Several processes must take the same path: all compute, the first one writes.
        if jax.process_count() == 1:
            with contextlib.suppress(CheckpointError):  # absent or damaged: measured
                return schemas.read(file, schemas.Baselines, "delete it")
        report = self.measure(RAW, _raw_pixels) | self.measure(UNTRAINED, untrained)
        if jax.process_index() == 0:
            write_json(file, report)
        return report


def probe_metrics(report: Report) -> dict[str, float]:
    """{"knn": …, "knn_raw_pixels": …, "knn_untrained": …, the same for "ridge"}."""
    suffixes = {TRAINED: "", RAW: "_raw_pixels", UNTRAINED: "_untrained"}
    return {
        probe + suffix: report[name][probe]["value"]
        for probe in PROBES
        for name, suffix in suffixes.items()
    }


def _labelled(images: ImageSet, most: int) -> ImageSet | None:
    if images.labels is None:
        return None
    rows = np.flatnonzero(images.labels >= 0)
    return spaced(images.subset(rows), most) if len(rows) else None


def _raw_pixels(images: ImageSet) -> np.ndarray:
    return pixel_vectors(images.gather(np.arange(len(images))))
