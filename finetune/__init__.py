"""Stage 2: a pretrained encoder learns to classify, with the labels there are."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage.finetune.config import FinetuneConfig
    from afterimage.finetune.report import FinetuneResult
    from afterimage.finetune.run import finetune

__all__ = ["FinetuneConfig", "FinetuneResult", "finetune"]

__getattr__, __dir__ = exports(
    __name__,
    {
        "FinetuneConfig": "afterimage.finetune.config",
        "FinetuneResult": "afterimage.finetune.report",
        "finetune": "afterimage.finetune.run",
    },
)
