"""Rows of results: what was measured, on which device, when, with which versions."""

import datetime
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

FOLDER = pathlib.Path(__file__).parent / "results"
_PACKAGES = (
    "afterimage",
    "jax",
    "flax",
    "optax",
    "grain",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "scikit-learn",
    "tokenizers",
    "torch",
)


@functools.cache
def device() -> str:
    """The machine in words: accelerator and count where there is one, else the CPU."""
    import jax

    first = jax.devices()[0]
    if first.platform != "cpu":
        return f"{jax.device_count()} x {first.device_kind}"
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return f"{_processor()}, {cores} core{'' if cores == 1 else 's'}"


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and relevant packages; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """This process's command line, as a user would type it.

    Without flags whose value is an absolute path: where things are on this machine.
    """
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    program = ["-m", spec.name] if spec else [os.path.basename(sys.argv[0])]
    given: list[str] = []
    for argument in sys.argv[1:]:
        if not os.path.isabs(argument):
            given.append(argument)
        elif given and given[-1].startswith("--"):
            given.pop()
    return shlex.join(["python", *program, *given])


def row(
    table: str,
    name: str,
    metric: str,
    values: float | Sequence[float],
    *,
    n: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One row: mean and standard deviation (n - 1) of `values` under `metric`.

    For a single value, std is None. Give `n` if the number of repeats is not the number
    of values. Device, date (UTC), versions and command are filled in; `more` is added.
    """
    values = [
        float(v) for v in ([values] if isinstance(values, int | float) else values)
    ]
    return {
        "table": table,
        "row": name,
        "metric": metric,
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values) if n is None else n,
        "device": device(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "command": command(),
        **more,
    }


def figure(entry: Mapping[str, Any], digits: int) -> str:
    """A row's mean ± std, to this many decimals."""
    spread = f" ± {entry['std']:.{digits}f}" if entry["std"] is not None else ""
    return f"{entry['mean']:.{digits}f}{spread}"


def read_results(name: str, *, folder: pathlib.Path = FOLDER) -> list[dict[str, Any]]:
    """The rows of NAME.json; none if it does not exist yet."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


def with_others(
    name: str, rows: Sequence[Mapping[str, Any]], *, folder: pathlib.Path = FOLDER
) -> list[Mapping[str, Any]]:
    """The stored rows that were not measured now, then those that were."""

    def key(one: Mapping[str, Any]) -> tuple[str, ...]:
        return one["table"], one["row"], one["metric"]

    new = set(map(key, rows))
    kept = [one for one in read_results(name, folder=folder) if key(one) not in new]
    return [*kept, *rows]


def write_results(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str | None = None,
    notes: str = "",
    folder: pathlib.Path = FOLDER,
) -> pathlib.Path:
    """Write NAME.json and NAME.md side by side; returns the JSON's path.

    Each file is written atomically.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.json"
    _replace(target, json.dumps(list(rows), indent=1, allow_nan=False) + "\n")
    _replace(folder / f"{name}.md", markdown(rows, title or name, notes))
    return target


def markdown(rows: Sequence[Mapping[str, Any]], title: str, notes: str = "") -> str:
    """A page, one table per (table, device, date, command): row, metric, mean, n."""
    parts = [f"# {title}\n"] + ([f"{notes.strip()}\n"] if notes else [])
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for entry in rows:
        key = tuple(entry[name] for name in ("table", "device", "date", "command"))
        groups.setdefault(key, []).append(entry)
    several, last = len({table for table, *_ in groups}) > 1, None
    for (table, where, when, how), entries in groups.items():
        if several and table != last:
            parts.append(f"## {table}\n")
        last = table
        used = ", ".join(f"{k} {v}" for k, v in entries[0]["versions"].items())
        parts.append(f"{where}, {when}. `{how}`\n\n{used}\n")
        lines = ["| row | metric | mean ± std | n |", "|---|---|---|---|"]
        for e in entries:
            figure = _figure(e["mean"], e["std"])
            lines.append(f"| {e['row']} | {e['metric']} | {figure} | {e['n']} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _figure(mean: float, std: float | None) -> str:
    def show(value: float) -> str:
        # Three significant figures of the mean set the decimals of both.
        decimals = 2 - math.floor(math.log10(abs(mean))) if mean else 3
        return f"{value:,.{min(max(decimals, 0), 6)}f}"

    return show(mean) + (f" ± {show(std)}" if std is not None else "")


def _replace(path: pathlib.Path, text: str) -> None:
    scratch = path.with_suffix(path.suffix + ".tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
