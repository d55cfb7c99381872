"""Predictions of whole data sets, streamed to a file; a stopped one continues."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from afterimage.checkpoints.names import spelling
from afterimage.classifier import Classifier, load_classifier
from afterimage.console import say_reading
from afterimage.data import ImageSet
from afterimage.evaluation.configs import PredictConfig
from afterimage.evaluation.nearest import Reference
from afterimage.fields import output_file
from afterimage.outputs import Outputs
from afterimage.reading import ReadingOptions
from afterimage.rows import WRITERS, every_image, one_spec, skipped_lines, write_rows
from afterimage.storage.outputs import uploads

_FAR = 0.99  # farther than this share of usual images: counted in the summary


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The file of predictions, and what is in it."""

    out: pathlib.Path | str
    """The file; the URL of one in a bucket."""
    images: int
    """Rows in the file."""
    counts: Mapping[str, int]
    """{class or label: images}, the most frequent first; empty for numbers."""
    ranges: Mapping[str, tuple[float, float]]
    """{column: (lowest, highest)} of predicted numbers."""
    far: int | None
    """Images unlike the training images; None without features to compare with."""
    unsure: int | None
    """Images below the threshold; None without one."""
    skipped: pathlib.Path | str | None
    """The list of broken images."""
    bad: int

    def summary(self) -> str:
        """A few lines for a terminal."""
        counts = [f"{name} {count:,}" for name, count in self.counts.items()]
        more = [f"and {len(counts) - 8} more classes"] if len(counts) > 8 else []
        lines = [f"{self.images:,} predictions in {spelling(str(self.out))}"]
        lines += [f"  {', '.join([*counts[:8], *more])}"] if counts else []
        for name, (low, high) in self.ranges.items():
            lines.append(f"  {name}: {low:.4g} to {high:.4g}")
        if self.unsure is not None:
            lines.append(f"  {self.unsure:,} unsure")
        if self.far:
            lines.append(
                f"  {self.far:,} farther from the training images than 99 % of usual "
                "ones (farther_than above 0.99): look at these first"
            )
        return "\n".join([*lines, *skipped_lines(self.bad, self.skipped)])


@uploads
def predict(config: PredictConfig) -> Predictions:
    """Write a row for each image of `config.data`; one that was stopped continues.

    Columns: file; class and probability; class_2, probability_2, … up to `top`; margin,
    the difference of the two highest probabilities; distance and farther_than, see
    `Reference` (absent if the classifier has no features of training images); unsure
    with a `threshold`. In place of classes, a head of several labels has `labels`, as
    `a|b` (`|` for none), and probability_NAME of each; a head of numbers predicted_NAME
    of each. Memory does not grow with the number of images.

    Raises UserError for settings that cannot work, DataError for data without images
    and, with on_bad_image="fail", for the first broken ones; Interrupted on Ctrl-C.
    """
    out = pathlib.Path(config.out)
    output_file(out, WRITERS)
    classifier = load_classifier(config.from_)
    task = classifier.task(config.task)
    kind = classifier.outputs[task]
    if config.threshold is not None:
        classifier.require_classes(task, f"threshold={config.threshold}")
    images = _open(config, classifier)
    counts: collections.Counter[str] = collections.Counter()
    ranges: dict[str, tuple[float, float]] = {}
    far = unsure = None

    def count(_: int, row: Mapping[str, Any]) -> None:
        nonlocal far, unsure
        counts.update(kind.counted(row))
        for name, value in kind.measured(row).items():
            low, high = ranges.get(name, (value, value))
            ranges[name] = min(low, value), max(high, value)
        if "farther_than" in row:
            far = (far or 0) + (row["farther_than"] > _FAR)
        if "unsure" in row:
            unsure = (unsure or 0) + row["unsure"]

    written = write_rows(
        out,
        images,
        lambda batches: _rows(classifier, config, batches),
        mark=_mark(config, classifier, task),
        batch_size=config.batch_size,
        on_bad_image=config.on_bad_image,
        doing="predicting",
        count=count,
    )
    return Predictions(
        out=out,
        images=written.images,
        counts=dict(counts.most_common()),
        ranges=ranges,
        far=far,
        unsure=unsure,
        skipped=written.skipped,
        bad=written.bad,
    )


def _open(config: PredictConfig, classifier: Classifier) -> ImageSet:
    """All images, as one set, at the classifier's size."""
    say_reading(
        config.data[0] if len(config.data) == 1 else f"{len(config.data)} files"
    )
    return every_image(
        one_spec(config.data),
        classifier.preprocessing,
        on_bad_image=config.on_bad_image,
        reading=ReadingOptions(outside_images=config.outside_images),
    )


def _mark(config: PredictConfig, classifier: Classifier, task: str) -> list[Any]:
    """What decides the predictions, beside the images."""
    settings = [config.top, config.threshold, task, config.views]
    return [settings, classifier.manifest.get("files", {})]


def _rows(
    classifier: Classifier, config: PredictConfig, batches: Iterator[np.ndarray]
) -> Iterator[Iterator[dict[str, Any]]]:
    """The rows of each batch, as it comes."""
    task = classifier.task(config.task)
    reference = classifier.references.get(task)
    kind = classifier.outputs[task]
    how: Any = {"task": task, "views": config.views, "batch_size": config.batch_size}
    for logits, features in classifier.stream(batches, **how):
        yield _outputs(logits, features, kind, reference, config)


def _outputs(
    logits: Float[np.ndarray, "b c"],
    features: Float[np.ndarray, "b d"],
    kind: Outputs,
    reference: Reference | None,
    config: PredictConfig,
) -> Iterator[dict[str, Any]]:
    """What is written of each image."""
    values = kind.values(logits)
    distances = ranks = None
    if reference is not None:
        distances = reference.distance(features)
        ranks = reference.rank(distances)
    for row in range(len(logits)):
        found = kind.columns(values[row], config.top)
        if distances is not None and ranks is not None:
            found["distance"] = round(float(distances[row]), 6)
            found["farther_than"] = round(float(ranks[row]), 4)
        if config.threshold is not None:
            found["unsure"] = bool(values[row].max() < config.threshold)
        yield found
