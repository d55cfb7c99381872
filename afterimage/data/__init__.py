"""Files to records to batches on devices."""

from afterimage.data.augmentations import make_augment
from afterimage.data.batches import Batches, batch_indices, eval_batches
from afterimage.data.labels import WAYS_TO_LABEL, check_classes, counted
from afterimage.data.preprocessing import Preprocessing
from afterimage.data.sets import (
    UNLABELLED,
    BadImage,
    ImageSet,
    Joined,
    Labels,
    Splits,
    array_set,
)
from afterimage.data.sources import has_tasks, open_data
from afterimage.data.splits import choose_labels, hold_out
from afterimage.data.statistics import channel_statistics

__all__ = [
    "UNLABELLED",
    "WAYS_TO_LABEL",
    "BadImage",
    "Batches",
    "ImageSet",
    "Joined",
    "Labels",
    "Preprocessing",
    "Splits",
    "array_set",
    "batch_indices",
    "channel_statistics",
    "check_classes",
    "choose_labels",
    "counted",
    "eval_batches",
    "has_tasks",
    "hold_out",
    "make_augment",
    "open_data",
]
