"""Losses and scores of a class at every pixel; pixels of the class `IGNORED` count
nowhere."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from afterimage.data.augmentations import resampling, spec_pieces
from afterimage.errors import UserError
from afterimage_segmentation.data import IGNORED

_SMOOTH = 1.0
"""Pixels added above and below in the Dice loss, so that rare classes do not jump."""


def cross_entropy(
    logits: Float[Array, "b h w k"], truth: Integer[Array, "b h w"]
) -> Float[Array, ""]:
    """The mean of -log p(true class) over the pixels that count; 0 if none does."""
    counts = truth != IGNORED
    own = jnp.where(counts, truth, 0).astype(jnp.int32)[..., None]
    each = -jnp.take_along_axis(jax.nn.log_softmax(logits), own, -1)[..., 0]
    return jnp.where(counts, each, 0).sum() / jnp.maximum(counts.sum(), 1)


def dice(
    logits: Float[Array, "b h w k"], truth: Integer[Array, "b h w"]
) -> Float[Array, ""]:
    """1 - mean_c (2 Σ p_c t_c + 1) / (Σ p_c + Σ t_c + 1), sums over the whole batch.

    The mean is over the classes in the batch. Soft Dice (Milletari et al. 2016); summed
    with the cross-entropy and over the batch as in nnU-Net (Isensee et al. 2021).
    """
    counts = (truth != IGNORED)[..., None]
    t = jax.nn.one_hot(truth, logits.shape[-1]) * counts
    p = jax.nn.softmax(logits) * counts
    both, own, said = (x.sum((0, 1, 2)) for x in (p * t, t, p))
    each = (2 * both + _SMOOTH) / (own + said + _SMOOTH)
    present = own > 0
    return 1 - jnp.where(present, each, 0).sum() / jnp.maximum(present.sum(), 1)


def confusion(
    predicted: Integer[Array, "b h w"],
    truth: Integer[Array, "b h w"],
    classes: int,
) -> Int[Array, "k k"]:
    """Pixels by true class (rows) and predicted class (columns), of one batch."""
    place = truth.astype(jnp.int32) * classes + predicted
    place = jnp.where(truth == IGNORED, classes**2, place)
    counts = jnp.bincount(place.ravel(), length=classes**2 + 1)
    return counts[:-1].reshape(classes, classes)


def scores(counts: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Accuracy of pixels, IoU by class, and its mean, from a confusion matrix.

    IoU_c = true positives / (true positives + false positives + false negatives); None
    for a class that is neither in the truth nor predicted, which the mean leaves out.
    """
    hit = np.diag(counts)
    either = counts.sum(0) + counts.sum(1) - hit
    iou = [float(h / e) if e else None for h, e in zip(hit, either)]
    known = [value for value in iou if value is not None]
    return {
        "pixels": int(counts.sum()),
        "accuracy": float(hit.sum() / max(1, counts.sum())),
        "miou": float(np.mean(known)) if known else 0.0,
        "iou": dict(zip(names, iou)),
        "confusion": counts.tolist(),
    }


Paired = Callable[[Array, Array, Array], tuple[Array, Array]]
"""augment(key, images [b, h, w, c] in [0, 1], truth [b, h, w]) -> the same, moved."""
_COLOURS = "afterimage.data.augmentations.colours"


def paired_augment(spec: str) -> Paired:
    """The augmentations of a spec, of images and truth alike.

    Movements are joined and move both, images interpolated and the truth by its nearest
    pixel. Changes of colour are of images alone. Raises UserError for others.
    """
    pieces = [piece for piece in spec_pieces(spec) if piece.text != "none"]
    moves = [
        (p.thing, p.values) for p in pieces if isinstance(p.thing, resampling.Movement)
    ]
    others = [p for p in pieces if not isinstance(p.thing, resampling.Movement)]
    wrong = [p.text for p in others if p.thing.__module__ != _COLOURS]
    if wrong:
        raise UserError(
            f"augment={spec}: {', '.join(wrong)} would move images away from their "
            "masks; use movements such as crop, flip, rotate, zoom, translate, and "
            "changes of colour such as color, brightness, grey"
        )
    straight = all(move.straight for move, _ in moves)
    continues = any(move.continues for move, _ in moves)

    def augment(key: Array, images: Array, truth: Array) -> tuple[Array, Array]:
        first, *keys = jax.random.split(key, 1 + len(others))
        if moves:
            count, height, width, _ = images.shape
            size = height, width
            whole, now = resampling.composed(first, moves, count, size, None)
            beyond: Mapping[str, Any] = {} if straight else {"continues": continues}
            move = resampling.straightly if straight else resampling.resample
            images = move(images, whole, now, **beyond)
            truth = resampling.nearest(truth, whole, now, continues=continues)
        for key, piece in zip(keys, others):
            images = piece(key, images)
        return images, truth

    return augment
