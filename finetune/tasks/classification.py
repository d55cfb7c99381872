"""Classification: every image has one class for each task."""

import dataclasses

from afterimage.finetune.tasks import TASKS, Task


@TASKS.add("classification")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Classes of images; the best step on validation images is kept."""
