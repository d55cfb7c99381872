"""A million small images in tar shards: index, opening, memory and speed.

`python -m benchmarks.storage --mnist mnist.npz` writes benchmarks/results/storage.json
and storage.md. The images are MNIST's as PNG files, repeated under different names,
with a .cls each. Every measurement is a process of its own, and counts the pages of its
files that are in memory as resident. The folder holds fewer of the same images. All is
written to a temporary folder (TMPDIR), about 2.5 GB.
"""

import argparse
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.results import row, write_results

_TITLE = "A million small images in tar shards, beside a folder of fewer"
_NOTES = """
MNIST's training images as PNG, repeated under different names: in shards of 10,000 with
a .cls each, and in a folder for each digit. "First opening" builds the index, or
decodes the images of the folder into the cache; either is what is kept. An epoch
reads every image once, in random order, in batches of 512: the shards' are decoded as
they are read (`cache=False`), the folder's come from the cache. Memory is that of the
process (VmRSS), "own" without files in memory (RssAnon).

The two cores were shared with other work (a load of 12 to 22), so times and rates are
bounds: an idle machine is faster.
"""
_SHARD = 10_000
_BATCH = 512
Encoded = list[tuple[bytes, int]]
"""PNG files and their digits."""


def encoded(path: str) -> Encoded:
    """MNIST's training images as PNG files, with their digits."""
    with np.load(path) as arrays:
        pairs = zip(arrays["x_train"], arrays["y_train"].tolist(), strict=True)
        found = []
        for image, digit in pairs:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            found.append((file.getvalue(), digit))
        return found


def write_shards(folder: pathlib.Path, images: Encoded, count: int) -> None:
    """`count` images in shards of 10,000, as WebDataset packs them."""
    folder.mkdir(parents=True)
    for first in range(0, count, _SHARD):
        name = folder / f"shard-{first // _SHARD:06}.tar"
        with tarfile.open(name, "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(first, min(first + _SHARD, count)):
                data, digit = images[number % len(images)]
                _add(archive, f"image-{number:09}.png", data)
                _add(archive, f"image-{number:09}.cls", str(digit).encode())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def write_folder(folder: pathlib.Path, images: Encoded, count: int) -> None:
    """`count` of the same images in a folder per digit."""
    for number in range(count):
        data, digit = images[number % len(images)]
        place = folder / str(digit) / f"image-{number:09}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def resident() -> dict[str, float]:
    """MiB in memory now: of this process's own, and with mapped files."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if "kB" in line}
    return {key: int(found[key]) / 1024 for key in ("RssAnon", "VmRSS")}


def measure(spec: str, epoch: bool) -> dict[str, Any]:
    """Open the data in this process; then read every image once, if asked."""
    from afterimage.data import open_data
    from afterimage.training.batches import Batches

    base = resident()
    began = time.perf_counter()
    # Of the shards, images are decoded in each pass: the memory of the whole pipeline.
    images = open_data(spec, cache=spec.startswith("folder:")).train
    found: dict[str, Any] = {"open": time.perf_counter() - began, "count": len(images)}
    found |= {"base": base, "opened": resident()}
    if not epoch:
        return found
    batches = Batches(images, batch_size=_BATCH, seed=0)
    steps = len(images) // _BATCH
    batches[0]  # the order of the epoch is made once
    marks, began = [resident()], time.perf_counter()
    for step in range(steps):
        batches[step]
        if (step + 1) % max(1, steps // 10) == 0:
            marks.append(resident())
    found["rate"] = steps * _BATCH / (time.perf_counter() - began)
    found["marks"] = marks
    return found


def apart(cache: pathlib.Path, spec: str, *more: str) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.storage", "--measure", spec, *more]
    env = os.environ | {"AFTERIMAGE_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def size_of(folder: pathlib.Path) -> float:
    """MB of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def compare(scratch: pathlib.Path, mnist: str, sizes: dict[str, int]) -> list[Any]:
    """The rows of every kind, of {kind: number of images}."""
    images, rows = encoded(mnist), []
    for kind, count in sizes.items():
        place, cache = scratch / kind, scratch / f"cache-{kind}"
        began = time.perf_counter()
        (write_shards if kind == "tar" else write_folder)(place, images, count)
        written = time.perf_counter() - began
        print(f"{kind}: {count:,} images written in {written:.0f} s", file=sys.stderr)
        first = apart(cache, f"{kind}:{place}")
        again = apart(cache, f"{kind}:{place}", "--epoch")
        before, *marks = again["marks"]
        kept = cache / ("index" if kind == "tar" else "images")
        figures = {
            "images": count,
            "MB of files": size_of(place),
            "first opening, s": first["open"],
            "opening again, s": again["open"],
            "MB kept in the cache": size_of(kept),
            "MiB before opening": again["base"]["VmRSS"],
            "MiB opened": again["opened"]["VmRSS"],
            "MiB before the epoch": before["VmRSS"],
            "MiB after the epoch": marks[-1]["VmRSS"],
            "most MiB in the epoch": max(mark["VmRSS"] for mark in marks),
            "own MiB before the epoch": before["RssAnon"],
            "own MiB after the epoch": marks[-1]["RssAnon"],
            "images/s": again["rate"],
        }
        rows += [row("storage", kind, name, value) for name, value in figures.items()]
        print(json.dumps(figures), file=sys.stderr)
    return rows


def main() -> None:
    """Measures and writes the table; with --measure, one part of it."""
    parser = argparse.ArgumentParser(description="Shards against a folder.")
    parser.add_argument("--mnist", help="mnist.npz, with x_train and y_train")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder-images", type=int, default=50_000)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--epoch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.epoch)))
        return
    sizes = {"tar": options.images, "folder": options.folder_images}
    with tempfile.TemporaryDirectory() as scratch:
        rows = compare(pathlib.Path(scratch), options.mnist, sizes)
    write_results("storage", rows, title=_TITLE, notes=_NOTES)


if __name__ == "__main__":
    main()
