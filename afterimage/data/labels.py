"""Raw labels -> class indices, and the checks that a classifier needs."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from afterimage.checkpoints.names import alike, class_name
from afterimage.console import say_once
from afterimage.data.sets import UNLABELLED, ImageSet, Labels, Splits
from afterimage.errors import DataError
from afterimage.reading import ReadingOptions

Indexed = tuple[dict[str, Int32[np.ndarray, " n"] | None], tuple[str, ...] | None]
"""(class indices by split, class names); None if nothing is labelled."""

WAYS_TO_LABEL = (
    "one subfolder per class, a label table beside the images, or a column `label` "
    "in a csv file"
)

_NO_VALUE = {"na", "n/a", "nan", "null", "none", "nil", "#n/a", "-", "-1", "?"}
"""Common ways to mark a missing value, in lower case."""


def named(
    cells: Sequence[str], where: str, reading: ReadingOptions
) -> list[str | None]:
    """The class name for each text; None if it means that there is no label."""
    names = class_names(collections.Counter(cells), where, reading)
    return [names[cell] for cell in cells]


def class_names(
    texts: Mapping[str, int], where: str, reading: ReadingOptions
) -> dict[str, str | None]:
    """The same for each text of {text: number of images}."""
    names = {t: None if reading.is_missing(t) else class_name(t) for t in texts}
    for text, name in names.items():
        if name is not None and name.casefold() in _NO_VALUE:
            say_once(
                f"{where}: {texts[text]:,} labels are {name}, which is treated as a "
                f"class. If it means that the label is missing, add --missing {name}"
            )
    several = [name for name in names.values() if name is not None and "|" in name]
    if several:
        say_once(
            f"{where}: {several[0]} is treated as one class. If | separates labels, "
            "fine-tune with --task multi-label"
        )
    return names


def say_alike(classes: Sequence[str] | None, source: str) -> None:
    """Warn about classes whose names differ only in case or spaces."""
    for group in alike(classes or ()):
        say_once(
            f"{source}: the classes {' and '.join(map(repr, group))} differ only in "
            "case or spaces. If they are one class, give them one name"
        )


def counted(images: ImageSet) -> str:
    """The classes of a set with their image counts: `cat 12, dog 9`."""
    if images.labels is None or images.class_names is None:
        return ""
    counts = np.bincount(
        images.labels[images.labels >= 0], minlength=len(images.class_names)
    )
    shown = [f"{name} {n:,}" for name, n in zip(images.class_names, counts.tolist())]
    more = f", and {len(shown) - 50:,} more" if len(shown) > 50 else ""
    return ", ".join(shown[:50]) + more


def index_names(
    names: Mapping[str, Iterable[str | None]],
) -> Indexed:
    """Class names by split -> class indices by split, and the classes sorted by name.

    All splits share one numbering; None is unlabelled.
    """
    lists = {split: list(values) for split, values in names.items()}
    classes = sorted({v for values in lists.values() for v in values if v is not None})
    number: dict[str | None, int] = {name: i for i, name in enumerate(classes)}
    number[None] = UNLABELLED
    labels = {
        split: np.array([number[v] for v in values], np.int32)
        if any(v is not None for v in values)
        else None
        for split, values in lists.items()
    }
    return labels, tuple(classes) or None


def index_values(
    values: Mapping[str, Any],
    source: str,
    reading: ReadingOptions,
) -> Indexed:
    """Label arrays by split (integers or strings) -> class indices, class names.

    Classes are numbered in order of value, without gaps; original integers become the
    class names. -1 means unlabelled, as does a string that `reading` treats as missing.
    Other negatives, fractions, one-hot rows and anything but numbers and strings raise
    one DataError.
    """
    checked, problems = {}, []
    for split, given in values.items():
        try:
            array = None if given is None else _plain(np.asarray(given))
            if array is not None and array.dtype.kind == "U":
                array = _strings(array, f"{source} [{split}]", reading)
            checked[split] = array
        except ValueError as error:
            problems.append(f"{split} labels {error}")
    kinds = {v.dtype.kind for v in checked.values() if v is not None}
    if len(kinds) > 1:
        problems.append("labels are numbers in one split and strings in another")
    if problems:
        raise DataError(f"{source}: {'; '.join(problems)}")
    classes: list[Any] = sorted(
        {v for split in checked.values() if split is not None for v in split.tolist()}
        - {UNLABELLED}
    )
    number = {value: i for i, value in enumerate(classes)} | {UNLABELLED: UNLABELLED}
    labels = {
        split: None
        if v is None
        else np.array([number[x] for x in v.tolist()], np.int32)
        for split, v in checked.items()
    }
    return labels, tuple(str(c) for c in classes) or None


def task_labels(found: Mapping[str, Indexed]) -> dict[str, dict[str, Labels]]:
    """{split: {task: labels}} from the results of the functions above for each task.

    A split has only those tasks for which it has a label.
    """
    splits: dict[str, dict[str, Labels]] = {}
    for task, (values, classes) in found.items():
        for split, labels in values.items():
            mine = splits.setdefault(split, {})
            if labels is not None and classes is not None:
                mine[task] = Labels(labels, classes)
    return splits


def _strings(values: np.ndarray, where: str, reading: ReadingOptions) -> np.ndarray:
    """Class names as objects; UNLABELLED for a missing label."""
    names = named(values.tolist(), where, reading)
    return np.array([UNLABELLED if n is None else n for n in names], object)


def _plain(values: np.ndarray) -> np.ndarray:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(
            f"have shape {values.shape}; expected one label per image, [N] (convert "
            "one-hot rows with labels.argmax(1); for several labels or numbers per "
            "image, fine-tune with --task multi-label or --task regression)"
        )
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "surrogateescape")
    if values.dtype.kind == "U":
        return values
    if values.dtype.kind not in "biuf":
        raise ValueError(f"are {values.dtype}; expected integers or strings")
    whole = values.astype(np.int64) if np.isfinite(values).all() else None
    if whole is None or not np.array_equal(whole, values):
        bad = [v for v in values.tolist() if v != v or v in (np.inf, -np.inf) or v % 1]
        raise ValueError(
            f"contain {bad[0]}; expected whole numbers or strings (to learn numbers, "
            "fine-tune with --task regression)"
        )
    negative = sorted(set(whole[whole < UNLABELLED].tolist()))
    if negative:
        raise ValueError(
            f"contain {negative[:5]}; only -1 may be negative, for an image without a "
            "label"
        )
    return whole


def check_classes(splits: Splits) -> None:
    """Raise DataError if these splits cannot train and test a classifier.

    Needed: labels in train, at least two classes there, and no class in validation or
    test that train lacks. All problems are reported at once.
    """
    train = splits.train
    if train.labels is None or train.class_names is None:
        raise DataError(
            f"{train.name} has no labels, but a classifier needs them: {WAYS_TO_LABEL}"
        )
    seen = _present(train)
    problems = []
    if len(seen) < 2:
        problems.append(
            f"{train.name} has {len(seen)} class "
            f"({', '.join(sorted(seen)) or 'none'}; -1 counts as unlabelled); a "
            "classifier needs at least two"
        )
    for other in (splits.validation, splits.test):
        extra = sorted(_present(other) - seen) if other is not None else []
        if other is not None and extra:
            problems.append(
                f"{other.name} has classes without training images: "
                f"{', '.join(extra)}; add training images of these classes, or remove "
                "them"
            )
    if problems:
        raise DataError("; ".join(problems))


def _present(images: ImageSet) -> set[str]:
    if images.labels is None or images.class_names is None:
        return set()
    return {images.class_names[i] for i in np.unique(images.labels) if i >= 0}
