"""Milliseconds to search a large index for the nearest images.

`python -m benchmarks.similar --record` measures a million vectors of 128 numbers, as
`afterimage similar` searches them, and writes `benchmarks/results/similar.md`.
"""

import argparse
import os
import time

import numpy as np

from afterimage.evaluation.nearest import nearest
from benchmarks.results import markdown, row, write_results

_ROUNDS = 15


def measure(rows: int, width: int, queries: int) -> tuple[list[float], list[float]]:
    """(wall, processor) milliseconds of each round, with the vectors in memory.

    The processor's are those of all threads together.
    """
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((rows, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = np.array(vectors[:queries])
    wall, processor = [], []
    for _ in range(_ROUNDS + 1):
        began = time.perf_counter(), time.process_time()
        nearest(asked, vectors, 10)
        wall.append(1000 * (time.perf_counter() - began[0]))
        processor.append(1000 * (time.process_time() - began[1]))
    return wall[1:], processor[1:]  # the first touches the memory


def main() -> None:
    """Measures, prints a table and, with `--record`, keeps it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    found = []
    for queries in (1, 8):
        times = measure(given.rows, given.width, queries)
        name = f"{queries} at once, {given.rows:,} x {given.width}"
        for what, each in zip(("wall", "processor, all threads"), times):
            found.append(row("search", name, f"{what}, ms", each))
        found.append(row("search", name, "wall, fastest, ms", min(times[0])))
    notes = (
        "The 10 nearest by cosine, exact: one product of matrices in float32 by NumPy. "
        f"The load average was {os.getloadavg()[0]:.1f}. Where it is above the number "
        "of cores, other programs took part of them, and wall times are too long."
    )
    title = "Search in an index"
    print(markdown(found, title, notes))
    if given.record:
        write_results("similar", found, title=title, notes=notes)


if __name__ == "__main__":
    main()
