"""Which images train, validate, or keep their labels: balanced, a function of seed."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from afterimage.data.sets import UNLABELLED, ImageSet
from afterimage.errors import DataError, UserError


def stratified(
    labels: np.ndarray | None, size: int, fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " a"], Int64[np.ndarray, " b"]]:
    """Sorted positions (kept, held): `fraction` of each class is held, by seed.

    Each class gives its share to within one image (largest remainders first), and keeps
    at least one; the unlabelled count as one more class.
    """
    rng = np.random.default_rng(seed)
    labels = np.full(size, UNLABELLED) if labels is None else labels
    classes, counts = np.unique(labels, return_counts=True)
    share = fraction * counts
    held_counts = np.floor(share).astype(int)
    missing = max(round(fraction * size), 1) - held_counts.sum()
    for position in np.argsort(held_counts - share, kind="stable")[:missing]:
        held_counts[position] += 1
    held_counts = np.minimum(held_counts, counts - 1)
    held = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(classes, held_counts, strict=True)
    ]
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(size), chosen), chosen


def hold_out(images: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Cut a validation set: (train, validation), stratified where labelled, by seed.

    `fraction` in (0, 1) of each class goes to validation. A set too small to give one
    image away raises DataError.
    """
    if not 0 < fraction < 1:
        raise UserError(
            f"validation fraction {fraction} is not between 0 and 1; 0.1 holds out "
            "one image in ten"
        )
    kept, held = stratified(images.labels, len(images), fraction, seed)
    if not len(held):
        raise DataError(
            f"{images.name}: {len(images)} images are too few to hold out "
            f"{fraction:.0%} for validation; every class keeps at least one"
        )
    return images.subset(kept), images.subset(held)


def choose_labels(
    images: ImageSet,
    *,
    labels: int | None = None,
    per_class: int | None = None,
    classes: Sequence[int] | None = None,
    seed: int,
) -> Int64[np.ndarray, " k"]:
    """Sorted positions of a balanced subset of the labelled images, by seed.

    `labels` in all (spread over the classes to within one), or `per_class` of each; of
    `classes` alone, by number: of these the same as without. A smaller choice with the
    same seed is contained in a larger one. A class that has too few raises DataError
    and is named.
    """
    if (labels is None) == (per_class is None):
        raise UserError("give exactly one of labels and per_class")
    if images.labels is None or images.class_names is None:
        raise DataError(f"{images.name} has no labels to choose from")
    count = len(images.class_names)
    rng = np.random.default_rng(seed)
    # Which classes get the odd ones: by seed as well, not always the first.
    order = rng.permutation(count)
    if per_class is not None:
        wanted = np.full(count, per_class)
    else:
        assert labels is not None
        wanted = np.full(count, labels // count)
        wanted[order[: labels % count]] += 1
    if wanted.min() < 1:
        asked = f"labels={labels}" if per_class is None else f"per_class={per_class}"
        raise UserError(
            f"{asked} leaves a class of {images.name} without an image; its {count} "
            f"classes need at least {count} labels"
        )
    if classes is not None:
        wanted[np.setdiff1d(np.arange(count), classes)] = 0
    have = np.bincount(images.labels[images.labels >= 0], minlength=count)
    short = [
        f"{images.class_names[c]!r} has {have[c]}, {wanted[c]} asked"
        for c in np.flatnonzero(have < wanted)
    ]
    if short:
        raise DataError(
            f"{images.name} has too few labelled images for this choice: "
            f"{'; '.join(short)}. Ask for fewer labels"
        )
    chosen = [
        rng.permutation(np.flatnonzero(images.labels == c))[: wanted[c]]
        for c in range(count)
    ]
    return np.sort(np.concatenate(chosen))
