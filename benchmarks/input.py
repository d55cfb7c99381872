"""How fast images reach a training step: from memory, JPEG files, and the cache.

`python -m benchmarks.input` writes benchmarks/results/input.json and input.md. Run it
on a quiet machine: every figure uses all cores.
"""

import argparse
import itertools
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures

import numpy as np

from afterimage.data import ImageSet, array_set, make_augment, open_data
from afterimage.data.augmentations import cuts
from afterimage.plugins import AUGMENTATIONS
from afterimage.runtime import jit
from afterimage.training.batches import Batches
from benchmarks.results import row, write_results

JPEGS = 512


def rate(batches: Iterator[dict], size: int, count: int) -> float:
    """Images a second over `count` batches, after a few to start the threads."""
    for _ in itertools.islice(batches, 8):
        pass
    began = time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    return size * count / (time.perf_counter() - began)


def batches_rate(images: ImageSet, size: int, count: int, resident: bool) -> float:
    """Images a second as training draws its batches."""
    batches = iter(Batches(images, batch_size=size, seed=0, resident=resident))
    try:
        return rate(batches, size, count)
    finally:
        batches.close()  # pyright: ignore[reportAttributeAccessIssue]


def memory_set(side: int, channels: int) -> ImageSet:
    """60,000 random images, about as many as MNIST (28, 1) or CIFAR (32, 3)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60_000, side, side, channels), np.uint8)
    return array_set(images, None, None, "random")


def bare_gather(images: np.ndarray, size: int, count: int) -> float:
    """The baseline for the rows above: NumPy's gather of random rows, no pipeline."""
    order = np.random.default_rng(0).permutation(len(images))
    starts = [(step * size) % (len(images) - size) for step in range(count)]
    began = time.perf_counter()
    for start in starts:
        images[order[start : start + size]]
    return size * count / (time.perf_counter() - began)


def gather_rate(images: ImageSet, size: int, count: int) -> float:
    """Images a second of our own gather, without handing over batches."""
    order = np.random.default_rng(0).integers(0, len(images), (count, size))
    began = time.perf_counter()
    for rows in order:
        images.gather(rows)
    return size * count / (time.perf_counter() - began)


def bare_jpeg(files: list[pathlib.Path]) -> float:
    """The same for JPEGs: libjpeg-turbo and a linear resize on all cores."""
    import cv2
    import simplejpeg

    def decode(path: pathlib.Path) -> np.ndarray:
        pixels = simplejpeg.decode_jpeg(path.read_bytes())
        return cv2.resize(pixels, (224, 224), interpolation=cv2.INTER_LINEAR)

    # All threads take from one iterator: cheaper than one future per image.
    paths = iter(files * 4)

    def work(_: int) -> None:
        for path in paths:
            decode(path)

    cv2.setNumThreads(1)
    threads = os.cpu_count() or 1
    with futures.ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        for _ in pool.map(work, range(threads)):
            pass
        return 4 * len(files) / (time.perf_counter() - began)


def write_jpegs(folder: pathlib.Path) -> float:
    """Writes 500x375 images of blobs and grain, about 55 kB each; returns mean size."""
    import cv2

    rng = np.random.default_rng(0)
    for number in range(JPEGS):
        coarse = rng.integers(0, 256, (24, 32, 3), np.uint8)
        image = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
        grainy = image + rng.normal(0, 9, image.shape)
        image = np.clip(grainy, 0, 255).astype(np.uint8)
        path = str(folder / f"{number:04d}.jpg")
        cv2.imwrite(path, image, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return float(np.mean([path.stat().st_size for path in folder.iterdir()]))


def augment_rate(spec: str, size: int, stored: int | None = None) -> float:
    """Images per second of processor time through an augmentation alone, batch 128.

    Views have `size` pixels, and are cut from images of `stored` if that is given.
    """
    import jax

    rng, shape = np.random.default_rng(0), (128, *[stored or size] * 2, 3)
    images = jax.numpy.asarray(rng.random(shape, np.float32))
    augment = jit(make_augment(spec, size if stored else None))
    keys = [jax.random.key(i) for i in range(10)]
    augment(keys[0], images).block_until_ready()
    began = time.process_time()
    for key in keys:
        augment(key, images).block_until_ready()
    return len(images) * len(keys) / (time.process_time() - began)


def print_augment_rates(specs: Sequence[str], repeats: int) -> None:
    """A Markdown table of the best of `repeats` measurements of each."""
    sizes = ((32, None), (32, 48), (64, None), (64, 96))
    print("| augmentation | 32 px | 32 of 48 px | 64 px | 64 of 96 px |")
    print("|---|---|---|---|---|")
    for spec in specs:
        cells = []
        for size, stored in sizes:
            able = stored is None or cuts(spec)
            rates = [augment_rate(spec, size, stored) for _ in range(repeats * able)]
            cells.append(f"{max(rates):,.0f}" if rates else "")
        print(f"| `{spec}` | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measures every input path, interleaved; writes the table and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each")
    parser.add_argument(
        "--augment", nargs="*", help="print these augmentations only (none: all)"
    )
    given = parser.parse_args()
    repeats = given.repeats
    if given.augment is not None:
        print_augment_rates(given.augment or AUGMENTATIONS.names(), repeats)
        return

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["AFTERIMAGE_CACHE"] = str(pathlib.Path(scratch) / "cache")
        pictures = pathlib.Path(scratch) / "pictures"
        pictures.mkdir()
        bytes_each = write_jpegs(pictures)
        spec = f"folder:{pictures}"
        files = sorted(pictures.iterdir())
        memory, grey = memory_set(32, 3), memory_set(28, 1)
        pixels = np.ascontiguousarray(memory.images[:])
        lazy = open_data(spec, image_size=224, cache=False).train
        cached = open_data(spec, image_size=224).train
        decoded = np.ascontiguousarray(cached.images[:])
        measures: dict[str, Callable[[], float]] = {
            "memory 28x28x1, batch 256": lambda: batches_rate(grey, 256, 3000, False),
            "memory 32x32x3, batch 256": lambda: batches_rate(memory, 256, 3000, False),
            "memory 32x32x3, bare NumPy": lambda: bare_gather(pixels, 256, 3000),
            "resident (indices only), batch 256": lambda: batches_rate(
                memory, 256, 3000, True
            ),
            "JPEG 500x375 to 224, batch 64": lambda: batches_rate(lazy, 64, 60, False),
            "JPEG 500x375 to 224, bare decoder": lambda: bare_jpeg(files),
            "cache 224x224x3, bare NumPy": lambda: bare_gather(decoded, 64, 500),
            "cache 224x224x3, gather alone": lambda: gather_rate(cached, 64, 500),
            "cache 224x224x3, batch 64": lambda: batches_rate(cached, 64, 2000, False),
        }
        for name in ("shift", "crop-flip", "light"):
            measures[f"augment {name} 32x32x3, batch 128"] = lambda name=name: (
                augment_rate(name, 32)
            )
        figures: dict[str, list[float]] = {name: [] for name in measures}
        for _, (name, measure) in itertools.product(range(repeats), measures.items()):
            figures[name].append(measure())
    rows = [row("input", name, "images/s", values) for name, values in figures.items()]
    notes = (
        f"Batches as training gets them: shuffled, gathered, through Grain. The JPEGs "
        f"are synthetic, {bytes_each / 1000:.0f} kB each, read from files in memory."
    )
    write_results("input", rows, title="Input", notes=notes)
    for entry in rows:
        print(f"{entry['row']:42s} {entry['mean']:12,.0f} ± {entry['std'] or 0:,.0f}")


if __name__ == "__main__":
    main()
