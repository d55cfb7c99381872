"""What several tests share: subprocesses with their own devices, tiny pieces."""

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parent.parent


def cut_back(run: pathlib.Path, copy: pathlib.Path, step: int) -> pathlib.Path:
    """A copy of a finished run as if it had been stopped after `step`."""
    shutil.copytree(run, copy)
    saved = [folder for folder in (copy / "checkpoints").iterdir() if folder.is_dir()]
    later = [folder for folder in saved if int(folder.name) > step]
    assert 0 < len(later) < len(saved)
    for folder in later:
        shutil.rmtree(folder)
    (copy / "results.json").unlink()
    return copy


def environment(devices: int = 1, **extra: str) -> dict[str, str]:
    """The environment of a child process with so many CPU devices."""
    quick = os.environ.get("AFTERIMAGE_TEST_XLA_CHILDREN", "")
    flags = f"--xla_force_host_platform_device_count={devices} {quick}"
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        **extra,
    }


def limited(limit: str, value: int, command: Sequence[str]) -> list[str]:
    """The command under a limit of the system, e.g. `RLIMIT_FSIZE`, for any user."""
    code = (
        "import os, resource, sys; limit = getattr(resource, sys.argv[1]); "
        "resource.setrlimit(limit, (int(sys.argv[2]),) * 2); "
        "os.execv(sys.argv[3], sys.argv[3:])"
    )
    return [sys.executable, "-c", code, limit, str(value), *command]


def run_python(code: str, *args: str, devices: int = 1, timeout: int = 240) -> str:
    """Runs `code` in a fresh interpreter; returns its output, fails with its errors."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout
