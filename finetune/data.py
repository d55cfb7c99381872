"""The images of a run: opened, checked, and split by use.

With a limited number of labels, no other label is used, not even to choose the step:
validation images are cut from the chosen ones; if that would give fewer than a hundred,
the last step is kept. (With 100 images the standard error of an accuracy of 0.8 is
0.04: with fewer, the choice is mostly noise.) Every result names the rule that was
used. A test split is only ever used for testing. Data without one is
tested on labelled images that are not trained on: those that were not chosen, or else a
share of each class.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from afterimage.checkpoints.names import alike, spelling
from afterimage.console import say_reading
from afterimage.data import (
    WAYS_TO_LABEL,
    ImageSet,
    Preprocessing,
    Splits,
    channel_statistics,
    check_classes,
    hold_out,
    open_data,
    stratified,
)
from afterimage.errors import DataError, UserError
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.method import Stream
from afterimage.finetune.source import SourceModel
from afterimage.models import ModelConfig
from afterimage.models.classifier import HEAD
from afterimage.runs import Run

FEWEST_TO_CHOOSE_BY = 100


@dataclasses.dataclass(frozen=True)
class LabelSplit:
    """Labelled images by use; `rule` says how the step is chosen.

    With several tasks an image may lack the labels of some; see `of_head`.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet | None
    rule: str
    held_out: str | None = None
    """Which images `test` has, in words, if the data has no test split."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, or the names of the labels or numbers."""
        if self.train.numbers is not None:
            return self.train.numbers.names
        return self.train.class_names or ()

    def head_names(self, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """{head: class names}: the main head, then one for each further column."""
        more = {task: self.train.tasks[task].class_names for task in columns}
        return {HEAD: self.class_names, **more}

    @property
    def classes(self) -> Int32[np.ndarray, " n"]:
        """The classes of the training images that have one."""
        return known_labels(labelled(self.train))

    def frequencies(self) -> tuple[float, ...]:
        """The share of each class among the labelled training images."""
        counts = np.bincount(self.classes, minlength=len(self.class_names))
        return tuple((counts / len(self.classes)).tolist())

    def record(self, config: FinetuneConfig) -> dict[str, Any]:
        """The content of `labels.json`: every image whose label was used, by id."""
        more = {task: self._used(task) for task in config.columns}
        return {
            "data": spelling(config.data or self.train.name),
            "seed": config.seed,
            "labels": config.labels,
            "labels_per_class": config.labels_per_class,
            "rule": self.rule,
            "classes": list(self.class_names),
            **self._used(HEAD),
            **({"held_out": _ids_by_class(self.test)} if self.held_out else {}),
            **({"tasks": more} if more else {}),
        }

    def _used(self, head: str) -> dict[str, dict[str, list[str]]]:
        """The images whose labels train one head, and those that choose its step."""
        return {
            "train": _ids_by_class(of_head(self.train, head)),
            "validation": _ids_by_class(of_head(self.validation, head)),
        }


@dataclasses.dataclass(frozen=True)
class Target:
    """Images of the target domain by use."""

    images: ImageSet
    """Training images, without labels."""
    oracle: ImageSet | None
    """The labelled ones among them; only select='oracle' uses them."""
    test: ImageSet | None
    """The labelled test split."""
    name: str
    fingerprint: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """The source model, and all images of a run."""

    source: SourceModel
    splits: Splits
    labels: LabelSplit
    target: Target | None
    streams: Mapping[str, Stream]
    """Further streams of images, by name; includes `target` if a method reads it."""
    model: ModelConfig
    """The architecture at the shape of these images."""
    preprocessing: Preprocessing

    @property
    def target_images(self) -> ImageSet:
        """The images of the target domain; UserError without one."""
        if self.target is None:
            raise UserError("this needs images of the target domain; set target")
        return self.target.images

    def record(self, run: Run) -> None:
        """Records the images in the run folder; UserError if it records others."""
        images = self.splits.train
        more = [
            self.target,
            *(s.images for name, s in self.streams.items() if name != "target"),
        ]
        more = [part for part in more if part is not None]
        name = " with ".join([images.name, *(part.name for part in more)])
        fingerprint = images.fingerprint
        if more:
            each = " ".join([fingerprint, *(part.fingerprint for part in more)])
            fingerprint = hashlib.sha256(each.encode()).hexdigest()
        run.check_data(name, fingerprint)
        run.write_skipped(self.splits.skipped)


@dataclasses.dataclass(frozen=True)
class Opener:
    """Opens data as a run needs them: at the size and channels of its encoder."""

    config: FinetuneConfig
    stored: Preprocessing
    """How the encoder's images were prepared, with the value range measured on the
    run's own data."""

    def __call__(self, spec: Any, *, own: bool = False) -> Splits:
        """The splits of `spec`; `own` marks the run's labelled images.

        `config.image_size` and `config.channels` override the encoder's shape. Raises
        DataError for images that cannot be loaded at that shape.
        """
        config, stored = self.config, self.stored
        height, width = stored.image_size
        size = config.image_size
        if size is None and height == width:
            size = height
        channels = config.channels or stored.channels
        value_range = config.value_range or stored.value_range
        if config.value_range == "auto" and not own and spec != config.data:
            value_range = stored.value_range  # measured on the run's own data only
        say_reading(spec)
        splits = open_data(
            spec,
            image_size=size,
            channels=channels,
            value_range=value_range,
            rendering=stored.rendering,
            on_bad_image=config.on_bad_image,
            cache=config.cache,
            tasks=config.columns if own else (),
            numbers=config.task.reading if own else None,
            reading=config,
            whole=config.whole_photos,
            strict=own,
        )
        expected = (*((size, size) if size else stored.image_size), channels)
        if splits.train.shape != expected:
            raise DataError(
                f"{splits.train.name} has images of shape {splits.train.shape}, but "
                f"the encoder needs {expected} (height, width, channels). Use images "
                "of that shape; or set --image-size and --channels, and --may-differ "
                "for the parameters that then cannot be loaded"
            )
        return splits


def open_all(config: FinetuneConfig, data: Any = None, target: Any = None) -> RunData:
    """The source model and every image of a run.

    `data` and `target` replace `config.data` and `config.target`. Raises UserError,
    DataError or CheckpointError for input that cannot be used.
    """
    data = config.data if data is None else data
    if data is None:
        raise UserError("no data: give the labelled images, e.g. --data labelled")
    if (target is not None) != (config.target == "given"):
        raise UserError(
            f"target={config.target!r}: to pass an object, finetune(config, "
            "target=…), set FinetuneConfig(target='given')"
        )
    target = config.target if target is None else target
    source = SourceModel.read(config.from_)
    architecture = source.architecture(config.mode)
    stored = source.preprocessing
    splits = Opener(config, stored)(data, own=True)
    # The values measured on the data apply to all other images too.
    value_range = splits.train.value_range or stored.value_range
    stored = dataclasses.replace(stored, value_range=value_range)
    opener = Opener(config, stored)
    for method in config.methods:
        splits = method.open_labelled(splits, opener)
    model, preprocessing = _at_shape(architecture, stored, splits)
    labels = split_labels(config, splits)
    found = RunData(
        source=source,
        splits=splits,
        labels=labels,
        target=_open_target(opener, target, labels.class_names),
        streams={},
        model=model,
        preprocessing=preprocessing,
    )
    streams = dict(_target_stream(config, found.target))
    for method in config.methods:
        streams |= method.open_streams(found, opener)
    return dataclasses.replace(found, streams=streams)


def _target_stream(
    config: FinetuneConfig, target: Target | None
) -> Iterator[tuple[str, Stream]]:
    if target is not None and any(m.target_in_batch for m in config.methods):
        yield "target", Stream(target.images)


def _at_shape(
    model: ModelConfig, stored: Preprocessing, splits: Splits
) -> tuple[ModelConfig, Preprocessing]:
    """Model and preprocessing for these images: the stored ones, at this shape.

    The stored statistics are kept unless the channels differ; then they are measured
    again. Whether each image is normalised by its own statistics is kept too.
    """
    height, width, channels = splits.train.shape
    model = dataclasses.replace(model, image_size=(height, width), channels=channels)
    mean, std = stored.mean, stored.std
    if channels != stored.channels:
        mean, std = channel_statistics(splits.train)
    value_range = splits.train.value_range or stored.value_range
    return model, Preprocessing(
        (height, width),
        mean,
        std,
        channels,
        value_range,
        stored.normalisation,
        splits.train.rendering or stored.rendering,
    )


def _open_target(
    opener: Opener, spec: Any, class_names: tuple[str, ...]
) -> Target | None:
    """The target domain at the encoder's shape; None if no target is given.

    Raises DataError for images of another shape, or for classes that the source domain
    does not have.
    """
    if spec is None:
        return None
    splits = opener(spec)
    known, test = labelled(splits.train), labelled(splits.test)
    return Target(
        images=dataclasses.replace(splits.train, labels=None),
        oracle=matched(known, class_names) if known is not None else None,
        test=matched(test, class_names) if test is not None else None,
        name=splits.train.name,
        fingerprint=splits.train.fingerprint,
    )


def split_labels(config: FinetuneConfig, splits: Splits) -> LabelSplit:
    """The labelled images of `splits`, by use, as `config` asks.

    Raises DataError if there are no labels, only one class, test classes that train
    lacks, or too few labels of a class.
    """
    config.task.check(splits)
    columns = config.columns
    for column in columns:
        _check_column(splits, column)
    train = labelled(splits.train)
    if columns and not config.limited:
        # Images without the main label may have a label for another task.
        train = splits.train.subset(_with_any_label(splits.train, columns))
    assert train is not None  # the task's check
    test = splits.test if columns else labelled(splits.test)
    held_out = None
    if test is None and _holds_out(config):
        train, test, held_out = _test_images(config, train)
    if config.limited:
        train = train.subset(_chosen(config, train))
    given = splits.validation if columns else labelled(splits.validation)
    given = None if config.limited else given
    train, validation, rule = _validation(config, train, given)
    return LabelSplit(train, validation, test, rule, held_out)


def _holds_out(config: FinetuneConfig) -> bool:
    """Whether a run without a test split tests on images of its own."""
    own = config.task.kept_step is None and config.target is None
    return own and config.hold_out > 0


def _test_images(
    config: FinetuneConfig, train: ImageSet
) -> tuple[ImageSet, ImageSet | None, str | None]:
    """(images to learn from, test images, which these are).

    Of a limited number of labels all are learned from: the test images are the others.
    """
    if config.limited:
        chosen = _chosen(config, train)
        others = np.setdiff1d(np.arange(len(train)), chosen)
        text = f"the {len(others):,} labelled images that were not chosen for training"
        if any(getattr(method, "images", None) == "rest" for method in config.methods):
            text += ", which were read without their labels"
    else:
        strata, seed = config.task.strata(train), config.seed
        _, others = stratified(strata, len(train), config.hold_out, seed)
        count = f"{len(others):,} of {len(train):,}"
        text = f"{count} labelled images, held out by seed {seed}"
        if strata is not None:
            each = "class" if train.numbers is None else "combination of labels"
            text += f", the same share of each {each}"
    if not len(others):
        return train, None, None
    text += " (the data has no test split)"
    kept = np.setdiff1d(np.arange(len(train)), others)
    learnt = train if config.limited else train.subset(kept)
    return learnt, train.subset(others), text


def _chosen(config: FinetuneConfig, train: ImageSet) -> Int[np.ndarray, " n"]:
    """Positions of a limited number of labels."""
    return config.task.choose(config, train)


def _check_column(splits: Splits, task: str) -> None:
    """Raises DataError if a task cannot be learned from these images."""
    if task not in splits.train.tasks:
        raise DataError(
            f"{splits.train.name} has no labels for the task {task!r}; expected an "
            f"array y_train_{task} beside y_train, or labels_{task} beside labels, or "
            f"a filled column {task} in a csv file"
        )
    each = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    check_classes(Splits(**{k: v and v.of_task(task) for k, v in each.items()}))


def _with_any_label(images: ImageSet, tasks: Sequence[str]) -> np.ndarray:
    """Positions of the images with a label for any task."""
    known = images.labels >= 0 if images.labels is not None else False
    for task in tasks:
        known = known | (images.tasks[task].values >= 0)
    return np.flatnonzero(known)


def known_labels(images: ImageSet | None) -> Any:
    """The classes [n] or numbers [n, k] of images already checked to have some."""
    assert images is not None
    assert images.truth is not None
    return images.truth


def of_head(images: ImageSet | None, task: str) -> ImageSet | None:
    """The images that have a label for this head, with that label; None if none has."""
    if images is None or task == HEAD:
        return labelled(images)
    return labelled(images.of_task(task))


def rows_of_head(images: ImageSet, task: str) -> Int[np.ndarray, " n"]:
    """Positions of the images of `of_head` among all images."""
    known = images if task == HEAD else images.of_task(task)
    return np.flatnonzero(known_labels(known) >= 0)


def labelled(images: ImageSet | None) -> ImageSet | None:
    """The images with a label; None if there are none."""
    if images is None or images.truth is None:
        return None
    known = images.numbers.known if images.numbers is not None else images.truth >= 0
    known = np.flatnonzero(known)
    if not len(known):
        return None
    return images if len(known) == len(images) else images.subset(known)


def _validation(
    config: FinetuneConfig, train: ImageSet, given: ImageSet | None
) -> tuple[ImageSet, ImageSet | None, str]:
    if config.task.kept_step is not None:
        return train, None, config.task.kept_step
    if config.select == "last":
        return train, None, "last step (select='last')"
    measure = config.task.measure(config)
    if given is not None:
        rule = f"best {measure} on the data's {len(given)} validation images"
        return train, given, rule
    count = round(config.validation * len(train))
    if config.select != "validation" and count < FEWEST_TO_CHOOSE_BY:
        why = f"too few labels to hold out a validation set: {count} of {len(train)}"
        return train, None, f"last step ({why})"
    strata = config.task.strata(train)
    kept, held = hold_out(train, config.validation, config.seed, strata)
    rule = (
        f"best {measure} on {len(held)} validation images cut from the "
        f"{len(train)} labelled ones"
    )
    return kept, held, rule


def _ids_by_class(images: ImageSet | None) -> dict[str, list[str]]:
    """{class: ids}; all together if labels are numbers."""
    if images is not None and images.numbers is not None:
        return {"labelled": list(images.ids)}
    if images is None or images.labels is None or images.class_names is None:
        return {}
    found: dict[str, list[str]] = {name: [] for name in images.class_names}
    for label, name in zip(images.labels.tolist(), images.ids, strict=True):
        found[images.class_names[label]].append(name)
    return found


def matched(images: ImageSet, names: tuple[str, ...]) -> ImageSet:
    """`images` with their labels renumbered to a model's classes, matched by name.

    Raises DataError for classes unknown to the model, and for data without any labels.
    """
    found = labelled(images)
    if found is None or found.labels is None or found.class_names is None:
        raise DataError(
            f"{images.name} has no labels to compute a score; add them: {WAYS_TO_LABEL}"
        )
    used = [found.class_names[i] for i in np.unique(found.labels)]
    unknown = [name for name in used if name not in names]
    if unknown:
        near = [pair for pair in alike((*names, *unknown)) if set(pair) & set(unknown)]
        hint = "".join(
            f" {' and '.join(map(repr, pair))} differ only in case or spaces."
            for pair in near
        )
        raise DataError(
            f"{images.name} has classes that the classifier was not trained on: "
            f"{', '.join(unknown)}. It was trained on {', '.join(names)}; rename the "
            f"folders or leave these images out.{hint}"
        )
    to = np.array(
        [names.index(n) if n in names else -1 for n in found.class_names], np.int32
    )
    return dataclasses.replace(found, labels=to[found.labels], class_names=names)
