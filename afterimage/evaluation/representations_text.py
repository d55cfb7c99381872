"""A `representation_report` as Markdown that also reads well in a terminal."""

from collections.abc import Mapping
from typing import Any

from afterimage.evaluation.render import percent, table


def representation_text(report: Mapping[str, Any]) -> str:
    """Accuracy by label budget, layers, alignment, and how it was measured."""
    settings = report["settings"]
    about = (
        f"Accuracy in percent on {settings['test_images']:,} images of "
        f"{settings['test']}; probes learn from {settings['train']}. Mean ± standard "
        f"deviation over {settings['seeds']} draws of the labels."
    )
    chosen = (
        "Layers: every level pooled by its mean, or by the means of a grid (2x2 where "
        "no other is named); ridge "
        "with all labels. `*` is best on the held-out fifth of the training images, "
        "and is the layer in the table above: chosen with all training labels."
    )
    parts = [about, _accuracy(report), chosen, _layers(report)]
    for name, found in report["alignment"].items():
        parts.append(f"Centred kernel alignment (linear) between levels of {name}:")
        rows = [
            [layer, *(f"{value:.2f}" for value in row)]
            for layer, row in zip(found["layers"], found["cka"], strict=True)
        ]
        parts.append(table(["", *found["layers"]], rows))
    notes = [settings["choice"], *report["notes"]]
    return "\n\n".join([*parts, "\n".join(f"- {note}." for note in notes)])


def _accuracy(report: Mapping[str, Any]) -> str:
    rows = []
    for name, probes in report["accuracy"].items():
        for probe, budgets in probes.items():
            cells = [_cell(found) for found in budgets.values()]
            rows.append([probe, name, *cells])
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
