"""Which images train, which choose the step, which test; and the record of it.

A limited number of labels means that no other label is used, for choosing the step
either: validation is cut from the chosen ones, or, where that would leave under a
hundred images to choose by, the last step is taken. (At 100 images the standard error
of an accuracy of 0.8 is 0.04: below that, choosing is drawing lots.) The rule that was
followed stands in every result. A given test split is only ever tested on.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from afterimage.checkpoints.names import alike, spelling
from afterimage.data import (
    WAYS_TO_LABEL,
    ImageSet,
    Splits,
    check_classes,
    choose_labels,
    hold_out,
)
from afterimage.errors import DataError
from afterimage.finetune.config import FinetuneConfig

FEWEST_TO_CHOOSE_BY = 100
HEAD = "classes"
"""The head of the labels' own task; the others are called as their tasks."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Labelled images by their use; `rule` says how the step is chosen.

    With several tasks an image of any set may lack the label of some: `of_head`.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet | None
    rule: str

    @property
    def class_names(self) -> tuple[str, ...]:
        names = self.train.class_names
        assert names is not None
        return names

    def head_names(self, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """{head: class names}: the labels' own, then one a task."""
        more = {task: self.train.tasks[task].class_names for task in tasks}
        return {HEAD: self.class_names, **more}

    def record(self, config: FinetuneConfig) -> dict[str, Any]:
        """What `labels.json` holds: every image whose label was used, by id."""
        return {
            "data": spelling(config.data),
            "seed": config.seed,
            "labels": config.labels,
            "labels_per_class": config.labels_per_class,
            "rule": self.rule,
            "classes": list(self.class_names),
            **self._used(HEAD),
            **(
                {"tasks": {t: self._used(t) for t in config.tasks}}
                if config.tasks
                else {}
            ),
        }

    def _used(self, head: str) -> dict[str, dict[str, list[str]]]:
        """The images whose labels one head learns from, and is chosen by."""
        return {
            "train": _listed(of_head(self.train, head)),
            "validation": _listed(of_head(self.validation, head)),
        }


def choose(config: FinetuneConfig, splits: Splits) -> Chosen:
    """The labelled images of `splits`, as `config` wants them used.

    Raises DataError where there are no labels, one class only, test classes that train
    lacks, or too few labels of a class.
    """
    check_classes(splits)
    for task in config.tasks:
        _check_task(splits, task)
    train = labelled(splits.train)
    assert train is not None
    if config.tasks and not config.limited:
        # Images without the main label may have one of another task.
        train = splits.train.subset(_any_label(splits.train, config.tasks))
    if config.limited:
        kept = choose_labels(
            train,
            labels=config.labels,
            per_class=config.labels_per_class,
            seed=config.seed,
        )
        train = train.subset(kept)
    given = splits.validation if config.tasks else labelled(splits.validation)
    given = None if config.limited else given
    train, validation, rule = _validation(config, train, given)
    test = splits.test if config.tasks else labelled(splits.test)
    return Chosen(train, validation, test, rule)


def _check_task(splits: Splits, task: str) -> None:
    """Raises DataError where a task cannot be learned from these images."""
    if task not in splits.train.tasks:
        raise DataError(
            f"{splits.train.name} has no labels of the task {task!r}; expected an "
            f"array y_train_{task} beside y_train, or labels_{task} beside labels, or "
            f"a filled column {task} of a csv file"
        )
    each = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    check_classes(Splits(**{k: v and v.of_task(task) for k, v in each.items()}))


def _any_label(images: ImageSet, tasks: Sequence[str]) -> np.ndarray:
    """Positions of the images with a label of any task."""
    known = images.labels >= 0 if images.labels is not None else False
    for task in tasks:
        known = known | (images.tasks[task].values >= 0)
    return np.flatnonzero(known)


def of_head(images: ImageSet | None, task: str) -> ImageSet | None:
    """The images that have a label for this head, with it; None where none has."""
    if images is None or task == HEAD:
        return labelled(images)
    return labelled(images.of_task(task))


def rows_of_head(images: ImageSet, task: str) -> Int[np.ndarray, " n"]:
    """Where the images of `of_head` are among all of them."""
    labels = images.labels if task == HEAD else images.tasks[task].values
    assert labels is not None
    return np.flatnonzero(labels >= 0)


def labelled(images: ImageSet | None) -> ImageSet | None:
    """The images with a label; None where there are none."""
    if images is None or images.labels is None:
        return None
    known = np.flatnonzero(images.labels >= 0)
    if not len(known):
        return None
    return images if len(known) == len(images) else images.subset(known)


def _validation(
    config: FinetuneConfig, train: ImageSet, given: ImageSet | None
) -> tuple[ImageSet, ImageSet | None, str]:
    if config.by_last_step:
        return (
            train,
            None,
            "the last step" + (" of each task" if config.sequence else ""),
        )
    if config.select == "last":
        return train, None, "last step (as asked for)"
    if given is not None:
        rule = f"best {config.select_by} on the data's {len(given)} validation images"
        return train, given, rule
    count = round(config.validation * len(train))
    if config.select != "validation" and count < FEWEST_TO_CHOOSE_BY:
        why = f"{count} validation images cut from {len(train)} labels would be too few"
        return train, None, f"last step ({why})"
    kept, held = hold_out(train, config.validation, config.seed)
    rule = (
        f"best {config.select_by} on {len(held)} validation images cut from the "
        f"{len(train)} labelled ones"
    )
    return kept, held, rule


def _listed(images: ImageSet | None) -> dict[str, list[str]]:
    """{class: ids}."""
    if images is None or images.labels is None or images.class_names is None:
        return {}
    listed: dict[str, list[str]] = {name: [] for name in images.class_names}
    for label, name in zip(images.labels.tolist(), images.ids, strict=True):
        listed[images.class_names[label]].append(name)
    return listed


def matched(images: ImageSet, names: tuple[str, ...]) -> ImageSet:
    """`images` with their labels renumbered to a model's classes, matched by name.

    Raises DataError for classes that the model does not know, and for data that has no
    label at all.
    """
    found = labelled(images)
    if found is None or found.labels is None or found.class_names is None:
        raise DataError(
            f"{images.name} has no labels to score by; it needs {WAYS_TO_LABEL}"
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
            f"{images.name} has classes that the classifier does not know: "
            f"{', '.join(unknown)}. It knows {', '.join(names)}; rename the folders or "
            f"leave those images out.{hint}"
        )
    to = np.array(
        [names.index(n) if n in names else -1 for n in found.class_names], np.int32
    )
    return dataclasses.replace(found, labels=to[found.labels], class_names=names)
