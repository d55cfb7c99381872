"""Specs, files and objects -> sets of images of one shape."""

from afterimage.data.augmentations import make_augment
from afterimage.data.labels import WAYS_TO_LABEL, check_classes, counted
from afterimage.data.preprocessing import Preprocessing, channel_statistics
from afterimage.data.sets import (
    UNLABELLED,
    BadImage,
    ImageSet,
    Joined,
    Labels,
    Splits,
    array_set,
    choose_labels,
    hold_out,
    stratified,
)
from afterimage.data.sources import Source, has_tasks, object_spec, open_data

__all__ = [
    "UNLABELLED",
    "WAYS_TO_LABEL",
    "BadImage",
    "ImageSet",
    "Joined",
    "Labels",
    "Preprocessing",
    "Source",
    "Splits",
    "array_set",
    "channel_statistics",
    "check_classes",
    "choose_labels",
    "counted",
    "has_tasks",
    "hold_out",
    "make_augment",
    "object_spec",
    "open_data",
    "stratified",
]
