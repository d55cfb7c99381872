"""The figures of a fine-tuned network in plain words, and its diagrams."""

from collections.abc import Mapping
from typing import Any

from afterimage.evaluation.text import MAX_MATRIX, percent
from afterimage.outputs import outputs_of_report
from afterimage.outputs.classes import FIGURES
from afterimage.report import (
    Diagram,
    Figure,
    Matrix,
    calibration_chart,
    scatter_chart,
)
from afterimage.report.parts import Part, Table

_MOST_CONFUSED = 20


def figures(scored: Mapping[str, Any]) -> dict[str, Figure | str]:
    """{name: value} of a report; of classes with what it means."""
    kind = outputs_of_report(scored)
    if kind.kind != "classes":
        return dict(kind.figures(scored))
    return {label: figure(key, scored) for key, label in FIGURES.items()}


def figure(measure: str, scored: Mapping[str, Any]) -> Figure:
    """A measure of a `classification_report`, with its interval and what it means."""
    share = scored[measure]
    value = percent(share)
    if share["value"] is None:
        return Figure(value)
    if measure == "accuracy":
        meaning = "The share that gets the right class."
        return Figure(value, meaning, *_hint(scored))
    if measure == "macro_f1":
        meaning = (
            "Like accuracy, but every class counts the same, however rare: the mean "
            "over classes of F1, which is high if few are missed and few wrongly named."
        )
        gap = scored["accuracy"]["value"] - share["value"]
        if gap > 0.1:
            return Figure(value, meaning, "bad", "rare classes fare worse")
        return Figure(value, meaning)
    meaning = (
        "How far its certainty is off on average. If it is 90 % sure, it should be "
        "right 90 times in 100."
    )
    if share["value"] <= 0.05:
        return Figure(value, meaning, "good", "its probabilities can be trusted")
    if share["value"] > 0.15:
        return Figure(value, meaning, "bad", "do not trust its probabilities")
    return Figure(value, meaning)


def _hint(scored: Mapping[str, Any]) -> tuple[Any, str]:
    """(mark, words): beside always saying the most frequent class."""
    most = max(scored["classes"], key=lambda one: one["support"])
    share = most["support"] / scored["examples"]
    said = f"always saying {most['name']} would give {100 * share:.1f} %"
    if scored["accuracy"]["low"] > share:
        return "good", said
    return "bad", f"no clear gain: {said}"


def diagrams(scored: Mapping[str, Any]) -> dict[str, Part]:
    """By heading: confusions and calibration of classes, or predicted numbers."""
    kind = outputs_of_report(scored).kind
    if kind == "regression":
        return _predicted(scored)
    return _confusions(scored) if kind == "classes" else {}


def _predicted(scored: Mapping[str, Any]) -> dict[str, Part]:
    """What was predicted for the test images, over what is true."""
    each = [one for one in scored["outputs"] if one.get("points")]
    said = (
        "On the dashed line a prediction is exact. Points in a flat row mean that the "
        "network always says about the same."
    )
    return {
        "Predicted and true" + (f": {one['name']}" if len(each) > 1 else ""): Diagram(
            said,
            scatter_chart(
                [(x, y) for x, y in one["points"]], f"Predicted over true {one['name']}"
            ),
        )
        for one in each
    }


def _confusions(scored: Mapping[str, Any]) -> dict[str, Part]:
    names = [one["name"] for one in scored["classes"]]
    found: dict[str, Part] = {}
    if len(names) <= MAX_MATRIX:
        found["Which classes it confuses"] = Matrix(
            "Each row is one true class; the columns say what its examples were taken "
            "for. Right answers are on the diagonal.",
            names,
            scored["confusion"],
        )
    elif rows := _confused(names, scored["confusion"]):
        found["Which classes it confuses"] = Table(
            ["it is", "it said", "times"], rows, "The most frequent mistakes."
        )
    if "calibration" in scored:
        error = percent(scored["calibration_error"])
        found["How sure it is, and how often right"] = Diagram(
            "On the dashed line it is right as often as it says. Below the line it is "
            "too sure of itself, above it not sure enough. The larger a point, the "
            f"more examples. Expected calibration error {error}.",
            calibration_chart(scored["calibration"], "Calibration"),
        )
    return found


def _confused(names: list[str], counts: list[list[int]]) -> list[list[Any]]:
    pairs = [
        (count, i, j)
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if count and i != j
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return [[names[i], names[j], n] for n, i, j in pairs[:_MOST_CONFUSED]]
