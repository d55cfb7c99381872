"""Settings of `afterimage anomalies`, checked when made. Needs no JAX."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from afterimage.fields import at_least_1
from afterimage.plugins import SCORERS
from afterimage.settings import given_problems, resolve
from afterimage.training.options import check

if TYPE_CHECKING:
    from afterimage.anomalies.scorer import Scorer
else:  # parsing the command line needs no JAX
    Scorer = Any

DEFAULT = "features"
"""The scorer if none is named; docs/guide/anomalies.md has the measurements."""
FALSE_ALARMS = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnomaliesConfig:
    """Images unlike the normal ones, into a file."""

    UPLOADED: ClassVar = ("out", "maps", "sheet")

    data: tuple[str, ...]
    """The images to score: a folder, .zip, .csv or .npz file, any number of image files
    or patterns such as "photos/*.jpg", or a spec as for the other commands."""

    from_: str
    """The encoder: a run folder, one of its checkpoints/STEP, or an encoder/ folder."""

    out: str
    """The file to write: .csv, .jsonl (one object a line) or .parquet, a row for each
    image: file, score, threshold, anomalous."""

    normal: str | None = None
    """Images of what is normal, as data. The detector fitted to them is kept, so the
    next command with the same scorer needs none."""

    by: Annotated["Scorer", SCORERS] = DEFAULT  # pyright: ignore[reportAssignmentType]
    """How images are scored. In Python: a name, an instance such as
    Patches(memory=500), or {"name": "patches", "memory": 500}."""

    false_alarms: float | None = None
    """Share of normal images above the threshold. Rarer ones need more normal images: 1
    in 100 at least 99 held out. Default: 0.01, or that of the kept detector."""

    held_out: float = 0.3
    """Share of the normal images that only sets the threshold, with normal."""

    most: int = 2000
    """Use at most this many normal images, drawn by seed."""

    maps: str | None = None
    """Folder for a picture of each anomalous image, with its heat map beside it."""

    sheet: str | None = None
    """Contact sheet of the images with the highest scores: .png or .html."""

    normal_class: str = "normal,good,ok"
    """Classes (folders) of data that are normal, separated by commas. If data has such
    a class and others, the AUROC is printed."""

    detector: str | None = None
    """Folder of the detector. Default: RUN/anomalies/SCORER, or in the cache folder if
    the encoder is not in a run."""

    seed: int = 0
    """Draws the normal images, and those held out."""

    batch_size: int = 64
    """Images per forward pass."""

    on_bad_image: Literal["skip", "fail"] = "skip"
    """What to do with a broken image: list it beside the scores and go on, or stop. The
    same command then continues with that image."""

    outside_images: bool = False
    """Allow a table to list images outside its own folder: absolute paths, and `..`."""

    def __post_init__(self) -> None:
        resolve(self)
        check(given_problems(self))
        found = at_least_1(self, "batch_size")
        if not self.data:
            found.append("data: name the images")
        if not self.normal_class.strip(" ,"):
            found.append("normal_class: name at least one class")
        rate = FALSE_ALARMS if self.false_alarms is None else self.false_alarms
        check(found, fit_problems(rate, self.held_out, self.most))


def fit_problems(
    false_alarms: float, held_out: float = 0.3, most: int = 2000
) -> list[str]:
    """Settings of a fit that cannot work, in one list."""
    found = [
        f"{name}={value}: must be a share in (0, 1)"
        for name, value in (("false_alarms", false_alarms), ("held_out", held_out))
        if not 0 < value < 1
    ]
    return found + ([f"most={most}: must be at least 4"] if most < 4 else [])
