"""Records of runs, read from their folders, and comparisons between them."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from afterimage.checkpoints import manifest, schemas
from afterimage.errors import UserError
from afterimage.outputs import outputs_of_report
from afterimage.report.chart import Points
from afterimage.report.page import Grid, logged, notebook, write_report
from afterimage.report.parts import Table
from afterimage.settings import dotted, spelled
from afterimage.storage.reading import local
from afterimage.storage.urls import as_text, is_remote
from afterimage.training.metrics import read_rows

_WIDEST = 36  # characters of a cell in a terminal's table


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run of either stage, read from its folder; it may still be in progress."""

    path: pathlib.Path
    where: str
    """The path or URL that it was read from."""
    kind: str
    """The stage: "pretrain" or "finetune"."""
    settings: Mapping[str, Any]
    """Every setting by its name in the stage's config; settings of a choice, such as
    the objective, are mappings."""
    data: str
    """The name of the images; "" if they were never opened."""
    step: int
    """The last step that was logged or saved."""
    steps: int
    """Steps requested in the settings; 0 if they do not say."""
    finished: bool
    """Whether the final files exist."""
    figures: Mapping[str, float]
    """The last evaluation by metric; for a finished fine-tuning run also `test
    accuracy` and the like. Shares are in [0, 1]."""
    intervals: Mapping[str, tuple[float, float]]
    """The 95 % intervals of the figures that have one."""
    curves: Mapping[str, Points]
    """(step, value) of every logged number: `train/loss`, `eval/loss`, …"""
    picture: pathlib.Path | None
    """The last picture that an evaluation wrote."""


def read_run(folder: str | os.PathLike[str]) -> RunRecord:
    """The record of a run folder; nothing in it is written or locked.

    Raises UserError if the folder is not a run folder, CheckpointError if its
    config.json or results.json is damaged.
    """
    path = local(folder, "records")
    where = as_text(folder) if is_remote(folder) else str(path)
    if not (path / "config.json").is_file():
        raise UserError(
            f"{where} is not a run folder: it has no config.json. Give the folder that "
            "was --out of pretrain or finetune."
        )
    stored = schemas.read(path / "config.json", schemas.ConfigFile, "restore it")
    rows = read_rows(path / "metrics.jsonl", lambda note: None, keep_bad=False)
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    curves = {name: points for name in names if (points := logged(rows, name))}
    figures = {
        name.removeprefix("eval/"): points[-1][1]
        for name, points in curves.items()
        if name.startswith("eval/")
    }
    results, intervals = path / "results.json", {}
    ours = stored["kind"] == "finetune"  # other kinds have their own form
    if ours and results.is_file():
        stored_results = schemas.read(results, schemas.ResultsFile, "delete it")
        figures |= _final(stored_results)
        intervals = _intervals(stored_results)
    final = results.is_file()
    if not ours:  # its encoder, of whatever kind
        final = any(path.glob(f"*/{manifest.NAME}"))
    pictures = sorted((path / "pictures").glob("step-*.png"))
    logged_steps = [row["step"] for row in rows]
    return RunRecord(
        path=path,
        where=where,
        kind=stored["kind"],
        settings=stored["config"],
        data=(stored.get("data") or {}).get("name", ""),
        step=max([0, *logged_steps, *manifest.complete_steps(path)]),
        steps=asked if isinstance(asked := stored["config"].get("steps"), int) else 0,
        finished=final,
        figures=figures,
        intervals=intervals,
        curves=curves,
        picture=pictures[-1] if pictures else None,
    )


def comparison(records: Sequence[RunRecord]) -> Grid:
    """(header, rows) of one table: a row per run, with what differs between runs.

    Columns: the run, its step, the settings that differ between the runs, and the
    figures that every run has, or all figures if none is shared.

    Raises UserError for no runs.
    """
    differ, figures = list(differing(records)), _shared_figures(records)
    rows = [
        [
            record.where,
            f"{record.step:,}" + ("" if record.finished else " (not finished)"),
            *(_spelled(record.settings).get(name) for name in differ),
            *(_figure(record, name) for name in figures),
        ]
        for record in records
    ]
    return ["run", "step", *differ, *figures], rows


def differing(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """{setting: its value in each run} of the settings that differ, except `out`.

    A run without the setting, such as that of another objective, has None.
    """
    every = _settings(records)
    return {n: v for n, v in every.items() if n != "out" and any(x != v[0] for x in v)}


def _settings(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """{setting: its value in each run}."""
    if not records:
        raise UserError("no runs to compare: give at least one run folder.")
    settings = [_spelled(record.settings) for record in records]
    names = dict.fromkeys(name for one in settings for name in one)
    return {name: [one.get(name) for one in settings] for name in names}


def _shared_figures(records: Sequence[RunRecord]) -> list[str]:
    """The figures that every run has, or all of them if none is shared."""
    shared = [n for n in records[0].figures if all(n in r.figures for r in records)]
    return shared or list(dict.fromkeys(n for r in records for n in r.figures))


def comparison_text(records: Sequence[RunRecord]) -> str:
    """The table of `comparison` for a terminal: a column per run."""
    header, rows = comparison(records)
    columns = [list(map(_cell, column)) for column in [header, *rows]]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths)).rstrip()
        for line in zip(*columns)
    )


def _spelled(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {spelled(path): value for path, value in dotted(settings).items()}


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "–"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = "–" if value is None else text
    return text if len(text) <= _WIDEST else f"…{text[-_WIDEST + 1 :]}"


def _figure(record: RunRecord, name: str) -> float | str | None:
    if name not in record.intervals:
        return record.figures.get(name)
    low, high = record.intervals[name]
    return f"{record.figures[name]:.4f} ({low:.4f} to {high:.4f})"


def write_comparison(
    path: str | os.PathLike[str], records: Sequence[RunRecord]
) -> pathlib.Path:
    """Write one page: figures and settings of all runs, and their curves together.

    Charts show metrics that at least two runs have logged, evaluations first.
    """
    differ, every = differing(records), _settings(records)
    names = _short([record.where for record in records])
    same = {name: values[0] for name, values in every.items() if name not in differ}
    unfinished = [name for name, r in zip(names, records) if not r.finished]
    note = "Settings that are the same in all runs are folded below."
    return write_report(
        pathlib.Path(path),
        title=f"{len(records)} runs side by side",
        lead="What they reached, and in which settings they differ.",
        facts={
            name: f"{record.kind} on {record.data or 'images'}, {record.where}"
            for name, record in zip(names, records)
        },
        parts={
            "What they reached": _reached(records, names, unfinished),
            "Settings that differ": Table(
                ["setting", *names], [[k, *v] for k, v in differ.items()], note, differ
            )
            if differ
            else Table(["setting", *names], [], "All settings are the same."),
        },
        curves=_together(records, names),
        logarithmic=[n for r in records for n in r.curves if n.endswith("loss")],
        pictures={
            f"Pictures of {name}": (
                f"{record.where}, after step {_step_of(record.picture):,}",
                record.picture,
            )
            for name, record in zip(names, records)
            if record.picture is not None
        },
        tables={f"The {len(same)} settings that are the same": same} if same else {},
    )


def _reached(
    records: Sequence[RunRecord], names: Sequence[str], unfinished: Sequence[str]
) -> Table:
    """A row for each figure, a column for each run."""
    rows = [["step", *(f"{record.step:,}" for record in records)]]
    rows += [
        [figure, *(_figure(record, figure) for record in records)]
        for figure in sorted(_shared_figures(records), key=_not_of_test)
    ]
    note = "The last evaluation of each run; in brackets 95 % intervals."
    if unfinished:
        note += f" Not finished: {', '.join(unfinished)}."
    return Table(["", *names], rows, note)


def _not_of_test(figure: str) -> bool:
    return not figure.startswith("test ")


def _together(
    records: Sequence[RunRecord], names: Sequence[str]
) -> dict[str, dict[str, Points]]:
    """{metric: {run: its curve}} of what at least two runs have logged, unless no run
    logged it twice, or it is 0 all the time, such as the number of skipped steps."""
    counts = collections.Counter(
        name for r in records for name, c in r.curves.items() if any(v for _, v in c)
    )
    least = min(2, len(records))
    some = [n for n in counts if counts[n] >= least and not n.startswith("time/")]
    some = [n for n in some if any(len(r.curves.get(n, ())) > 1 for r in records)]
    some.sort(key=lambda name: not name.startswith("eval/"))
    # A run without the metric keeps its place, so that it has one colour everywhere.
    return {
        metric: {name: r.curves.get(metric, ()) for name, r in zip(names, records)}
        for metric in some
    }


def _short(paths: Sequence[str]) -> list[str]:
    """The paths without the folders that all share; as they are if two are the same."""
    parts = [tuple(path.split("/")) for path in paths]
    shared = 0
    while len({one[: shared + 1] for one in parts}) == 1 and shared < len(parts[0]) - 1:
        shared += 1
    names = ["/".join(one[shared:]) for one in parts]
    return names if len(set(names)) == len(names) else list(paths)


_CHARTS = {
    "Loss": {"training": "train/loss", "validation": "eval/loss"},
    "Accuracy": {"training": "train/accuracy", "validation": "eval/accuracy"},
    "Probe accuracy": {"kNN": "eval/knn", "ridge probe": "eval/ridge"},
}


def run_html(folder: str | os.PathLike[str]) -> str:
    """A run for a notebook cell: its curves, last picture and figures."""
    record = read_run(folder)
    picture = record.picture
    return notebook(
        title=f"{record.kind} on {record.data}",
        lead=record.where,
        picture=picture and (f"After step {_step_of(picture):,}", picture),
        curves={
            chart: {label: record.curves.get(key, ()) for label, key in series.items()}
            for chart, series in _CHARTS.items()
        },
        logarithmic=["Loss"],
        grids={"Figures": (["", "value"], list(record.figures.items()))},
        unfinished=None if record.finished else (record.step, record.steps),
    )


def _intervals(results: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The intervals of the figures in `_final` that have one."""
    return {
        name: (low, high)
        for name, share in _shares(results).items()
        if (low := share["low"]) is not None
        and (high := share["high"]) is not None
        and share["value"] is not None
    }


def _shares(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {
        f"{split} {name}": share
        for split in ("validation", "test")
        if results[split] is not None
        for name, share in outputs_of_report(results[split])
        .shares(results[split])
        .items()
    }


def _final(results: Mapping[str, Any]) -> dict[str, float]:
    """Figures of results.json by name: `test accuracy`, `forgetting`, …"""
    found = {name: share["value"] for name, share in _shares(results).items()}
    for name in ("average_accuracy", "forgetting", "forward_transfer"):
        found[name.replace("_", " ")] = results.get("continual", {}).get(name)
    if results.get("episodes") is not None:
        row = results["episodes"]["accuracy"][results["episodes"]["method"]]
        found["accuracy on held-out episodes"] = row["value"]
    return {name: value for name, value in found.items() if value is not None}


def _step_of(picture: pathlib.Path | None) -> int:
    number = picture.stem.removeprefix("step-") if picture is not None else ""
    return int(number) if number.isdecimal() else 0
