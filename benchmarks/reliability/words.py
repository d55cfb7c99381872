"""The interface of every job: its options, and the lines it prints for the driver."""

import argparse
import hashlib
import json
import os

import numpy as np


def arguments() -> argparse.Namespace:
    """The options common to all jobs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.0)
    return parser.parse_args()


def nan_step() -> int:
    """The step whose batch is NaN; 0 for none."""
    return int(os.environ.get("AFTERIMAGE_BENCH_NAN_STEP", "0"))


def report(name: str, value) -> None:
    """Prints a line for the driver."""
    print(f"@{name} {value}", flush=True)


def report_final(step: int, arrays: list[np.ndarray]) -> None:
    """Reports the final weights: a digest, and whether all are finite."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    finite = all(bool(np.isfinite(array).all()) for array in arrays)
    final = {"step": step, "digest": digest.hexdigest(), "finite": finite}
    report("final", json.dumps(final))
