"""Images that a classifier got right and wrong, with where it looked, for the page."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from afterimage.checkpoints.names import shortened
from afterimage.classifier import load_classifier
from afterimage.data import ImageSet
from afterimage.finetune.scoring import softmax
from afterimage.pictures import displayable
from afterimage.report import Gallery, Tile
from afterimage.training.batches import spaced

_RIGHT, _WRONG = 8, 12
_SHARE = 200
"""Images trained on for each one explained; a shorter run explains none."""
_CAPTION = 28  # characters of a class name


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """Labelled images and a classifier's logits."""

    images: ImageSet
    logits: Float[np.ndarray, "n classes"]


def examples(
    scored: Scored,
    names: Sequence[str],
    classifier: pathlib.Path,
    *,
    trained: int,
) -> dict[str, Gallery]:
    """{heading: images}: the surest mistakes, and right ones of several classes.

    Beside each image is where the evidence for the predicted class is, by the stored
    `classifier`, if the run `trained` on many more images than that takes.
    """
    assert scored.images.labels is not None
    truth, p = np.asarray(scored.images.labels), softmax(scored.logits)
    predicted, sure = p.argmax(1), p.max(1)
    if not np.isfinite(p).all():
        return {}
    wrong, right = chosen(truth, predicted, sure)
    rows = np.concatenate([wrong, right])
    pixels, seen = _pictures(scored.images, rows, classifier, trained)
    tiles = []
    for row, image in zip(rows, pixels):
        said, known = (
            shortened(names[int(label[row])], _CAPTION) for label in (predicted, truth)
        )
        hit = bool(predicted[row] == truth[row])
        caption = f"{said}, {100 * sure[row]:.0f} % sure"
        caption += "" if hit else f"; it is {known}"
        tiles.append(Tile.of(image, caption, "good" if hit else "bad"))
    where = (
        " Right half: bright where the network found evidence for the class it said."
        if seen
        else ""
    )
    mistakes, known = tiles[: len(wrong)], tiles[len(wrong) :]
    count = int((predicted != truth).sum())
    found = {}
    if mistakes:
        note = (
            f"The surest of {count:,} mistakes among {len(truth):,} images. Look for "
            f"wrong labels, and for what misleads the network.{where}"
        )
        found["Mistakes"] = Gallery(note, [("", mistakes)], wide=seen)
    if known:
        note = f"For some classes the image it is surest of.{where}"
        found["Right answers"] = Gallery(note, [("", known)], wide=seen)
    return found


def chosen(
    truth: np.ndarray, predicted: np.ndarray, sure: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(rows of mistakes, rows of right answers): the surest mistakes first, and of
    several classes the surest right answer."""
    miss = np.flatnonzero(predicted != truth)
    wrong = miss[np.argsort(-sure[miss], kind="stable")][:_WRONG]
    hit = np.flatnonzero(predicted == truth)
    classes = np.unique(truth[hit])
    right = []
    for label in classes[spaced(len(classes), _RIGHT)]:
        mine = hit[truth[hit] == label]
        right.append(mine[sure[mine].argmax()])
    return wrong, np.array(right, np.int64)


def _pictures(
    images: ImageSet, rows: np.ndarray, classifier: pathlib.Path, trained: int
) -> tuple[Sequence[np.ndarray], bool]:
    """(pictures, whether they show where the network looked)."""
    pixels = images.gather(rows)
    if len(rows) * _SHARE > trained:
        return list(pixels), False
    found = load_classifier(classifier).explain(pixels)
    if np.ptp(found.heat, axis=(1, 2)).max() <= 1e-3 * np.abs(found.heat).max():
        return list(pixels), False  # the last map has one site: everywhere alike
    plain = found.images.astype(np.float32)
    plain = displayable(plain / 255 if found.images.dtype == np.uint8 else plain)
    plain = np.broadcast_to(plain, found.overlay.shape)
    return list(np.concatenate([plain, found.overlay], axis=2)), True
