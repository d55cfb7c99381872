"""Shared by methods that align the features of two domains."""

import dataclasses
from typing import ClassVar

from afterimage.fields import above_0
from afterimage.finetune.method import Method
from afterimage.models.classifier import HEAD

FEATURES = f"train/features/{HEAD}", f"target/features/{HEAD}"
"""The features that the head reads, for labelled images and for target images."""
LOGITS = f"train/logits/{HEAD}", f"target/logits/{HEAD}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment(Method):
    """Aligns the features of labelled and target images."""

    target_in_batch: ClassVar[bool] = True
    streams: ClassVar[tuple[str, ...]] = ("target",)
    acts_on_encoder: ClassVar[bool] = True

    weight: float = 1.0
    """Weight relative to the loss of the labels."""

    def problems(self, config):
        return above_0(self, "weight")
