"""Pretraining and fine-tuning as the tables of `benchmarks.transfer` use them."""

import contextlib
import io
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np


class Settings(Protocol):
    """What of `benchmarks.transfer.Transfer` a table reads."""

    folder: str
    seeds: int
    steps: int
    pretrain_steps: int
    select: str

    def wants(self, row: str) -> bool:
        """Whether this row was asked for."""
        ...


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    nothing = io.StringIO()
    with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        yield


def pretrained(
    data: str,
    out: pathlib.Path,
    steps: int,
    seed: int,
    preset: str = "small-images",
    **settings: Any,
) -> str:
    """The run folder of an encoder of these images, found complete or trained."""
    from pretrain.presets import preset_config
    from pretrain.program import pretrain

    config = preset_config(
        preset,
        data=data,
        out=str(out),
        seed=seed,
        steps=steps,
        epochs=None,
        tensorboard=False,
        **settings,
    )
    with _quiet():
        pretrain(config)
    return str(out)


def finetuned(**settings: Any) -> tuple[dict[str, Any], float | None]:
    """(results, seconds) of one run; no seconds where it was complete before."""
    from finetune.config import FinetuneConfig
    from finetune.program import finetune

    clock = time.perf_counter()
    with _quiet():
        result = finetune(FinetuneConfig(tensorboard=False, **settings))
    spent = None if result.complete else time.perf_counter() - clock
    return dict(result.results), spent


def by_seed(
    run: Settings, settings: Callable[[int], dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(the results, the seconds and the rule as fields of a row) of a run a seed."""
    found, seconds = [], []
    for seed in range(run.seeds):
        budget = {"seed": seed, "steps": run.steps}
        results, spent = finetuned(**settings(seed) | budget)
        found.append(results)
        seconds.append(spent)
    rules = sorted({results["selection"]["rule"] for results in found})
    return found, {"selection": "; ".join(rules), **_cost(seconds)}


def _cost(seconds: list[float | None]) -> dict[str, Any]:
    """What a run took, where none was found complete."""
    known = [spent for spent in seconds if spent is not None]
    return {"seconds": round(float(np.mean(known)), 1)} if known else {}


def accuracy(results: dict[str, Any]) -> float:
    """Test accuracy, %."""
    return 100 * results["test"]["accuracy"]["value"]
