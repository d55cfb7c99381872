"""The figures of a pretraining run in plain words: what each means, good or bad."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from afterimage.pretrain.evaluation import (
    CONTINUED,
    HOG,
    OWN_VIEW,
    RAW,
    TRAINED,
    UNTRAINED,
)
from afterimage.report import Figure, logged

_MEANINGS = {
    "ridge_10": "A linear classifier on the features, taught with ten labels a class, "
    "is right on this share of held-out images.",
    "ridge": "The same, taught with the labels of all training images.",
    "knn": "On this share of held-out images, the most similar training images mostly "
    "have the right class.",
}


def figures(
    metrics: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    report: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, str],
    held_out: int,
    *,
    beside: bool,
) -> dict[str, Figure]:
    """{label: figure} of a run's last evaluation, the most telling ones first.

    `rows` are the lines of metrics.jsonl, `report` has the probes of each kind of
    features, `labels` are the names of the probes by key. `beside`: images are drawn
    only to look at, not to learn from.
    """
    found = {}
    for key, label in labels.items():
        if TRAINED in report:
            mark, hint = compared(report, key, held_out)
            value = f"{100 * report[TRAINED][key]['value']:.1f} %"
            found[label] = Figure(value, _MEANINGS[key], mark, hint)
    if "relative_loss" in metrics:
        name = "of the mean image's loss"
        found[name] = _relative(metrics["relative_loss"], beside)
    if "loss" in metrics:
        found["validation loss"] = _loss(metrics["loss"], logged(rows, "eval/loss"))
    if "effective_rank" in metrics:
        found["effective rank of the features"] = _rank(metrics["effective_rank"])
    if OWN_VIEW in metrics:
        found["images found by another view"] = _own_view(
            metrics[OWN_VIEW], logged(rows, f"eval/{OWN_VIEW}")
        )
    return found


def compared(
    report: Mapping[str, Mapping[str, Any]], key: str, images: int
) -> tuple[Any, str]:
    """(mark, hint): this encoder's probe beside what needs no training, or no further
    training.

    A difference counts if it is more than one standard error.
    """
    ours = report[TRAINED][key]["value"]
    others = {
        name: report[name][key]["value"]
        for name in (RAW, HOG, UNTRAINED, CONTINUED)
        if name in report
    }
    if not others:
        return "", ""
    best = max(others, key=lambda name: others[name])
    theirs = others[best]
    by = f"{best} {100 * theirs:.1f} %"
    without = "this run" if CONTINUED in others else "training"
    if ours - theirs > standard_error(ours, theirs, images):
        return "good", f"better than without {without} (at best {by})"
    if theirs - ours > standard_error(ours, theirs, images):
        return "bad", f"{by} without {without} is better"
    return "", f"no clear gain over {by}"


def standard_error(one: float, other: float, images: int) -> float:
    """Standard error of the difference of two shares, taken as independent."""
    return math.sqrt((one * (1 - one) + other * (1 - other)) / max(images, 1))


def _relative(value: float, beside: bool) -> Figure:
    meaning = (
        "How wrong the drawn images are: 0 is perfect, 1 is no better than always "
        "drawing the average image."
    )
    mark, hint = "", ""
    if beside:
        hint = "the features do not learn from this"
    elif value >= 0.95:
        mark, hint = "bad", "it has learned hardly anything"
    elif value <= 0.6:
        mark, hint = "good", "it has learned what images have in common"
    return Figure(f"{value:.3f}", meaning, mark, hint)


def _loss(value: float, curve: Sequence[tuple[int, float]]) -> Figure:
    meaning = (
        "What training makes small, on images it does not train on. Compare it only "
        "between runs with the same images and objective."
    )
    best = min(curve, key=lambda point: point[1], default=(0, value))
    mark, hint = "", ""
    if len(curve) > 2 and value > best[1] + 0.05 * abs(best[1]):
        mark = "bad"
        hint = f"it was lower, {best[1]:.4g}, at step {best[0]:,}: a shorter run may do"
    elif len(curve) > 2 and value <= best[1]:
        mark, hint = "good", "the lowest of the run"
    return Figure(f"{value:.4g}", meaning, mark, hint)


def _own_view(value: float, before: list[tuple[int, float]]) -> Figure:
    meaning = (
        "Of two augmented views of some images: the share of images whose nearest "
        "image in the other view is the same one. It needs no label, and marks the "
        "best checkpoint."
    )
    step, best = max(before, key=lambda point: point[1], default=(0, value))
    hint = f"it was {100 * best:.1f} % at step {step}" if best > value else ""
    return Figure(f"{100 * value:.1f} %", meaning, "", hint)


def _rank(value: float) -> Figure:
    meaning = (
        "In about how many independent ways the features of images differ. Near 1, all "
        "images look the same to the encoder."
    )
    mark, hint = "", ""
    if value < 2:
        mark, hint = "bad", "the features have collapsed"
    elif value >= 10:
        mark, hint = "good", "far from a collapse"
    return Figure(f"{value:.1f}", meaning, mark, hint)
