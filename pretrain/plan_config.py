"""Settings of `afterimage plan`, checked when made."""

import dataclasses
from typing import Annotated, Literal

from afterimage.fields import OneOf, at_least_0, at_least_1
from afterimage.plugins import ENCODERS, OBJECTIVES
from afterimage.settings import given_problems
from afterimage.training.options import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What pretraining would need on devices that need not be there."""

    preset: str | None = None
    """The pretraining preset to plan; the flags below win over it. Without
    it: encoder `conv`, objective `plain`."""

    devices: str | None = None
    """KIND:NUMBER, such as h100:8, l4:1, tpu-v5e:16, tpu-v6e:256 or cpu:1. Default: the
    devices of this machine, where the step is then timed as well."""

    batch_size: int | None = None
    """Images per step, over all devices. Default: the preset's, or the nearest multiple
    of the devices above it."""

    image_size: int | None = None
    """Side of the images, in pixels. Default: the preset's."""

    channels: int | None = None
    """Channels of the images. Default: the preset's, or 3."""

    images: int = 0
    """Number of training images to keep on every device. Default: none; they come with
    each batch."""

    from_: str | None = None
    """The encoder that is continued: a run, a checkpoint or an encoder folder."""

    model: Annotated[str, OneOf(ENCODERS)] | None = None
    """The encoder."""

    objective: Annotated[str, OneOf(OBJECTIVES)] | None = None
    """The objective, with its default settings."""

    augment: str | None = None
    """The augmentation. Default: the preset's, or `photos` if the objective compares
    views."""

    view_size: int | None = None
    """Side of the views that `crop` cuts out of the images, in pixels."""

    decoder: str | None = None
    """The decoder."""

    width: float | None = None
    """Multiplies the channels of every layer."""

    precision: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of the forward and backward pass."""

    accumulate: int | None = None
    """Micro-batches per step."""

    remat: bool | None = None
    """Recompute activations in the backward pass."""

    shard_parameters: bool | None = None
    """Each device keeps a part of the parameters and moments instead of all."""

    search: Literal["none", "given", "all"] = "given"
    """Search the largest batch that fits: for the given settings, or for all four of
    with and without remat and two micro-batches. Each search compiles up to five
    times."""

    measure: bool = True
    """Run the step for a few seconds if the devices are there, and compare."""

    def __post_init__(self) -> None:
        check(given_problems(self))
        found = at_least_1(self, "batch_size", "channels", "accumulate")
        found += at_least_0(self, "images")
        if self.image_size is not None and self.image_size < 8:
            found.append(f"image_size={self.image_size}: must be at least 8")
        check(found)

    def changes(self) -> dict[str, object]:
        """The settings of PretrainConfig that replace those of the preset."""
        names = (
            *("batch_size", "image_size", "channels", "from_", "model", "width"),
            *("objective", "augment", "view_size", "decoder", "precision"),
            *("accumulate", "remat", "shard_parameters"),
        )
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}
