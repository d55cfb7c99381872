"""What every job understands and says: its options, and lines for the driver."""

import argparse
import hashlib
import json
import os

import numpy as np


def arguments() -> argparse.Namespace:
    """The options that every job has."""
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
    """The step whose batch is not a number; 0 where there is none."""
    return int(os.environ.get("AFTERIMAGE_BENCH_NAN_STEP", "0"))


def report(name: str, value) -> None:
    """A line that the driver reads."""
    print(f"@{name} {value}", flush=True)


def report_final(step: int, arrays: list[np.ndarray]) -> None:
    """The weights after the last step: a digest, and whether all are numbers."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    finite = all(bool(np.isfinite(array).all()) for array in arrays)
    final = {"step": step, "digest": digest.hexdigest(), "finite": finite}
    report("final", json.dumps(final))
