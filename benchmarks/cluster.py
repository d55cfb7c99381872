"""`python -m benchmarks.cluster`: features of many images with actors of Ray.

Writes JPEGs into a folder and computes their features with one actor on one core, and
with two, in turns. Start-up is left out: a rate counts from the first block that comes
back to the last. The hours of a million images are arithmetic from the rate.
"""

import argparse
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


def rate(ray: Any, config: FeaturesConfig, sets: Any) -> float:
    """Images/s from the first block to the last."""
    marks, rows = [], []
    for _, numbers, _, _ in computed(ray, config, sets):
        marks.append(time.perf_counter())
        rows.append(len(numbers))
    # The batches of the blocks that arrived first: each actor had one when it began.
    first = 4 * (config.actors or 1)
    return sum(rows[first:]) / (marks[-1] - marks[first - 1])


def main() -> None:
    """Measures one and two actors in turns, writes the table and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=8192, help="images")
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ray = connect("local")
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "photos", options.count, options.side)
        encoder = encoder_of("conv", options.side, folder)
        for _ in range(options.rounds):
            for actors, rates in found.items():
                config = FeaturesConfig(
                    data=str(folder / "photos"),
                    from_=str(folder),
                    out=str(folder / "f.parquet"),
                    batch_size=64,
                    ray="local",
                    actors=actors,
                )
                splits = open_for(encoder.preprocessing, config, lazily=True)
                rates.append(rate(ray, config, select(splits, "all", config.data)))
                print(f"{actors} actors: {rates[-1]:.0f} images/s", flush=True)
    label = f"conv, JPEGs of {options.side} px"
    rows = [
        row("cluster", f"{label}, {actors} actor(s), a core each", "images/s", rates)
        for actors, rates in found.items()
    ]
    scaling = [two / one for one, two in zip(found[1], found[2])]
    rows.append(row("cluster", f"{label}, two actors over one", "ratio", scaling))
    hours = [1e6 / rates / 3600 for rates in found[1]]
    rows.append(
        row("cluster", f"{label}, a million images on one core", "hours", hours)
        | {"note": "arithmetic from images/s of one actor"}
    )
    print(write_results("cluster", rows, title="Features by actors of Ray"))


if __name__ == "__main__":
    main()
