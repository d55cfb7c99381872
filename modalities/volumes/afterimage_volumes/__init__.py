"""Volumes: a 3-D encoder from NIfTI files and DICOM series, and classes from few."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage_volumes.config import FinetuneConfig as FinetuneConfig
    from afterimage_volumes.config import PretrainConfig as PretrainConfig
    from afterimage_volumes.finetuning import finetune as finetune
    from afterimage_volumes.models import (
        load_volume_classifier as load_volume_classifier,
    )
    from afterimage_volumes.models import load_volume_encoder as load_volume_encoder
    from afterimage_volumes.pretraining import pretrain as pretrain

__getattr__, __dir__ = exports(__name__, __file__)
