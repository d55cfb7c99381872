"""Pretraining and fine-tuning for the tables of the benchmarks."""

import contextlib
import io
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from afterimage.checkpoints.errors import RunLocked

_QUIET = {"tensorboard": False, "log_every": 50}
_WAIT = 10.0  # seconds, while another program uses a run folder


class Settings(Protocol):
    """The part of `benchmarks.transfer.Transfer` that a table reads."""

    folder: str
    seeds: int
    steps: int
    pretrain_steps: int
    select: str

    def wants(self, row: str) -> bool:
        """Whether this row was requested."""
        ...


def pretrained(data: str, out: pathlib.Path, seed: int, **settings: Any) -> str:
    """The run folder of an encoder of these images, trained unless already complete.

    Waits while another program uses the folder: rows share encoders.
    """
    from afterimage.pretrain.config import PretrainConfig
    from afterimage.pretrain.run import pretrain

    # Probes and pictures are for people; here they would only take time.
    config = PretrainConfig(
        data=data,
        out=str(out),
        seed=seed,
        probe_images=0,
        pictures=0,
        eval_every=settings["steps"],
        save_every=max(1, settings["steps"] // 10),
        **_QUIET,
        **settings,
    )
    told = False
    while True:
        try:
            quietly(pretrain, config)
            return str(out)
        except RunLocked as error:
            if not told:
                print(f"{error} Asked again every {_WAIT:g} s.")
            told = True
            time.sleep(_WAIT)


def pretrained_as(
    preset: str, data: str, out: pathlib.Path, steps: int, seed: int
) -> str:
    """The same, with a preset of another length."""
    from afterimage.pretrain.presets import PRESETS

    settings = {**PRESETS[preset].settings, "steps": steps, "epochs": None}
    return pretrained(data, out, seed, **settings)


def finetuned(**settings: Any) -> tuple[dict[str, Any], float | None]:
    """(results, seconds) of one run; None for seconds if it was already complete."""
    from afterimage.finetune.config import FinetuneConfig
    from afterimage.finetune.run import finetune

    clock = time.perf_counter()
    result = quietly(finetune, FinetuneConfig(**_QUIET, **settings))
    spent = None if result.complete else time.perf_counter() - clock
    return dict(result.results), spent


def quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a program without its progress lines, unless it fails."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return function(*arguments)
    except BaseException:
        print(said.getvalue(), file=sys.stderr)
        raise


def by_seed(
    run: Settings, settings: Callable[[int], dict[str, Any]], times: int = 1
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(results, fields of a row: seconds and rule), with one run per seed.

    The runs have `times` as many steps as `run`.
    """
    found, seconds = [], []
    for seed in range(run.seeds):
        budget = {"seed": seed, "steps": times * run.steps}
        results, spent = finetuned(**settings(seed) | budget)
        found.append(results)
        seconds.append(spent)
    # Keep only the file of a data spec; its folder is not of interest.
    rules = {re.sub(r"(?<=npz:)\S*/", "", r["selection"]["rule"]) for r in found}
    return found, {"selection": "; ".join(sorted(rules)), **_cost(seconds)}


def _cost(seconds: list[float | None]) -> dict[str, Any]:
    """Mean seconds per run, over runs that were not already complete."""
    known = [spent for spent in seconds if spent is not None]
    return {"seconds": round(float(np.mean(known)), 1)} if known else {}


def accuracy(results: dict[str, Any]) -> float:
    """Test accuracy, %."""
    return 100 * results["test"]["accuracy"]["value"]
