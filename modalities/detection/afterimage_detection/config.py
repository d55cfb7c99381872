"""Settings of both commands."""

import dataclasses
from typing import Literal

from afterimage.fields import field_problems, spec_problems
from afterimage.finetune.own_options import EncoderOptions
from afterimage.training.options import Augmentation, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectConfig(EncoderOptions):
    """Train a detector on a pretrained encoder, with few or many boxes."""

    data: str
    """The folder of the images. Folders train/ beside test/ (and validation/) set
    images apart."""

    boxes: str
    """The boxes: a COCO file (.json), whose file names are relative to the images; or a
    folder of YOLO labels, a .txt for each image with lines `class x y w h`."""

    test_data: str | None = None
    """A folder of other images to test on, e.g. val2017 of COCO. Its boxes are those of
    test_boxes."""

    test_boxes: str | None = None
    """The boxes of test_data: a COCO file, or a folder of YOLO labels."""

    classes: tuple[str, ...] = ()
    """Names of the classes of YOLO labels, in the order of their numbers. Default: the
    lines of classes.txt beside the labels."""

    image_size: int | None = None
    """Side of the square, in pixels, that images are scaled to fit into. Default: the
    encoder's."""

    augment: Augmentation = "crop:0.5,flip"
    """How training images are changed, joined by commas: movements without rotation,
    such as crop, flip, zoom and translate, which move the boxes along, and changes of
    colour."""

    def problems(self) -> list[str]:
        """Every setting of this stage that cannot work, in one list."""
        found = spec_problems("data", self.data) + super().problems()
        if (self.test_data is None) != (self.test_boxes is None):
            found.append("test_data and test_boxes: give both, or neither")
        elif self.test_data is not None:
            found += spec_problems("test_data", self.test_data)
        if len(set(self.classes)) < len(self.classes):
            found.append(f"classes={self.classes}: must be different names")
        return found


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
