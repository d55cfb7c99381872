"""Settings of both commands: frozen, documented, checked on construction."""

import dataclasses
from typing import Literal

from afterimage.fields import at_least_1, field_problems, spec_problems
from afterimage.finetune.own_options import EncoderOptions
from afterimage.reading import ReadingOptions
from afterimage.training.options import Augmentation, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignConfig(EncoderOptions):
    """Align a pretrained image encoder with frozen vectors of texts."""

    pairs: str
    """A table (pairs.csv, .jsonl, or parquet:PATTERN) with the columns image and text
    and, if you like, class and split (train, validation, test)."""

    text: str = "minilm"
    """What gives the vectors of the texts, which never change: minilm, a folder with a
    BERT of Hugging Face, a run of text-pretrain or text-finetune; or a file, .npz or
    .parquet, with a row for every text: text and vector."""

    text_column: str = "text"
    """The column that holds the text."""

    augment: Augmentation = "crop:0.5"
    """How training images are changed, joined by commas. Texts stay as they are: do not
    flip or recolour what they describe."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with a damaged image: stop and name it, or skip and list it."""

    batch_size: int = 128
    """Pairs per step, over all devices. Every other text in it is a wrong answer."""

    lr: float = 1e-3
    """Peak learning rate of the projection, reached after the warm-up."""

    def problems(self) -> list[str]:
        """Every setting of this stage that cannot work, in one list."""
        found = spec_problems("pairs", self.pairs) + super().problems()
        if not self.validation:
            found.append("validation=0.0: must be in (0, 1)")
        if self.batch_size // max(self.accumulate, 1) < 2:
            found.append(
                f"batch_size={self.batch_size} with accumulate={self.accumulate}: needs"
                " at least 2 pairs together, which are compared with each other"
            )
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShotConfig(ReadingOptions):
    """Images to classes that are given as words."""

    images: str
    """The images: a folder, an archive or a table. With classes (folders of that name,
    or a column class), the accuracy is printed."""

    classes: tuple[str, ...]
    """The names of the classes, or one file (.txt) with a name on each line."""

    from_: str
    """The aligner: a finished run of `afterimage align`, or its aligner/ folder."""

    out: str
    """The file to write: .csv, .jsonl or .parquet, a row for each image."""

    prompt: str = "{}"
    """The text of a class, with {} where its name goes: "a photo of a {}"."""

    text: str | None = None
    """What gives the vectors of the prompts, as in align. Default: what gave those of
    the training texts."""

    split: Literal["train", "validation", "test"] | None = None
    """Only the images of this split. Default: all."""

    top: int = 3
    """Classes listed for each image."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with a damaged image: stop and name it, or skip and count it."""

    def __post_init__(self) -> None:
        check(field_problems(self))
        wrong = spec_problems("images", self.images)
        if "{}" not in self.prompt:
            wrong.append(f"prompt={self.prompt}: must contain {{}}, the class's place")
        check(wrong, at_least_1(self, "top"))
