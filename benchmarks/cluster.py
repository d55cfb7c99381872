"""`python -m benchmarks.cluster`: features of many images with actors of Ray.

Writes JPEGs into a folder and computes their features with one actor on one core, and
with two, in turns. Start-up is left out: figures count from the first blocks that come
back to the last. CPU time is that of the actors, which other work on the machine hardly
changes. The hours of a million images are arithmetic from it.
"""

import argparse
import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from afterimage.evaluation.configs import FeaturesConfig
from afterimage.export import open_for, select
from afterimage.ray.cluster import connect
from afterimage.ray.features import computed
from benchmarks.features import encoder_of
from benchmarks.results import row, write_results


def write_images(folder: Path, count: int, side: int) -> None:
    """JPEGs with the detail of photos: noise at several scales."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        pixels = np.zeros((side, side, 3))
        for scale in (4, 16, side):
            small = rng.normal(size=(scale, scale, 3)) * 200 / scale
            pixels += np.kron(small, np.ones((side // scale, side // scale, 1)))
        image = (128 + pixels).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{number:06d}.jpg", quality=90)


def cpu_seconds() -> float:
    """CPU time of all actors that run now."""
    found = 0.0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"ray::MapWorker" in (process / "cmdline").read_bytes():
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                found += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def measure(ray: Any, config: FeaturesConfig, sets: Any) -> tuple[float, float]:
    """(images/s, CPU seconds of 1,000 images), from the first blocks to the last."""
    marks, rows = [], []
    for _, numbers, _, _ in computed(ray, config, sets):
        marks.append((time.perf_counter(), cpu_seconds()))
        rows.append(len(numbers))
    # Without the batches of the first blocks: each actor had one when it began.
    first = 4 * (config.actors or 1)
    images = sum(rows[first:])
    seconds, cpu = (end - began for began, end in zip(marks[first - 1], marks[-1]))
    return images / seconds, cpu / images * 1000


def main() -> None:
    """Measures one and two actors in turns, writes the table and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=8192, help="images")
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ray = connect("local")
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "photos", options.count, options.side)
        encoder = encoder_of("conv", options.side, folder)
        for _ in range(options.rounds):
            for actors, figures in found.items():
                config = FeaturesConfig(
                    data=str(folder / "photos"),
                    from_=str(folder),
                    out=str(folder / "f.parquet"),
                    batch_size=32,
                    ray="local",
                    actors=actors,
                )
                splits = open_for(encoder.preprocessing, config, lazily=True)
                sets = select(splits, "all", config.data)
                figures.append(measure(ray, config, sets))
                print(f"{actors}: {figures[-1]}", flush=True)
    load = f"load average {os.getloadavg()[1]:.0f} on {os.cpu_count()} cores"
    rows = []
    for actors, figures in found.items():
        label = f"conv, JPEGs of {options.side} px, actors: {actors}"
        speeds, costs = map(list, zip(*figures))
        rows.append(row("cluster", label, "images/s", speeds, note=load))
        rows.append(row("cluster", label, "CPU s per 1,000 images", costs, note=load))
    hours = [cost * 1000 / 3600 for _, cost in found[1]]
    note = "arithmetic from the CPU time of one actor"
    label = f"conv, JPEGs of {options.side} px, a million images"
    rows.append(row("cluster", label, "core hours", hours, note=note))
    print(write_results("cluster", rows, title="Features by actors of Ray"))


if __name__ == "__main__":
    main()
