"""Classification: every image has one class, and one more in each further task."""

import dataclasses

from afterimage.finetune.tasks import TASKS, Task


@TASKS.add("classification")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Classes of images; the best step on validation images is kept."""

    def job(self, config, data, run):
        # Imported here: naming a task must not start JAX.
        from afterimage.finetune.run import FinetuneJob
        from afterimage.finetune.selection import choose_rule
        from afterimage.finetune.setup import build, make_stage

        rule = choose_rule(config, data)
        setup = build(config, data)
        return FinetuneJob(setup, make_stage(setup), rule, run)
