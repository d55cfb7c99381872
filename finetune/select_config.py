"""Settings of a comparison of finished runs."""

import dataclasses
from typing import Literal

from afterimage.errors import UserError
from afterimage.fields import field_problems
from afterimage.reading import ReadingOptions
from afterimage.training.options import check

FEWEST = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig(ReadingOptions):
    """Compare finished runs on images without labels."""

    from_: tuple[str, ...]
    """Fine-tuning runs, or their classifier/ folders, of the same classes: two or more
    with encoder, three or more without."""

    data: str
    """Where the images are: digits, folder:PATH, zip:PATH[,PATH], csv:PATH, npz:PATH,
    tfds:NAME, synthetic:HxWxC. Labels among them are not looked at."""

    encoder: str | None = None
    """The pretrained encoder, a run or its encoder/ folder, by whose features the
    neighbours of an image are told: best the one that the runs began from. Without it
    the mean of all predictions decides."""

    split: Literal["train", "validation", "test"] = "train"
    """Which of the images."""

    most: int = 10_000
    """Of more images so many, evenly spaced."""

    out: str | None = None
    """Write the figures to this file, as JSON."""

    batch_size: int = 256
    """Images that go through the network together."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with a broken image: stop and name it, or skip and count it."""

    cache: bool = True
    """Keep decoded images of folders and archives on disk for the next pass."""

    def __post_init__(self):
        check(field_problems(self))
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: at least 1")
        if len(self.from_) < 2:
            raise UserError(f"from has {len(self.from_)} runs: name two or more")
        if len(self.from_) < FEWEST and self.encoder is None:
            raise UserError(
                f"from has {len(self.from_)} runs: name {FEWEST} or more, since of two "
                "the surer one would always win; or give --encoder"
            )
        if self.most < 2:
            raise UserError(f"most={self.most}: at least 2 images")
        twice = {one for one in self.from_ if self.from_.count(one) > 1}
        if twice:
            raise UserError(f"from names {sorted(twice)[0]} twice: each run once")
