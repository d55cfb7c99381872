"""Settings of both commands: frozen, documented, checked on construction."""

import dataclasses
from typing import Literal

from afterimage.fields import at_least_0, field_problems, spec_problems
from afterimage.finetune.own_options import EncoderOptions
from afterimage.training.options import Augmentation, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentConfig(EncoderOptions):
    """Train a segmenter on a pretrained encoder, with few or many masks."""

    images: str
    """The images: a folder, or csv:PATH, a table with the columns image and mask. A
    folder train/ beside test/ (and validation/), or a column split, sets images
    apart."""

    masks: str | None = None
    """The folder of the masks, PNGs with the names of the images. Their pixels are
    numbers of classes, or colours. Left out for a table."""

    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers or, for masks of colours, of
    the colours. Default: the numbers or colours that are in the masks."""

    ignore: str = "255"
    """Pixels of unknown class, which do not count: a number or a colour such as
    #e0e0c0; none if every pixel counts."""

    dice: float = 1.0
    """Weight of the Dice loss, beside the cross-entropy with weight 1; 0: none."""

    augment: Augmentation = "crop:0.5,flip"
    """How training images are changed, joined by commas: movements such as crop, flip,
    rotate and zoom, which move the mask along, and changes of colour."""

    def problems(self) -> list[str]:
        """Every setting of this stage that cannot work, in one list."""
        found = spec_problems("images", self.images) + super().problems()
        if len(set(self.classes)) < len(self.classes) or len(self.classes) == 1:
            found.append(f"classes={self.classes}: must be two or more different names")
        try:
            parse_value(self.ignore)
        except ValueError:
            found.append(
                f"ignore={self.ignore}: must be a number, a colour such as #e0e0c0, "
                "or none"
            )
        return found + at_least_0(self, "dice")


def parse_value(text: str) -> tuple[bool, int] | None:
    """(is a colour, its number) of a value in a mask; None for `none`.

    A colour's number is 65536 red + 256 green + blue. ValueError for other texts.
    """
    if text == "none":
        return None
    if text.startswith("#") and len(text) == 7:
        return True, int(text[1:], 16)
    return False, int(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentPredictConfig:
    """Masks of images, into a folder."""

    images: str
    """The folder of the images."""

    from_: str
    """The segmenter: a finished run of `afterimage segment`, or its segmenter/."""

    out: str
    """The folder to write: masks/ and overlays/, with the names of the images."""

    overlay: float = 0.5
    """How much of the colour of a class is over the image, from 0 to 1; 0: no
    overlays are written."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with a damaged image: stop and name it, or skip and count it."""

    def __post_init__(self) -> None:
        check(field_problems(self))
        wrong = spec_problems("images", self.images)
        if not 0 <= self.overlay <= 1:
            wrong.append(f"overlay={self.overlay}: must be in [0, 1]")
        check(wrong)
