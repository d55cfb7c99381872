"""What a caller is told while a run goes on, in its own process."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

Metrics = Mapping[str, Any]


def _nothing(step: int, metrics: Metrics) -> None:
    del step, metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Functions that the loop calls; every process calls them, at the same steps.

    An exception in one ends the run as any other error does: what was saved stays, and
    the same call continues from there.
    """

    on_log: Callable[[int, Metrics], None] = _nothing
    """on_log(step, metrics), at each line of metrics.jsonl: the training metrics
    (`loss`, `lr`, …), means over the steps since the last line."""

    on_evaluation: Callable[[int, Metrics], None] = _nothing
    """on_evaluation(step, metrics), after each evaluation."""

    on_checkpoint: Callable[[int, pathlib.Path], None] | None = None
    """on_checkpoint(step, folder), when a checkpoint is complete on disk. With it the
    loop waits for each save; without it saves are written beside training."""


NO_CALLBACKS = Callbacks()
