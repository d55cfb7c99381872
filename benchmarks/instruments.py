"""What a short pretraining run spends on anything but training steps.

    python -m benchmarks.instruments                        # 400 steps, twice
    python -m benchmarks.instruments --steps 900 --model resnet18

Runs `afterimage pretrain` in fresh processes, on digits at 64 pixels in colour or on
the data that come first: with an empty cache of compiled programs, then with a warm
one. Prints the CPU seconds of each part, without those of parts inside it, and the
share of all but the steps. Flags are those of `afterimage pretrain`. Pin it to one core
(`taskset -c 0`): on more, waiting threads count too.
"""

import collections
import importlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

RUN = ["digits", "--image-size", "64", "--channels", "3", "--steps", "400"]
RUN += ["--batch-size", "64", "--objective", "masked", "--masked.target", "hog"]
STEPS = "training steps"
_RUN, _EVALUATION = "afterimage.pretrain.run", "afterimage.pretrain.evaluation"
_PROGRAM = "afterimage.pretrain.program"
PARTS = {
    "reading images": [(_RUN, "open_data"), (_PROGRAM, "preprocessing_of")],
    "building the model": [(_RUN, "_Pretraining.__init__")],
    "baselines": [(_EVALUATION, "Evaluation.measure_baselines")],
    "mean image": [(_EVALUATION, "Evaluation._mean_image_loss")],
    "losses of held-out images": [(_EVALUATION, "Evaluation.losses")],
    "features": [(_EVALUATION, "Evaluation.features")],
    "probes": [(_EVALUATION, "Probes.score"), (_EVALUATION, "choose")],
    "pictures": [(_EVALUATION, "Evaluation._picture")],
    "saving": [("afterimage.training.loop", "_save"), (_RUN, "write_encoder")],
    "report": [(_RUN, "write_run_report")],
    STEPS: [("afterimage.training.job", "fit")],
}


class Clock:
    """CPU seconds by part; a part inside another counts only for itself."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self._inner = [0.0]

    def timed(self, part: str | Callable[..., str], function: Callable[..., Any]):
        """The function, timed; its part may depend on its arguments."""

        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.process_time() - began
                name = part if isinstance(part, str) else part(*args, **kwargs)
                self.seconds[name] += whole - self._inner.pop()
                self._inner[-1] += whole

        return run

    def watch(self, part: str | Callable[..., str], module: str, name: str) -> None:
        """Time a function or method of a module from now on."""
        owner: Any = importlib.import_module(module)
        *classes, name = name.split(".")
        for one in classes:
            owner = getattr(owner, one)
        setattr(owner, name, self.timed(part, getattr(owner, name)))


def _program(_: Any, computation: Any, *args: Any, **kwargs: Any) -> str:
    name = str(computation.operation.attributes["sym_name"]).strip('"')
    return "compiling the step" if name == "jit_step" else "compiling the rest"


def inside(flags: list[str]) -> None:
    """One run in this process, and its table."""
    from afterimage.commands import main as afterimage

    clock = Clock()
    for part, functions in PARTS.items():
        for module, name in functions:
            clock.watch(part, module, name)
    clock.watch(_program, "jax._src.compiler", "compile_or_get_cached")
    clock.seconds["importing"] = time.process_time()
    code = afterimage(["pretrain", *flags])
    if code:
        raise SystemExit(code)
    total = time.process_time()
    clock.seconds["the rest"] = total - sum(clock.seconds.values())
    for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"{seconds:8.2f} s  {100 * seconds / total:5.1f} %  {part}")
    rest = total - clock.seconds[STEPS]
    print(f"{rest:8.2f} s  {100 * rest / total:5.1f} %  all but the steps")


def main(flags: list[str]) -> None:
    """Both runs, and the tables."""
    with tempfile.TemporaryDirectory() as name:
        home = pathlib.Path(name)
        for caches in ("empty", "warm"):
            call = f"from benchmarks.instruments import inside; inside({flags!r} + "
            command = [
                sys.executable,
                "-c",
                f"{call}['--out', {str(home / caches)!r}])",
            ]
            environment = {**os.environ, "AFTERIMAGE_CACHE": str(home / "cache")}
            done = subprocess.run(
                command, env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            table = [line for line in done.stdout.splitlines() if " %  " in line]
            print(f"{' '.join(flags)}, {caches} caches:", *table, sep="\n", flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    main([*RUN, *given] if not given or given[0].startswith("--") else given)
