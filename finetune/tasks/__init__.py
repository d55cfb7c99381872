"""What is learned: classes, one group of classes after another, or episodes."""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from afterimage.plugins import Registry

if TYPE_CHECKING:
    from afterimage.finetune.config import FinetuneConfig
    from afterimage.finetune.data import RunData
    from afterimage.finetune.run import FinetuneJob
    from afterimage.runs import Run
else:  # naming a task must not start JAX
    FinetuneConfig = RunData = FinetuneJob = Run = Any

TASKS: Registry[Any] = Registry("task", "afterimage.finetune.tasks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned: the settings are its fields; it makes a run's job."""

    name: ClassVar[str]
    kept_step: ClassVar[str | None] = None
    """Which step is kept, in words; None if the best one is chosen."""

    def problems(self, config: "FinetuneConfig") -> list[str]:
        """Problems with the settings, one sentence each, without the task's name."""
        return []

    def job(
        self, config: "FinetuneConfig", data: "RunData", run: "Run"
    ) -> "FinetuneJob | None":
        """The job for `training.job.execute`; None for plain classification."""

    def leave_out(self, config: "FinetuneConfig", names: Iterable[str]) -> list[str]:
        """Problems for settings this task does not support.

        One for each of these settings that is not at its default, and one for a mode
        that does not train the whole encoder.
        """
        found = []
        if config.mode.name not in ("full", "scratch"):
            found.append(
                f"works only with mode full or scratch, not {config.mode.name}"
            )
        if config.select not in ("auto", "last"):
            found.append(
                f"always keeps the last step: leave select={config.select!r} out"
            )
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        return found + [
            f"does not use {name}={getattr(config, name)!r}: leave it out"
            for name in names
            if getattr(config, name) != defaults[name]
        ]
