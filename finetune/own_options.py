"""Settings of a network of your own on an image encoder."""

import dataclasses
from typing import Literal

from afterimage.fields import above_0, field_problems
from afterimage.reading import ReadingOptions
from afterimage.training.options import RunOptions, TrainingOptions, check

_FEWEST, _MOST = 300, 50_000
"""Steps, if neither steps nor epochs are given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderOptions(TrainingOptions, RunOptions, ReadingOptions):
    """Settings of a network on an encoder; subclasses add the data and their own."""

    from_: str
    """The pretrained encoder: a run folder, one of its checkpoints/STEP, or a bare
    encoder/ folder."""

    image_size: int | None = None
    """Side of the square, in pixels, that images are scaled and cropped to. Default:
    the encoder's."""

    validation: float = 0.1
    """Share of the training images that chooses the step, drawn by seed, if the data
    have no validation images."""

    hold_out: float = 0.2
    """Share of the images to test on, drawn by seed, if the data have no test images.
    0: no test."""

    mode: Literal["full", "frozen", "scratch"] = "full"
    """What learns beside the new part. full: the encoder. frozen: nothing. scratch: the
    encoder, from random weights, as a control."""

    encoder_lr: float = 1.0
    """Mode full: the encoder's learning rate, as a multiple of lr. Less keeps more of
    what it knows: try 0.1 for weights of a long training on many images."""

    batch_size: int = 16
    """Images per step, over all devices."""

    lr: float = 3e-3
    """Peak learning rate of the new part, reached after the warm-up."""

    def __post_init__(self) -> None:
        check(field_problems(self))  # first: the others compare these with numbers
        parts = (TrainingOptions.problems(self), RunOptions.problems(self))
        check(*parts, self.problems())

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list, besides those of any run."""
        found = above_0(self, "encoder_lr")
        for name in ("validation", "hold_out"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)}: must be in [0, 1)")
        if self.image_size is not None and self.image_size < 8:
            found.append(f"image_size={self.image_size}: must be at least 8")
        return found

    def total_steps(self, images: int, *, default_epochs: float = 100.0) -> int:
        """Steps of the run: by default 100 epochs, but 300 to 50,000 steps."""
        total = TrainingOptions.total_steps(self, images, default_epochs=default_epochs)
        given = self.steps is not None or self.epochs is not None
        return total if given else min(max(total, _FEWEST), _MOST)
