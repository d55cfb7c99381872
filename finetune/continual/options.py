"""Settings of a sequence of tasks."""

import dataclasses
from typing import Literal

from afterimage.finetune.options import is_default


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinualOptions:
    """Continual learning: one task after another."""

    sequence: tuple[str, ...] = ()
    """Continual learning: the classes of each task by name, separated by commas:
    --sequence 0,1 2,3 4,5. The tasks are learned in this order, each on its own images
    alone and for an equal share of the steps."""

    scenario: Literal["task", "class"] = "class"
    """task: a head for each task, and it is known which task an image belongs to.
    class: one head for all classes seen so far."""

    continual: Literal["none", "joint", "ewc", "lwf", "replay"] = "none"
    """What is done against forgetting. none: nothing (a lower bound); joint: all tasks
    at once (an upper bound); ewc: parameters that mattered are held; lwf: the earlier
    model's predictions are kept (T² KL, T = 2); replay: some earlier images are shown
    again."""

    continual_weight: float | None = None
    """Weight of ewc's penalty (default 1e3) or of lwf's term (default 1)."""

    memory: int = 20
    """replay: so many images of each class are kept, chosen by seed."""

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        if not self.sequence:
            names = ("continual", "scenario", "continual_weight", "memory")
            return [
                f"{name}={getattr(self, name)!r} is about a sequence of tasks: give "
                "sequence, e.g. 0,1 2,3"
                for name in names
                if not is_default(self, name)
            ]
        found, weight = [], self.continual_weight
        if weight is not None and self.continual not in ("ewc", "lwf"):
            found.append(
                f"continual_weight={weight}: only with continual='ewc' or 'lwf'"
            )
        if weight is not None and not weight > 0:
            found.append(f"continual_weight={weight}: more than 0")
        if self.memory < 1:
            found.append(f"memory={self.memory}: at least 1 image a class")
        if self.continual != "replay" and not is_default(self, "memory"):
            found.append(f"memory={self.memory}: only with continual='replay'")
        return found
