"""Runs the faults on the jobs and records each result as soon as it is available."""

import argparse
import os
import pathlib
import random
import sys
import tempfile
import time

from benchmarks.reliability import record
from benchmarks.reliability.faults import FAULTS, World
from benchmarks.reliability.jobs import JOBS


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--fault", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--times", type=int, default=6, help="repeats of each fault")
    parser.add_argument(
        "--peers-python",
        default=sys.executable,
        help="an interpreter with lightning, torchdata, transformers, accelerate, "
        "keras and tensorflow-cpu (default: this one)",
    )
    parser.add_argument("--keep", help="a folder for the runs, kept afterwards")
    return parser.parse_args()


def strike(world: World, name: str, fault: str, times: int, versions: dict) -> None:
    """One fault, as often as requested; what happened is recorded each time."""
    found = []
    for repeat in range(times * FAULTS[fault].factor):
        began = time.perf_counter()
        rng = random.Random(f"{fault} {repeat}")
        found.append(FAULTS[fault].strike(world, repeat, rng))
        spent = time.perf_counter() - began
        print(f"{name}, {fault}, {repeat}: {found[-1]} ({spent:.0f} s)", flush=True)
        record.record(record.outcome_row(name, fault, found, versions))


def run(args: argparse.Namespace, work: pathlib.Path) -> None:
    """Every requested fault on every requested job."""
    for name in args.only:
        job = JOBS[name]
        python = sys.executable if job.ours else args.peers_python
        versions = record.versions_of(job, python)
        world = World(job, python, work)
        for fault in args.fault:
            if FAULTS[fault].root and os.geteuid() != 0:
                print(f"{fault} mounts a file system, which needs root: left out")
                continue
            strike(world, name, fault, args.times, versions)


def main() -> None:
    """Runs what the command line requests, in a folder that is kept or deleted."""
    args = options()
    if args.keep:
        pathlib.Path(args.keep).mkdir(parents=True, exist_ok=True)
        return run(args, pathlib.Path(args.keep).resolve())
    with tempfile.TemporaryDirectory() as work:
        run(args, pathlib.Path(work))


if __name__ == "__main__":
    main()
