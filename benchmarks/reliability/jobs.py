"""The four jobs: their commands, their checkpoints, and one running process."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import threading
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[2]
STEPS, SAVE_EVERY, BATCH_SIZE = 200, 50, 32
_LIMIT = 300
"""Seconds after which a process counts as hanging."""
Paths = list[pathlib.Path]


def _files(folder: pathlib.Path) -> Paths:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _numbered(out: pathlib.Path, pattern: str) -> Paths:
    """The files of the folder with the highest number, without half-written ones."""
    whole = re.compile(r"(?:checkpoint-)?(\d+)")
    found = {
        int(match[1]): path
        for path in out.glob(pattern)
        if (match := whole.fullmatch(path.name))
    }
    return _files(found[max(found)]) if found else []


@dataclasses.dataclass(frozen=True)
class Job:
    """A program that trains, and what this benchmark knows about its folder."""

    title: str
    module: str
    packages: tuple[str, ...]
    saves: str
    """The entries of the run folder that a save writes."""
    newest: Callable[[pathlib.Path], Paths]
    """The files that a resume reads."""

    @property
    def ours(self) -> bool:
        return self.module == "ours_job"


JOBS = {
    "afterimage": Job(
        "Afterimage",
        "ours_job",
        ("jax", "flax", "optax", "orbax-checkpoint"),
        "checkpoints",
        lambda out: _numbered(out, "checkpoints/*"),
    ),
    "lightning": Job(
        "Lightning",
        "lightning_job",
        ("lightning", "torch", "torchdata"),
        "checkpoints",
        lambda out: [out / "checkpoints" / "last.ckpt"],
    ),
    "hf": Job(
        "HF Trainer",
        "hf_job",
        ("transformers", "accelerate", "torch"),
        "checkpoint-*",
        lambda out: _numbered(out, "checkpoint-*"),
    ),
    "keras": Job(
        "Keras",
        "keras_job",
        ("keras", "tensorflow", "tensorflow-cpu"),
        "backup",
        lambda out: [
            path
            for path in _files(out / "backup")
            if path.suffix in {".h5", ".json"}  # the one before ends in .bkp
        ],
    ),
}


@dataclasses.dataclass(frozen=True)
class End:
    """How a process ended and what it reported."""

    code: int | None
    """Exit code; None if it had to be ended."""
    text: str

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.text

    @property
    def final(self) -> dict | None:
        found = re.findall(r"^@final (.*)$", self.text, re.MULTILINE)
        return json.loads(found[-1]) if found and self.code == 0 else None

    @property
    def began(self) -> int | None:
        """The step after which training began; None if it did not begin."""
        found = re.search(r"^(?:@from|Continuing after step) ([\d,]+)", self.text, re.M)
        if found:
            return int(found[1].replace(",", ""))
        return 0 if self.trained or self.final else None

    @property
    def trained(self) -> bool:
        return "\n@step " in self.text

    @property
    def images(self) -> int | None:
        """Number of images it found."""
        if found := re.search(r"^@images (\d+)", self.text, re.M):
            return int(found[1])
        found = re.search(r"([\d,]+) training images \S+, (\d+|none) held", self.text)
        if not found:
            return None
        held = 0 if found[2] == "none" else int(found[2])
        return int(found[1].replace(",", "")) + held

    @property
    def how(self) -> str:
        """How it ended before the last step, in a word or two."""
        if self.code is None:
            return "hangs"
        if self.code < 0:
            return f"crash (signal {-self.code})"
        if self.code == 0:
            return "ends early, exit code 0"
        return "traceback" if self.traceback else "message"


class Running:
    """A job in its own process, followed through what it prints."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.step = 0
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line)
                if line.startswith("@step "):
                    self.step = int(line.split()[1])

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Whether `reached` became true before the process ended."""
        limit = time.monotonic() + _LIMIT
        while self.process.poll() is None and time.monotonic() < limit:
            if reached():
                return True
            time.sleep(0.001)
        return False

    def kill(self) -> End:
        """Sends SIGKILL."""
        self.process.kill()
        return self.end()

    def end(self) -> End:
        """Waits for the end, at most until the process counts as hanging."""
        try:
            code = self.process.wait(_LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = None
        self._reader.join(10)
        return End(code, "".join(self.lines))


def environment(work: pathlib.Path) -> dict[str, str]:
    """One CPU thread, no downloads, and one compilation for all runs."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "AFTERIMAGE_CACHE": str(work / "cache"),
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "HF_HUB_OFFLINE": "1",
        "LC_ALL": "C.UTF-8",
    }


def start(
    job: Job,
    python: str,
    work: pathlib.Path,
    data: pathlib.Path,
    out: pathlib.Path,
    *,
    noise: float = 0.0,
    nan_step: int = 0,
) -> Running:
    """Starts a job; the same arguments give the same command."""
    options = {
        "data": data,
        "out": out,
        "noise": noise,
        "steps": STEPS,
        "save-every": SAVE_EVERY,
        "batch-size": BATCH_SIZE,
    }
    command = [python, "-m", f"benchmarks.reliability.{job.module}"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    more = {"AFTERIMAGE_BENCH_NAN_STEP": str(nan_step)} if nan_step else {}
    return Running(command, environment(work) | more)
