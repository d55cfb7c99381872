"""Average precision as COCO's evaluation (pycocotools' `COCOeval`) defines it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Least IoU of a match; the mean over them is mAP."""
_RECALLS = np.linspace(0, 1, 101)
MOST = 100
"""Boxes that count of an image, for each class: those with the highest scores."""


def overlaps(
    found: Float[np.ndarray, "n 4"],
    truth: Float[np.ndarray, "m 4"],
    crowd: Bool[np.ndarray, " m"],
) -> Float[np.ndarray, "n m"]:
    """IoU of boxes (x1, y1, x2, y2); with a crowd, the share of the found box in it."""
    low = np.maximum(found[:, None, :2], truth[None, :, :2])
    high = np.minimum(found[:, None, 2:], truth[None, :, 2:])
    both = np.prod(np.maximum(high - low, 0), -1)
    areas, others = (np.prod(box[:, 2:] - box[:, :2], -1) for box in (found, truth))
    union = areas[:, None] + np.where(crowd, 0, others - both)
    return both / np.maximum(union, 1e-12)


def matches(
    iou: Float[np.ndarray, "n m"], crowd: Bool[np.ndarray, " m"]
) -> tuple[Bool[np.ndarray, "t n"], Bool[np.ndarray, "t n"]]:
    """(right, counts) of found boxes, best first, at each threshold.

    Each takes the free object of the largest IoU, else a crowd, which stays free; then
    the box does not count.
    """
    count, objects = iou.shape
    right = np.zeros((len(THRESHOLDS), count), bool)
    counts, taken = ~right, np.zeros((len(THRESHOLDS), objects), bool)
    least = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    for n in range(count if objects else 0):
        fits = (iou[n] >= least) & ~taken
        real = fits & ~crowd
        right[:, n] = real.any(1)
        counts[:, n] = right[:, n] | ~fits.any(1)
        # Of equal ones the last, as in COCOeval.
        reverse = np.where(real, iou[n], -1.0)[:, ::-1]
        best = objects - 1 - reverse.argmax(1)
        taken[np.arange(len(best)), best] |= right[:, n]
    return right, counts


def average_precision(
    truth: Sequence[np.ndarray], found: Sequence[np.ndarray], names: Sequence[str]
) -> dict[str, Any]:
    """{"map", "map50", "map75", "ap": {class: its AP}} over images.

    `truth` has rows (x1, y1, x2, y2, class), the class k of a crowd as -2 - k; `found`
    (x1, y1, x2, y2, class, score). An array for each image. The AP of a class without
    objects is None, and the means leave it out; without any, they are 0.
    """
    each = np.full((len(names), len(THRESHOLDS)), np.nan)
    for k in range(len(names)):
        scores, results, objects = [], [], 0
        for own, boxes in zip(truth, found, strict=True):
            own = own[(own[:, 4] == k) | (own[:, 4] == -2 - k)]
            boxes = boxes[boxes[:, 4] == k]
            boxes = boxes[np.argsort(-boxes[:, 5], kind="stable")[:MOST]]
            crowd = own[:, 4] < 0
            iou = overlaps(boxes[:, :4], own[:, :4], crowd)
            results.append(np.stack(matches(iou, crowd)))
            scores.append(boxes[:, 5])
            objects += int((~crowd).sum())
        if objects:
            order = np.argsort(-np.concatenate(scores), kind="stable")
            right, counts = np.concatenate(results, -1)[:, :, order]
            each[k] = [_area(r[c], objects) for r, c in zip(right, counts)]
    known = each[~np.isnan(each[:, 0])]
    mean = known.mean(0) if len(known) else np.zeros(len(THRESHOLDS))
    ap = [None if np.isnan(row[0]) else float(row.mean()) for row in each]
    means = {"map": mean.mean(), "map50": mean[0], "map75": mean[5]}
    return {n: float(v) for n, v in means.items()} | {"ap": dict(zip(names, ap))}


def _area(right: Bool[np.ndarray, " n"], objects: int) -> float:
    """The mean precision at 101 recalls; a precision is the best at no less recall."""
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(hits / objects, _RECALLS, side="left")
    return float(np.append(precision, 0)[place].mean())
