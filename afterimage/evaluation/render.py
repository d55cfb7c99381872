"""Reports as text that reads well in a terminal and as Markdown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

MAX_MATRIX = 20  # classes up to which the whole confusion matrix is readable
MAX_CONFUSIONS = 20
MACRO_F1 = "macro-F1 (classes present)"
"""The mean over the classes that occur in the labels; scikit-learn's also includes
those that are only predicted."""


def report_text(report: Mapping[str, Any]) -> str:
    """A `classification_report` as Markdown: measures, classes, confusions."""
    parts = [_measures(report), _classes(report["classes"])]
    names = [c["name"] for c in report["classes"]]
    if len(names) <= MAX_MATRIX:
        parts.append(_matrix(names, report["confusion"]))
    else:
        parts.append(_most_confused(names, report["confusion"]))
    if report["absent"]:
        parts.append(
            f"{len(report['absent'])} of {len(names)} classes have no example here and "
            f"are left out of macro-F1: {', '.join(report['absent'][:MAX_CONFUSIONS])}"
            + (" …" if len(report["absent"]) > MAX_CONFUSIONS else "")
        )
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with aligned columns; `|` in a cell is escaped."""
    text = [[str(c).replace("|", "\\|") for c in row] for row in [header, *rows]]
    width = [max(3, *(len(row[i]) for row in text)) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(r, width)) + " |" for r in text
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in width) + "|")
    return "\n".join(lines)


def percent(share: Mapping[str, float | int | None]) -> str:
    """`97.2 % (96.1-98.0)`: a value with its interval; None is shown as nan."""
    found = (share[key] for key in ("value", "low", "high"))
    value, low, high = (math.nan if v is None else 100 * v for v in found)
    return f"{value:.1f} % ({low:.1f}-{high:.1f})"


def _measures(report: Mapping[str, Any]) -> str:
    rows = [
        ("accuracy", percent(report["accuracy"])),
        (MACRO_F1, percent(report["macro_f1"])),
        (
            f"calibration error ({report['calibration_bins']} bins)",
            percent(report["calibration_error"]),
        ),
    ]
    return table([f"{report['examples']} examples", "value (95 % interval)"], rows)


def _classes(classes: Sequence[Mapping[str, Any]]) -> str:
    keys = ("precision", "recall", "f1")
    rows = [[c["name"], *(f"{c[k]:.3f}" for k in keys), c["support"]] for c in classes]
    return table(["class", *keys, "support"], rows)


def _matrix(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    rows = [[name, *counts] for name, counts in zip(names, confusion)]
    return table(["true \\ predicted", *names], rows)


def _most_confused(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    pairs = [
        (count, i, j)
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    pairs.sort(key=lambda p: (-p[0], p[1], p[2]))
    if not pairs:
        return "No confusions."
    rows = [(names[i], names[j], count) for count, i, j in pairs[:MAX_CONFUSIONS]]
    return table(["true", "predicted", "times"], rows)
