"""Label budgets: which labels a probe may see, and which of them it holds out."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Int64, Integer

from afterimage.data import choose_labels
from afterimage.data.sets import ImageSet

_FOLDS, _ALL_FOLDS_UP_TO = 5, 500
FOLD_RULE = (
    f"C: highest accuracy over {_FOLDS} stratified folds of the budget's own labels "
    f"(above {_ALL_FOLDS_UP_TO:,} labels: on one of the {_FOLDS}), then refitted to "
    "all of them; tried from the smallest until one falls behind in accuracy and "
    "likelihood both; C = 1 where no class has two labels. k: highest leave-one-out "
    "accuracy. Ridge penalty: least leave-one-out error; with all labels, least error "
    "on a held-out fifth"
)


@dataclasses.dataclass(frozen=True)
class Budget:
    """One number of labels a class; `draws` are the same size by different seeds."""

    name: str
    """As the column is named: the number of labels a class, or "all"."""
    draws: tuple[Int64[np.ndarray, " n"], ...]
    """Positions in the sample, one array a seed."""
    folds: tuple[Int32[np.ndarray, " n"], ...]
    """The fold of each of them, see `folds_of`."""


def label_budgets(
    sample: ImageSet, per_class: Sequence[int], *, seeds: int, seed: int
) -> tuple[list[Budget], list[str]]:
    """(budgets that `sample` has the labels for, sentences about those it has not).

    Each size is drawn with seeds `seed` … `seed + seeds - 1`; by one seed the smaller
    are parts of the larger. "all" is one draw: every label of the sample.
    """
    assert sample.labels is not None
    assert sample.class_names is not None
    counts = np.bincount(sample.labels, minlength=len(sample.class_names))
    fewest, budgets, left_out = int(counts.argmin()), [], []
    for size in sorted(set(per_class)):
        if counts.min() < size:
            left_out.append(
                f"{size} a class is left out: {sample.class_names[fewest]!r} has "
                f"{counts.min()} training images here"
            )
            continue
        draws = tuple(
            choose_labels(sample, per_class=size, seed=seed + i) for i in range(seeds)
        )
        budgets.append(_budget(str(size), draws, sample.labels, seed))
    everything = (np.arange(len(sample), dtype=np.int64),)
    return [*budgets, _budget("all", everything, sample.labels, seed)], left_out


def _budget(name: str, draws: tuple, labels: np.ndarray, seed: int) -> Budget:
    folds = [folds_of(labels[d], seed=seed + i) for i, d in enumerate(draws)]
    return Budget(name, draws, tuple(folds))


def folds_of(
    labels: Integer[np.ndarray, " n"], *, seed: int
) -> Int32[np.ndarray, " n"]:
    """The fold 0 … 4 that holds each example out, stratified; -1 if none does.

    No more folds than the largest class has examples; none where that is 1. Above
    500 examples only fold 0 is held out, all else is -1.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    number = min(_FOLDS, int(counts.max()))
    found = np.full(len(labels), -1, np.int32)
    if number < 2:
        return found
    start = 0  # classes follow one another round the folds, so that these are as large
    for label, count in zip(classes, counts):
        rows = rng.permutation(np.flatnonzero(labels == label))
        found[rows] = (start + np.arange(count)) % number
        start += count
    return np.where(found > 0, -1, found) if len(labels) > _ALL_FOLDS_UP_TO else found
