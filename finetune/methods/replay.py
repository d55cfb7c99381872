"""Replay: trains again on some images of earlier tasks.

With n tasks begun, the new task's images weigh 1/n and those of the earlier tasks
(n − 1)/n (van de Ven et al. 2022, "Three types of incremental learning").
"""

import dataclasses

from afterimage.finetune.method import METHODS, Method, Stream
from afterimage.finetune.tasks.continual import task_loss

REPLAY = "replay"


@METHODS.add("replay", group="continual")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay(Method):
    """Trains again on some images of earlier tasks."""

    memory: int = 20
    """Number of images per class to keep, chosen by seed."""

    @property
    def trains_earlier_heads(self) -> bool:
        return True

    def problems(self, config):
        if self.memory < 1:
            return [f"memory={self.memory}: must be at least 1 image per class"]
        return []

    def phase_streams(self, setup, phase):
        if not phase:
            return {}
        train, seed = setup.data.labels.train, setup.config.seed
        images = setup.plan.tasks.memory(train, phase, self.memory, seed)
        return {REPLAY: Stream(images)}

    def labelled_terms(self, setup, terms, phase):
        if not phase:
            return terms
        plan = setup.plan
        count = len(plan.begun(phase))
        new = [term.times(1 / count) for term in terms]
        whole = plan.tasks.slices(plan.begun(phase))
        slices = plan.old_slices(phase) if plan.tasks.per_task else whole
        share = phase / count
        return [*new, task_loss(slices, stream=REPLAY, name=REPLAY, weight=share)]
