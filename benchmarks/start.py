"""How long commands take to start, and runs wait for images.

`python -m benchmarks.start`: importing the package and `--help`, beside an empty
Python; `afterimage pretrain` to its first step, first with an empty cache of compiled
programs and decoded images, then with a warm one; all in fresh processes. And the share
of a longer run's time spent waiting for input, from its own metrics.jsonl.
Writes benchmarks/results/start.json and start.md.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.results import row, write_results

REPEATS = 3
RUN = [
    "--objective",
    "plain",
    "--model",
    "conv",
    "--log-every",
    "1",
    "--no-tensorboard",
]
RUN += ["--pictures", "0"]


def write_images(folder: pathlib.Path, count: int = 2000) -> None:
    """PNG files of 32 x 32 x 3 noise, so that none is easy to decode."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:05}.png")


def _first_step(out: pathlib.Path, data: str, cache: pathlib.Path) -> float:
    """Seconds from the start of the process to the line for step 1."""
    command = [sys.executable, "-m", "afterimage", "pretrain", "--data", data]
    command += ["--out", str(out), "--steps", "6", "--batch-size", "256", *RUN]
    env = {**os.environ, "AFTERIMAGE_CACHE": str(cache)}
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--eval-every", "6"],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    lines, seconds = out / "metrics.jsonl", None
    while process.poll() is None:
        if seconds is None and lines.exists() and '"step": 1,' in lines.read_text():
            seconds = time.perf_counter() - began
        time.sleep(0.01)
    if process.returncode or seconds is None:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return seconds


def _seconds(*arguments: str) -> float:
    """Seconds that a Python process with these arguments takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


def _stall(out: pathlib.Path, data: str, cache: pathlib.Path, *more: str) -> float:
    """Share of the training time of 60 steps spent waiting for the next batch."""
    command = [sys.executable, "-m", "afterimage", "pretrain", "--data", data]
    command += ["--out", str(out), "--steps", "60", "--batch-size", "256", *RUN, *more]
    env = {**os.environ, "AFTERIMAGE_CACHE": str(cache)}
    subprocess.run([*command], env=env, check=True, capture_output=True)
    rows = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    return 100 * [r for r in rows if "time/input_stall" in r][-1]["time/input_stall"]


def _commands(repeats: int = 7) -> list[dict]:
    """The rows of what does nothing but start, in turns."""
    each = {
        "python -c pass": ("-c", "pass"),
        "import afterimage": ("-c", "import afterimage"),
        "afterimage --help": ("-m", "afterimage", "--help"),
        "afterimage pretrain --help": ("-m", "afterimage", "pretrain", "--help"),
    }
    found: dict[str, list[float]] = {name: [] for name in each}
    for _ in range(repeats + 1):
        for name, arguments in each.items():
            found[name].append(_seconds(*arguments))
    # Without the first round, which reads the files from the disk.
    return [row("start", name, "seconds", times[1:]) for name, times in found.items()]


def main() -> None:
    """Measures and writes the rows."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        home = pathlib.Path(name)
        write_images(home / "images")
        data = f"folder:{home / 'images'}"
        cold, warm, stalls, streamed = [], [], [], []
        for i in range(REPEATS):
            cache = home / f"cache{i}"
            cold.append(_first_step(home / f"cold{i}", data, cache))
            warm.append(_first_step(home / f"warm{i}", data, cache))
            stalls.append(_stall(home / f"resident{i}", data, cache))
            off = ("--no-resident",)
            streamed.append(_stall(home / f"host{i}", data, cache, *off))
        rows += _commands()
        metric = "seconds to the first step"
        rows.append(row("start", "conv 32px, empty caches", metric, cold))
        rows.append(row("start", "conv 32px, warm caches", metric, warm))
        metric = "input stall, % of training time"
        rows.append(row("start", "conv 32px, images on the device", metric, stalls))
        rows.append(row("start", "conv 32px, images from the host", metric, streamed))
    write_results("start", rows, title="Start and input stall")
    for entry in rows:
        print(f"{entry['row']}: {entry['mean']:.2f} {entry['metric']}")


if __name__ == "__main__":
    main()
