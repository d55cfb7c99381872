"""Several finished runs side by side: what differs, what they reached, their curves."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from afterimage.checkpoints import jsons, schemas
from afterimage.errors import UserError
from afterimage.report import logged, write_report
from afterimage.settings import as_mappings
from afterimage.training.rows import read_rows

_MEASURES = ("accuracy", "macro_f1", "calibration_error")
_CURVES = {
    "Training loss": "train/loss",
    "Validation loss": "eval/loss",
    "Validation accuracy": "eval/accuracy",
    "kNN accuracy": "eval/knn",
    "Ridge accuracy": "eval/ridge",
}
_LONGEST = 32
"""Characters of a value in the table of a terminal."""


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """What a run folder says of its run."""

    name: str
    kind: str
    settings: Mapping[str, Any]
    """Flat: `methods.dann.weight`."""
    figures: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]


def read_run(folder: str) -> FinishedRun:
    """A run as its folder has it; UserError where it is none.

    Raises CheckpointError for a config.json or results.json that is damaged.
    """
    path = pathlib.Path(folder)
    if not os.path.lexists(path / "config.json"):
        raise UserError(f"{folder} is no run folder: it has no config.json")
    cure = "restore it, or leave this run out"
    stored = jsons.read(path / "config.json", schemas.Config, cure)
    rows = read_rows(path / "metrics.jsonl", lambda note: None, keep_bad=False)
    figures = {}
    if os.path.lexists(path / "results.json"):
        results = jsons.read(path / "results.json", schemas.Results, cure)
        figures = dict(_scores(results))
    return FinishedRun(
        name=folder.rstrip("/"),
        kind=stored["kind"],
        settings=dict(_flat(stored["config"])),
        figures=figures or dict(_last_evaluation(rows)),
        rows=rows,
    )


def compare(folders: Sequence[str], out: str | None = None) -> str:
    """The table of the runs, for a terminal; with `out` also a page, as HTML.

    Raises UserError for fewer than two runs, or a folder that is none.
    """
    if len(folders) < 2:
        raise UserError("compare needs two or more run folders")
    runs = [read_run(folder) for folder in folders]
    figures = _table(runs, [run.figures for run in runs])
    differing = [row for row in _settings(runs) if len(set(row[1:])) > 1]
    parts = [_text(["", *(run.name for run in runs)], figures)]
    if differing:
        parts += ["Settings that differ", _text([], differing)]
    if out is not None:
        page = write_report(
            out,
            title="Comparison of runs",
            lead=", ".join(run.name for run in runs),
            headline={},
            curves={
                title: {run.name: logged(run.rows, key) for run in runs}
                for title, key in _CURVES.items()
            },
            logarithmic=("Training loss", "Validation loss"),
            grids={
                "Figures": (["", *(run.name for run in runs)], figures),
                "Settings that differ": (["", *(r.name for r in runs)], differing),
            },
            tables={f"All settings of {run.name}": run.settings for run in runs},
        )
        parts.append(f"Written: {page}")
    return "\n\n".join(parts)


def _table(
    runs: Sequence[FinishedRun], columns: Sequence[Mapping[str, Any]]
) -> list[list[str]]:
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [["stage", *(run.kind for run in runs)]]
    return rows + [[name, *(str(c.get(name, "–")) for c in columns)] for name in names]


def _settings(runs: Sequence[FinishedRun]) -> list[list[str]]:
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [
        [name, *(_shown(run.settings.get(name)) for run in runs)]
        for name in names
        if name != "out"
    ]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else str(value)


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of nested settings; a choice is its names, then theirs."""
    for key, value in settings.items():
        several = value if isinstance(value, list) else [value]
        if several and all(isinstance(one, Mapping) for one in several):
            chosen = as_mappings(value)
            yield f"{before}{key}", ", ".join(one["name"] for one in chosen)
            for one in chosen:
                inner = {k: v for k, v in one.items() if k not in ("name", "package")}
                yield from _flat(inner, f"{one['name']}.")
        else:
            yield f"{before}{key}", value


def _scores(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, figure with its 95 % interval) of a fine-tuning run."""
    for split in ("test", "validation"):
        report = results.get(split) or {}
        for measure in _MEASURES:
            share = report.get(measure) or {"value": None}
            if share["value"] is None:
                continue
            text = f"{share['value']:.1%}"
            if share["low"] is not None and share["high"] is not None:
                text += f" ({share['low']:.1%} to {share['high']:.1%})"
            yield f"{split} {measure.replace('_', ' ')}", text


def _last_evaluation(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for row in reversed(rows):
        found = {k[5:]: v for k, v in row.items() if k.startswith("eval/")}
        if found:
            yield "step", str(row["step"])
            for name, value in found.items():
                if isinstance(value, int | float):
                    yield name.replace("_", " "), f"{value:.4g}"
            return


def _text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with columns of the width of what is in them."""
    lines = [[_cut(cell) for cell in row] for row in ([head] if head else []) + [*rows]]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths)).rstrip()
        for line in lines
    )


def _cut(cell: str) -> str:
    return cell if len(cell) <= _LONGEST else f"…{cell[-_LONGEST + 1 :]}"
