"""Fills the tables of README.md and docs/ from benchmarks/results/*.json.

`python -m benchmarks.readme` rewrites the text between `<!-- NAME table -->` and
`<!-- end -->`; `--check` only compares, as a test does. The commands that measured a
table follow it; `<!-- NAME short table -->` links to them instead.
"""

import argparse
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import results
from benchmarks.gains import gains_table
from benchmarks.published import published_table
from benchmarks.reliability.record import peers_table
from benchmarks.results import figure

README = pathlib.Path(__file__).parent.parent / "README.md"
Rows = Sequence[Mapping[str, Any]]
WHAT_LEARNS = {
    "raw pixels": "a linear classifier on the pixels",
    "random weights": "on the untrained encoder's features",
    "HOG": "on histograms of gradients",
    "pretrained": "on the pretrained encoder's features, joined with patches and HOG",
    "scratch": "the whole network, from random weights",
    "fine-tuned": "the whole network, from the pretrained encoder",
}


def _source(rows: Rows) -> str:
    """Command, device and date, once per command.

    Rows measured separately with `--only` share the command that measures all of them;
    the results hold each row's own.
    """
    whole = {_whole(entry["command"]) for entry in rows}
    if len(whole) == 1:
        on, at = ({e[name]: None for e in rows} for name in ("device", "date"))
        return f"`{whole.pop()}`, {' and '.join(on)}, {' and '.join(at)}."
    said = dict.fromkeys(
        f"`{entry['command']}`, {entry['device']}, {entry['date']}" for entry in rows
    )
    return "; ".join(said) + "."


def _whole(command: str) -> str:
    """The command for all rows of its tables, with options in a fixed order."""
    program, *options = re.split(r" (?=--)", command)
    kept = [option for option in options if not option.startswith("--only ")]
    return " ".join([program, *sorted(kept)])


def _link(rows: Rows, page: pathlib.Path, name: str) -> str:
    """Devices, dates, and a link from `page` to the commands in the results file."""
    devices = " and ".join(dict.fromkeys(entry["device"] for entry in rows))
    dates = " to ".join(
        sorted({min(e["date"] for e in rows), max(e["date"] for e in rows)})
    )
    path = os.path.relpath(results.FOLDER / f"{name}.md", page.parent)
    return f"{devices}, {dates} ([commands]({pathlib.Path(path).as_posix()}))."


def demo_table(rows: Rows, source: str = "") -> str:
    """Test accuracy of each kind of features, and of the network."""
    lines = ["| row | what is trained | test accuracy, % |", "|---|---|---|"]
    lines += [
        f"| {entry['row']} | {WHAT_LEARNS[entry['row']]} | {figure(entry, 1)} |"
        for entry in rows
    ]
    return "\n".join(lines) + f"\n\nOne run. {source or _source(rows)}"


def speed_table(rows: Rows, source: str = "") -> str:
    """Milliseconds per step, and both ratios, of each model and batch size."""
    cases: dict[str, dict[str, Mapping[str, Any]]] = {}
    for entry in rows:
        cases.setdefault(entry["row"], {})[entry["metric"]] = entry
    lines = [
        "| model, image, batch | ms per step | time / best PyTorch time "
        "| speed-up over plain Flax |",
        "|---|---|---|---|",
    ]
    for name, case in cases.items():
        ours = figure(case["afterimage ms per step"], 0)
        torch = figure(case["time_ratio_to_best_torch"], 2)
        flax = figure(case["speedup_over_plain_flax"], 2)
        lines.append(f"| {name} | {ours} | {torch} | {flax} |")
    return "\n".join(lines) + f"\n\nMean ± std of rounds. {source or _source(rows)}"


def plain_table(rows: Rows, source: str = "") -> str:
    """One line per row: its figures, and the seconds per run."""
    timed = any("seconds" in entry for entry in rows)
    metrics = list(dict.fromkeys(entry["metric"] for entry in rows))
    header = ["row", *metrics, *(["seconds a run"] if timed else [])]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name in dict.fromkeys(entry["row"] for entry in rows):
        mine = {entry["metric"]: entry for entry in rows if entry["row"] == name}
        figures = [figure(mine[m], 1) if m in mine else "–" for m in metrics]
        seconds = [entry["seconds"] for entry in mine.values() if "seconds" in entry]
        spent = [f"{seconds[0]:.0f}" if seconds else "–"] if timed else []
        lines.append(f"| {' | '.join([name, *figures, *spent])} |")
    return _with_source(lines, rows, source)


def labels_table(rows: Rows, source: str = "") -> str:
    """One line per mode, one column per number of labels."""
    cases: dict[str, dict[str, Mapping[str, Any]]] = {}
    for entry in rows:
        mode, _, labels = entry["row"].rpartition("-")
        cases.setdefault(mode, {})[labels] = entry
    columns = list(dict.fromkeys(e["row"].rpartition("-")[2] for e in rows))
    small = {c for case in cases.values() for c in case if case[c]["mean"] < 1}
    lines = [
        "| mode | " + " | ".join(f"{labels} labels" for labels in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for mode, case in cases.items():
        figures = [
            figure(case[c], 1 + (c in small)) if c in case else "–" for c in columns
        ]
        lines.append(f"| {mode} | {' | '.join(figures)} |")
    return _with_source(lines, rows, source)


def _with_source(lines: list[str], rows: Rows, source: str) -> str:
    metrics = {entry["metric"] for entry in rows}
    what = f"{metrics.pop()}, mean" if len(metrics) == 1 else "mean"
    what = what[0].upper() + what[1:]
    *fewer, most = map(str, sorted({entry["n"] for entry in rows}))
    counts = f"{', '.join(fewer)} or {most}" if fewer else most
    seeds = "1 seed" if counts == "1" else f"{counts} seeds"
    said = f"{what} ± std of {seeds}. {source or _source(rows)}"
    return "\n".join(lines) + f"\n\n{said}"


def _of(results_name: str, table: str | None = None) -> Rows:
    """The rows of a results file, or of one table in it."""
    rows = results.read_results(results_name)
    return [entry for entry in rows if table in (None, entry["table"])]


Make = Callable[[Rows, str], str]
TABLES: dict[str, tuple[Make, str, str | None]] = {
    "demo": (demo_table, "demo", None),
    "speed": (speed_table, "speed", None),
    "few-labels": (labels_table, "transfer", "few-labels"),
    "few-labels-cifar10": (labels_table, "transfer", "few-labels-cifar10"),
    "mnist-labels": (labels_table, "representations", "mnist-labels"),
    "mnist-masci": (labels_table, "representations", "mnist-masci"),
    "cifar10-masci": (labels_table, "representations", "cifar10-masci"),
    "cifar10": (plain_table, "representations", "cifar10"),
    "gains": (lambda *_: gains_table(), "transfer", None),
    "published": (lambda *_: published_table(), "representations", None),
    "peers": (lambda rows, _: peers_table(rows), "reliability", "peers"),
    "continued": (plain_table, "continued", None),
    "cifar10-patches": (plain_table, "representations", "cifar10-patches"),
    **{
        f"anomalies-{name}": (plain_table, "anomalies", name)
        for name in ("mnist", "fashion", "defects")
    },
    "sound-letters": (plain_table, "sound", "letters"),
    **{
        name: (plain_table, "transfer", name)
        for name in (
            "mnist-usps",
            "mnist-usps-shift",
            "usps-mnist",
            "mnist-coloured",
            "omniglot-5w1s",
            "omniglot-5w5s",
            "split-mnist-class",
            "split-mnist-task",
            "distillation-mnist",
        )
    },
}
"""{table: (its function, the results file, the table in it)}"""
_MARKS = re.compile(r"<!-- ([\w-]+)( short)? table -->.*?<!-- end -->", re.DOTALL)


def filled(page: pathlib.Path) -> str:
    """The text of a page, with each marked table filled from the results."""

    def whole(mark: re.Match[str]) -> str:
        name, short = mark[1], mark[2] or ""
        if name not in TABLES:
            sys.exit(f"a page marks the table {name!r}; known: {', '.join(TABLES)}")
        make, file, table = TABLES[name]
        rows = _of(file, table)
        text = make(rows, _link(rows, page, file) if short else "")
        return f"<!-- {name}{short} table -->\n\n{text}\n\n<!-- end -->"

    return _MARKS.sub(whole, page.read_text())


def pages() -> list[pathlib.Path]:
    """The pages with marked tables."""
    root = README.parent
    found = [README, *sorted((root / "docs").rglob("*.md"))]
    return [page for page in found if _MARKS.search(page.read_text())]


def main() -> None:
    """Rewrites the pages, or compares them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    check, differ = parser.parse_args().check, []
    for page in pages():
        text = page.read_text()
        new = filled(page)
        if new != text:
            differ.append(page.name)
            if not check:
                page.write_text(new)
    if check and differ:
        sys.exit(f"{', '.join(differ)} differ: python -m benchmarks.readme")


if __name__ == "__main__":
    main()
