"""Several labelled sources as one: their images together, each knowing its source."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from afterimage.data import UNLABELLED, ImageSet, Joined, Labels, Splits
from afterimage.errors import DataError

SOURCE = "source"
"""The task by which a pooled set says where each image comes from."""


def pool(splits: Sequence[Splits], names: Sequence[str]) -> Splits:
    """The splits of several sources joined; classes are matched by name.

    `of_task(SOURCE)` of a joined set gives the number of each image's source. Classes
    and tasks are the first source's: a later one may lack some of them, and must have
    no other. Raises DataError for all that do not fit.
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
    """The labels by the class numbers of `like`; -1 where there are none."""
    if images.labels is None or images.class_names is None:
        return np.full(len(images), UNLABELLED, np.int32)
    used = {images.class_names[i] for i in np.unique(images.labels) if i >= 0}
    unknown = sorted(used - set(like.class_names))
    if unknown:
        raise DataError(
            f"{images.name} has classes that the first source lacks: "
            f"{', '.join(unknown)}. It has {', '.join(like.class_names)}; rename them, "
            "or leave those images out"
        )
    to = np.full(len(images.class_names) + 1, UNLABELLED, np.int32)
    for number, name in enumerate(images.class_names):
        if name in like.class_names:
            to[number] = like.class_names.index(name)
    return to[images.labels]
