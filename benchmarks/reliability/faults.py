"""The faults: each damages one job once and says what happened."""

import contextlib
import dataclasses
import os
import pathlib
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from benchmarks.reliability import outcomes
from benchmarks.reliability.jobs import STEPS, End, Job, Running, start

IMAGES = 384
NOISE = 0.5


def make_images(folder: pathlib.Path, count: int = IMAGES) -> pathlib.Path:
    """PNGs of random blots in two class folders; existing files are kept."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse.repeat(4, 0).repeat(4, 1)).save(path)
    return folder


class World:
    """One job, its folder, and the runs to compare others with."""

    def __init__(self, job: Job, python: str, work: pathlib.Path):
        self.job, self.python, self.work = job, python, work
        self.data = work / "data"
        if not self.data.exists():
            make_images(self.data)
        self.folder = work / job.module
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self._kept: dict[str, tuple[pathlib.Path, End]] = {}
        self._turn = 0

    def start(self, out: pathlib.Path, data: pathlib.Path | None = None, **how):
        return start(self.job, self.python, self.work, data or self.data, out, **how)

    def run(self, out: pathlib.Path, data: pathlib.Path | None = None, **how) -> End:
        return self.note(self.start(out, data, **how).end())

    def note(self, end: End) -> End:
        """Keeps what a process printed, under a running number."""
        self._turn += 1
        path = self.folder / f"output-{self._turn:03}.txt"
        path.write_text(end.text, encoding="utf-8")
        return end

    def fresh(self, name: str) -> pathlib.Path:
        """An empty path for a run folder."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def whole(self, noise: float = 0.0) -> End:
        """An uninterrupted run."""
        name = f"whole-{noise}"
        if name not in self._kept:
            end = self.run(self.fresh(name), noise=noise)
            assert end.final is not None, end.text[-3000:]
            self._kept[name] = self.fresh(name), end
        return self._kept[name][1]

    def stopped(self) -> tuple[pathlib.Path, End]:
        """(A run killed well after a save, to be copied; how its copy ends.)"""
        if "stopped" not in self._kept:
            out = self.fresh("stopped")
            running = self.start(out)
            running.wait_until(lambda: running.step >= STEPS - 30)
            running.kill()
            copy = shutil.copytree(out, self.fresh("control"))
            end = self.run(copy)
            assert end.final is not None, end.text[-3000:]
            self._kept["stopped"] = out, end
        return self._kept["stopped"]

    def copy(self) -> pathlib.Path:
        """A copy of the stopped run."""
        return shutil.copytree(self.stopped()[0], self.fresh("copy"))


def _state(out: pathlib.Path, pattern: str) -> set[tuple[str, int, int]]:
    """Every file that saves wrote, with its size and time."""
    found = set()
    for top in out.glob(pattern):
        for folder, _, names in os.walk(top):
            for name in ("", *names):
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    stat = os.stat(path)
                    found.add((path, stat.st_size, stat.st_mtime_ns))
    return found


def _kill(world: World, running: Running, out, rng, in_save: bool) -> None:
    step = rng.randrange(60, STEPS - 10)
    if in_save:
        step = rng.randrange(60, STEPS - 60)
    running.wait_until(lambda: running.step >= step)
    if in_save:
        before = _state(out, world.job.saves)
        running.wait_until(lambda: _state(out, world.job.saves) != before)
    time.sleep(rng.uniform(0, 0.02))
    running.kill()


def killed(world: World, repeat: int, rng: random.Random, noise: float = 0.0) -> str:
    """SIGKILL at a random moment; every second time, as a save begins."""
    out, whole = world.fresh("killed"), world.whole(noise)
    running = world.start(out, noise=noise)
    _kill(world, running, out, rng, in_save=repeat % 2 == 1)
    return outcomes.of_resume(world.run(out, noise=noise), whole)


def killed_denoising(world: World, repeat: int, rng: random.Random) -> str:
    """The same, with new noise for each batch."""
    return killed(world, repeat, rng, noise=NOISE)


def flipped(world: World, repeat: int, rng: random.Random) -> str:
    """Flips a bit of the newest checkpoint; every second time, files weigh the same."""
    out = world.copy()
    files = [path for path in world.job.newest(out) if path.stat().st_size]
    sizes = [1 if repeat % 2 else path.stat().st_size for path in files]
    (path,) = rng.choices(files, sizes)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return outcomes.of_damage(world.run(out), world.stopped()[1])


def truncated(world: World, repeat: int, rng: random.Random) -> str:
    """The newest checkpoint's largest file is truncated."""
    out = world.copy()
    path = max(world.job.newest(out), key=lambda path: path.stat().st_size)
    os.truncate(path, int(path.stat().st_size * rng.uniform(0, 0.98)))
    return outcomes.of_damage(world.run(out), world.stopped()[1])


def saved(world: World, out: pathlib.Path) -> bool:
    """Whether a checkpoint is complete."""
    return any(path.exists() for path in world.job.newest(out))


def file_limit(world: World, repeat: int, rng: random.Random) -> str:
    """From a random step on, no file may exceed half the size of the largest."""
    out = world.fresh("limited")
    running = world.start(out)
    step = rng.randrange(60, 140)
    if running.wait_until(lambda: running.step >= step and saved(world, out)):
        largest = max(path.stat().st_size for path in world.job.newest(out))
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        pid = running.process.pid
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest // 2, hard))
    end = world.note(running.end())
    return outcomes.of_disk(end, None if end.final else world.run(out))


@contextlib.contextmanager
def small_disk(mount: pathlib.Path) -> Iterator[None]:
    """A file system of 256 MB; needs root."""
    mount.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(mount)]
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def fill(path: pathlib.Path, room: int) -> None:
    """Leaves this many bytes free, even if another process is writing."""
    with open(path, "wb") as file:
        while (free := shutil.disk_usage(path.parent).free) > room:
            with contextlib.suppress(OSError):
                size = file.seek(0, os.SEEK_END)
                os.posix_fallocate(file.fileno(), size, free - room)


def full_disk(world: World, repeat: int, rng: random.Random) -> str:
    """From a random step on, the disk has room for a third of a checkpoint."""
    disk = world.folder / "disk"
    with small_disk(disk):
        out = disk / "run"
        running = world.start(out)
        step = rng.randrange(60, 140)
        if running.wait_until(lambda: running.step >= step and saved(world, out)):
            files = world.job.newest(out)
            fill(disk / "filler", sum(path.stat().st_size for path in files) // 3)
        end = world.note(running.end())
        (disk / "filler").unlink(missing_ok=True)
        return outcomes.of_disk(end, None if end.final else world.run(out))


def nan(world: World, repeat: int, rng: random.Random) -> str:
    """The batch of a random step is NaN."""
    out = world.fresh("nan")
    end = world.run(out, nan_step=rng.randrange(60, STEPS - 10))
    return outcomes.of_nan(end, None if end.final else world.run(out))


def broken(world: World, repeat: int, rng: random.Random) -> str:
    """One image is truncated; every second time, it is a web page instead."""
    data = shutil.copytree(world.data, world.fresh("data"))
    path = rng.choice(sorted(data.rglob("*.png")))
    if repeat % 2:
        path.write_text("<!DOCTYPE html><html>404 Not Found</html>")
    else:
        os.truncate(path, path.stat().st_size // 2)
    return outcomes.of_image(world.run(world.fresh("broken"), data), path.name)


def named(world: World, repeat: int, rng: random.Random) -> str:
    """A file name is not UTF-8; every second time, a class folder's name."""
    data = shutil.copytree(world.data, world.fresh("data"))
    path = data / "a"
    path = path if repeat % 2 else rng.choice(sorted(path.iterdir()))
    strange = os.fsencode(path.parent) + b"/caf\xe9" + os.fsencode(path.suffix)
    os.rename(os.fsencode(path), strange)
    return outcomes.of_name(world.run(world.fresh("named"), data), IMAGES)


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault: its name in the table, and its function."""

    title: str
    strike: Callable[[World, int, random.Random], str]
    factor: int = 1
    """Repeats of this fault per requested repeat."""
    root: bool = False
    """Needs to mount a file system."""


FAULTS = {
    "kill": Fault("killed at any moment, every second time inside a save", killed),
    "kill-noise": Fault("the same with noise on each batch", killed_denoising),
    "flip": Fault("one bit of the newest checkpoint flipped", flipped, 2),
    "truncate": Fault("the newest checkpoint cut short", truncated),
    "file-limit": Fault("no file may grow (`RLIMIT_FSIZE`), midway", file_limit),
    "full-disk": Fault("disk full (a tmpfs), midway", full_disk, root=True),
    "nan": Fault("one batch of NaN", nan),
    "image": Fault("one broken image: cut short, or a web page", broken),
    "name": Fault("a file's or class folder's name that is not UTF-8", named),
}
