"""Sources: several labelled domains as one set that records each image's source."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from afterimage.data import UNLABELLED, ImageSet, Joined, Labels, Splits
from afterimage.errors import DataError
from afterimage.fields import above_0
from afterimage.finetune.data import of_head
from afterimage.finetune.method import METHODS, Method
from afterimage.finetune.scoring import reports
from afterimage.models.classifier import HEAD

SOURCE = "source"
"""The task whose labels are the source of each image in a pooled set."""


@METHODS.add("sources")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources(Method):
    """Further labelled images of the same classes, from other domains."""

    images: tuple[str, ...] = ()
    """Further labelled images of the same classes, each in the same form as data.
    Together with data they form one training set, which records the source of each
    image."""

    weights: tuple[float, ...] = ()
    """Weights of data and of each of images. Default: all 1."""

    @property
    def weighs_examples(self) -> bool:
        return bool(self.weights)

    def problems(self, config):
        found = []
        if not self.images:
            found.append("images: give at least one")
        if len({config.data, *self.images}) <= len(self.images):
            found.append(
                f"data={config.data!r}, images={self.images}: give each only once"
            )
        if self.weights and len(self.weights) != len(self.images) + 1:
            found.append(
                f"weights={self.weights}: must have {len(self.images) + 1} numbers, "
                "one for data and one for each of images"
            )
        return found + above_0(self, "weights")

    def open_labelled(self, splits, opener):
        others = [opener(spec, own=True) for spec in self.images]
        names = (opener.config.data or splits.train.name, *self.images)
        return pool([splits, *others], names)

    def example_weights(self, setup, model, say):
        """The weight of each image, by its source."""
        if not self.weights:
            return {}
        numbers = setup.data.labels.train.tasks[SOURCE].values
        return {"train": np.asarray(self.weights)[numbers]}

    def results(self, setup, model):
        """For each source, its training images and the report on its test images."""
        labels, found = setup.data.labels, {}
        for number, name in enumerate(labels.train.tasks[SOURCE].class_names):
            test = of_head(_of_source(labels.test, number), HEAD)
            report = reports(
                setup.scorer,
                model,
                {"test": test},
                setup.outputs,
                seed=setup.config.seed,
            )
            train = _of_source(labels.train, number)
            found[name] = {"training_images": len(train) if train else 0, **report}
        return {"sources": found}


def _of_source(images: ImageSet | None, number: int) -> ImageSet | None:
    """The images of one source; None if it has none."""
    if images is None:
        return None
    rows = np.flatnonzero(images.tasks[SOURCE].values == number)
    return images.subset(rows) if len(rows) else None


def pool(splits: Sequence[Splits], names: Sequence[str]) -> Splits:
    """The splits of several sources joined; classes are matched by name.

    `of_task(SOURCE)` of a joined set gives the number of each image's source. Classes
    and tasks are the first source's; the others may lack some of them but must not have
    any more. Raises DataError, listing all that do not fit.
    """
    joined = {}
    for split in ("train", "validation", "test"):
        there = [
            (number, part)
            for number, each in enumerate(splits)
            if (part := getattr(each, split)) is not None
        ]
        if there:
            joined[split] = _join(there, tuple(names), splits[0].train)
    return Splits(**joined)


def _join(
    parts: Sequence[tuple[int, ImageSet]], names: tuple[str, ...], first: ImageSet
) -> ImageSet:
    sets = [part for _, part in parts]
    tasks = {
        key: Labels(
            np.concatenate([_numbered(part.of_task(key), task) for part in sets]),
            task.class_names,
        )
        for key, task in first.tasks.items()
    }
    numbers = [np.full(len(part), number, np.int32) for number, part in parts]
    main = Labels(np.zeros(0, np.int32), first.class_names or ())
    prints = " ".join(part.fingerprint for part in sets)
    return dataclasses.replace(
        sets[0],
        images=Joined([part.images for part in sets]),
        labels=np.concatenate([_numbered(part, main) for part in sets]),
        ids=[f"{names[number]}:{id_}" for number, part in parts for id_ in part.ids],
        class_names=first.class_names,
        name=" + ".join(part.name for part in sets),
        fingerprint=hashlib.sha256(f"pooled {prints}".encode()).hexdigest(),
        skipped=tuple(bad for part in sets for bad in part.skipped),
        tasks={**tasks, SOURCE: Labels(np.concatenate(numbers), names)},
    )


def _numbered(images: ImageSet, like: Labels) -> np.ndarray:
    """The labels as class numbers of `like`; -1 where there are none."""
    if images.labels is None or images.class_names is None:
        return np.full(len(images), UNLABELLED, np.int32)
    used = {images.class_names[i] for i in np.unique(images.labels) if i >= 0}
    unknown = sorted(used - set(like.class_names))
    if unknown:
        raise DataError(
            f"{images.name} has classes that the first source lacks: "
            f"{', '.join(unknown)}. The first source has "
            f"{', '.join(like.class_names)}; rename the classes, or leave these "
            "images out"
        )
    to = np.full(len(images.class_names) + 1, UNLABELLED, np.int32)
    for number, name in enumerate(images.class_names):
        if name in like.class_names:
            to[number] = like.class_names.index(name)
    return to[images.labels]
