"""Reports as Markdown that is also readable in a terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

MAX_MATRIX = 20  # most classes for which the whole confusion matrix is readable
MAX_CONFUSIONS = 20
MACRO_F1 = "macro-F1 (classes present)"
"""The mean over the classes that occur in the labels; scikit-learn's also includes
those that are only predicted."""


def report_text(report: Mapping[str, Any]) -> str:
    """A `classification_report` as Markdown: metrics, classes, confusions."""
    classes, keys = report["classes"], ("precision", "recall", "f1")
    names = [c["name"] for c in classes]
    bins = report["calibration_bins"]
    measures = [
        ("accuracy", percent(report["accuracy"])),
        (MACRO_F1, percent(report["macro_f1"])),
        (f"calibration error ({bins} bins)", percent(report["calibration_error"])),
    ]
    each = [[c["name"], *(f"{c[k]:.3f}" for k in keys), c["support"]] for c in classes]
    parts = [
        table([f"{report['examples']} examples", "value (95 % interval)"], measures),
        table(["class", *keys, "support"], each),
    ]
    if len(names) <= MAX_MATRIX:
        matrix = [[name, *counts] for name, counts in zip(names, report["confusion"])]
        parts.append(table(["true \\ predicted", *names], matrix))
    else:
        parts.append(_most_confused(names, report["confusion"]))
    if report["absent"]:
        parts.append(
            f"{len(report['absent'])} of {len(names)} classes have no example and are "
            f"not part of macro-F1: {', '.join(report['absent'][:MAX_CONFUSIONS])}"
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


def _most_confused(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    pairs = sorted(
        (-count, i, j)
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if i != j and count
    )
    if not pairs:
        return "No confusions."
    rows = [(names[i], names[j], -count) for count, i, j in pairs[:MAX_CONFUSIONS]]
    return table(["true", "predicted", "times"], rows)


def probe_names(per_class: int) -> dict[str, str]:
    """What the probes of a pretraining run are called, best known first."""
    labels = "label" if per_class == 1 else "labels"
    return {
        "ridge_10": f"linear probe, {per_class} {labels} a class",
        "ridge": "linear probe, all labels",
        "knn": "kNN",
    }


def probe_lines(probes: Mapping[str, Any] | None) -> list[str]:
    """The `probes` of an encoder's manifest, a line for each; none without them."""
    if not probes:
        return []
    rank = f"effective rank {probes['effective_rank']:.1f} (centred)"
    accuracy = dict(probes.get("accuracy") or {})
    if not accuracy:
        return [f"{rank}; without labels, features cannot be compared"]
    ours = accuracy.pop("this encoder", {})
    lines = []
    for key, name in probe_names(probes.get("per_class", 10)).items():
        others = [
            f"{other} {100 * row[key]:.1f}"
            for other, row in accuracy.items()
            if key in row
        ]
        if key in ours:
            lines.append(f"{name}: {100 * ours[key]:.1f} % ({', '.join(others)})")
    about = f"on {probes['images']:,} held-out images of {probes['classes']} classes"
    return [*lines, f"{about}; {rank}"]


def representation_text(report: Mapping[str, Any]) -> str:
    """Accuracy by label budget, layers, alignment, and the settings used."""
    settings = report["settings"]
    about = (
        f"Accuracy in percent on {settings['test_images']:,} images of "
        f"{settings['test']}; probes are fitted to {settings['train']}. Mean ± "
        f"standard deviation over {settings['seeds']} draws of the labels."
    )
    chosen = (
        "Layers: each level, pooled by its mean or by the means of a grid (2x2 "
        "unless named otherwise), scored by ridge with all labels. `*` marks the "
        "layer used in the table above, the best on the held-out fifth of the "
        "training images."
    )
    parts = [about, _accuracy(report), chosen, _layers(report)]
    for name, found in report["alignment"].items():
        parts.append(
            f"Linear centred kernel alignment (CKA) between the levels of {name}:"
        )
        rows = [
            [layer, *(f"{value:.2f}" for value in row)]
            for layer, row in zip(found["layers"], found["cka"], strict=True)
        ]
        parts.append(table(["", *found["layers"]], rows))
    notes = [settings["choice"], *report["notes"]]
    return "\n\n".join([*parts, "\n".join(f"- {note}." for note in notes)])


def _accuracy(report: Mapping[str, Any]) -> str:
    rows = [
        [probe, name, *map(_cell, budgets.values())]
        for name, probes in report["accuracy"].items()
        for probe, budgets in probes.items()
    ]
    order = list(dict.fromkeys(row[0] for row in rows))
    rows.sort(key=lambda row: order.index(row[0]))  # stable: probe by probe
    *few, everything = next(iter(next(iter(report["accuracy"].values())).values()))
    header = [f"{name} a class" for name in few]
    return table(["probe", "features", *header, everything], rows)


def _cell(found: Mapping[str, Any]) -> str:
    spread = "" if found["std"] is None else f" ± {100 * found['std']:.1f}"
    return f"{100 * found['mean']:.1f}{spread}"


def _layers(report: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            row["layer"] + (" *" if row["layer"] == report["best"][name] else ""),
            row["dimensions"],
            f"{100 * row['validation']:.1f} %",
            percent(row["test"]),
            f"{row['effective_rank']:.1f}",
            row["collapsed"],
        ]
        for name, layers in report["layers"].items()
        for row in layers
    ]
    header = (
        "features|layer|dimensions|validation|test|effective rank (centred)|collapsed"
    )
    return table(header.split("|"), rows)
