"""Stage 2: train a classifier on a pretrained encoder, with few or many labels."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage.finetune.config import FinetuneConfig as FinetuneConfig
    from afterimage.finetune.report import FinetuneResult as FinetuneResult
    from afterimage.finetune.run import finetune as finetune


__getattr__, __dir__ = exports(__name__, __file__)
