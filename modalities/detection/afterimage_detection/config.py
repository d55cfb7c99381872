"""Settings of both commands."""

import dataclasses
from typing import Literal

from afterimage.fields import above_0, field_problems, spec_problems
from afterimage.reading import ReadingOptions
from afterimage.training.options import Augmentation, RunOptions, TrainingOptions, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectConfig(TrainingOptions, RunOptions, ReadingOptions):
    """Train a detector on a pretrained encoder, with few or many boxes."""

    data: str
    """The folder of the images. Folders train/ beside test/ (and validation/) set
    images apart."""

    boxes: str
    """The boxes: a COCO file (.json), whose file names are relative to the images; or a
    folder of YOLO labels, a .txt for each image with lines `class x y w h`."""

    from_: str
    """The pretrained encoder: a run folder, one of its checkpoints/STEP, or a bare
    encoder/ folder."""

    classes: tuple[str, ...] = ()
    """Names of the classes of YOLO labels, in the order of their numbers. Default: the
    lines of classes.txt beside the labels."""

    image_size: int | None = None
    """Side of the square, in pixels, that images are scaled to fit into. Default: the
    encoder's."""

    validation: float = 0.1
    """Share of the training images that chooses the step, drawn by seed, if the data
    have no validation images."""

    hold_out: float = 0.2
    """Share of the images to test on, drawn by seed, if the data have no test images.
    0: no test."""

    mode: Literal["full", "frozen", "scratch"] = "full"
    """full: encoder and head learn. frozen: only the head. scratch: both, from random
    weights, as a control."""

    encoder_lr: float = 0.1
    """Mode full: the encoder's learning rate, as a multiple of lr."""

    augment: Augmentation = "crop:0.5,flip"
    """How training images are changed, joined by commas: movements without rotation,
    such as crop, flip, zoom and translate, which move the boxes along, and changes of
    colour."""

    batch_size: int = 16
    """Images per step, over all devices."""

    lr: float = 3e-3
    """Peak learning rate of the head, reached after the warm-up."""

    def __post_init__(self) -> None:
        check(field_problems(self))  # first: the others compare these with numbers
        own = spec_problems("data", self.data) + above_0(self, "encoder_lr")
        for name in ("validation", "hold_out"):
            if not 0 <= getattr(self, name) < 1:
                own.append(f"{name}={getattr(self, name)}: must be in [0, 1)")
        if len(set(self.classes)) < len(self.classes):
            own.append(f"classes={self.classes}: must be different names")
        check(TrainingOptions.problems(self), RunOptions.problems(self), own)

    def total_steps(self, images: int, *, default_epochs: float = 100.0) -> int:
        """Steps of the run: by default 100 epochs, but 300 to 50,000 steps."""
        total = TrainingOptions.total_steps(self, images, default_epochs=default_epochs)
        given = self.steps is not None or self.epochs is not None
        return total if given else min(max(total, 300), 50_000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Boxes of images, into a folder."""

    data: str
    """The folder of the images."""

    from_: str
    """The detector: a finished run of `afterimage detect`, or its
    object-detector/."""

    out: str
    """The folder to write: boxes.json, and pictures/ with the boxes drawn."""

    score: float = 0.3
    """The lowest score of a box that is written, from 0 to 1."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with a damaged image: stop and name it, or skip and count it."""

    def __post_init__(self) -> None:
        check(field_problems(self))
        wrong = spec_problems("data", self.data)
        if not 0 <= self.score <= 1:
            wrong.append(f"score={self.score}: must be in [0, 1]")
        check(wrong)
