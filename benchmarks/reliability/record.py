"""Outcomes as rows of results, and as the table in the guide."""

import contextlib
import fcntl
import json
import os
import pathlib
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.reliability.faults import FAULTS
from benchmarks.reliability.jobs import BATCH_SIZE, JOBS, SAVE_EVERY, STEPS, Job
from benchmarks.results import FOLDER, read_results, row, write_results

NAME = "reliability"
_VERSIONS = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def versions_of(job: Job, python: str) -> dict[str, str]:
    """Versions of Python and the packages that this job depends on."""
    run = [python, "-c", _VERSIONS, *job.packages]
    return json.loads(subprocess.run(run, capture_output=True, check=True).stdout)


def command_of(job: str, times: int) -> str:
    """The command that runs all faults of a job; PYTHON is the peers' interpreter."""
    peers = "" if JOBS[job].ours else " --peers-python PYTHON"
    return f"python -m benchmarks.reliability --only {job} --times {times}{peers}"


def outcome_row(
    job: str, fault: str, outcomes: Sequence[str], versions: Mapping[str, str]
) -> dict[str, Any]:
    """A row for one job and one fault; `outcomes` are in the order of the repeats."""
    return row(
        "peers",
        f"{fault}, {job}",
        "repeats",
        float(len(outcomes)),
        n=len(outcomes),
        job=job,
        fault=fault,
        outcomes=dict(Counter(outcomes).most_common()),
        seeds=list(range(len(outcomes))),
        steps=STEPS,
        save_every=SAVE_EVERY,
        batch_size=BATCH_SIZE,
        versions=dict(versions),
        command=command_of(job, -(-len(outcomes) // FAULTS[fault].factor)),
    )


def record(entry: Mapping[str, Any], *, folder: pathlib.Path = FOLDER) -> None:
    """Stores a row, replacing the one that it repeats."""
    order = [f"{fault}, {job}" for fault in FAULTS for job in JOBS]
    with _alone(folder):
        rows: dict[str, Mapping[str, Any]] = {
            e["row"]: e for e in read_results(NAME, folder=folder)
        }
        rows[entry["row"]] = entry
        kept = sorted(rows.values(), key=lambda e: order.index(e["row"]))
        notes = peers_table(kept)
        write_results(NAME, kept, title="Faults", notes=notes, folder=folder)


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """A lock: several of these programs may run at once, each with its own job."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def peers_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per fault, one column per job: how often each outcome happened."""
    found = {(e["fault"], e["job"]): e for e in rows}
    jobs = [name for name in JOBS if any(e["job"] == name for e in rows)]
    lines = [
        "| fault | " + " | ".join(JOBS[name].title for name in jobs) + " |",
        "|---" * (1 + len(jobs)) + "|",
    ]
    for fault, what in FAULTS.items():
        cells = [_cell(found.get((fault, name))) for name in jobs]
        if any(cell != "–" for cell in cells):
            lines.append(f"| {what.title} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _sources(rows)])


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "–"
    return "; ".join(f"{n} × {what}" for what, n in entry["outcomes"].items())


def _sources(rows: Sequence[Mapping[str, Any]]) -> str:
    """Versions, dates and devices of each job."""
    said = []
    for name, job in JOBS.items():
        mine = [entry for entry in rows if entry["job"] == name]
        for key in dict.fromkeys(json.dumps(e["versions"]) for e in mine):
            used = ", ".join(f"{k} {v}" for k, v in json.loads(key).items())
            alike = [e for e in mine if json.dumps(e["versions"]) == key]
            dates = " and ".join(sorted({e["date"] for e in alike}))
            devices = " and ".join(sorted({e["device"] for e in alike}))
            said.append(f"{job.title}: {used}; {devices}, {dates}.")
    return "\n".join(said)
