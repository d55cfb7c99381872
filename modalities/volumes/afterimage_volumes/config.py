"""Settings of the commands: frozen, documented, checked on construction."""

import dataclasses
from typing import Literal

from afterimage.fields import above_0, at_least_1, field_problems, spec_problems
from afterimage.settings import given_problems
from afterimage.training.options import RunOptions, TrainingOptions, check

BLOCK = 8
"""Voxels along a side of a block that is hidden whole; the stride of the last map."""
LARGEST, WIDEST = 512, 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class VolumeOptions(TrainingOptions, RunOptions):
    """Settings of both stages."""

    data: str
    """The volumes: a folder with .nii or .nii.gz files, or with folders of DICOM
    slices, one series each; or a .csv file with the column volume (paths beside it)."""

    flip: bool = True
    """Mirror half of the training volumes left to right. Turn it off if the side
    matters."""

    batch_size: int = 8
    """Volumes per step, over all devices."""

    def __post_init__(self) -> None:
        check(given_problems(self), field_problems(self))
        parts = (TrainingOptions.problems(self), RunOptions.problems(self))
        check(*parts, spec_problems("data", self.data), self.problems())

    def problems(self) -> list[str]:
        """Every setting of this package that cannot work, in one list."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(VolumeOptions):
    """Reconstruct hidden blocks of volumes."""

    size: int = 64
    """Voxels along each side of a volume, a multiple of 8. What lies outside of the
    cube around its middle is cut off; what is missing is 0."""

    spacing: float = 3.0
    """Millimetres from voxel to voxel; volumes are resampled to it. size x spacing is
    what the encoder sees: 192 mm by default, a head."""

    window: tuple[float, float] | None = None
    """The lowest and highest value, for CT in Hounsfield units: -160 240 for soft
    tissue. Default: the 0.5 and 99.5 % quantiles of each volume, without its lowest
    value."""

    width: int = 16
    """Channels of the first map; the others have two and four times as many."""

    mask: float = 0.6
    """Share of the blocks of 8 x 8 x 8 voxels that are hidden."""

    validation: float = 0.1
    """Share of the volumes held out, drawn by seed; their loss chooses the step."""

    def problems(self) -> list[str]:
        found = above_0(self, "spacing") + at_least_1(self, "width")
        if self.size % BLOCK or not 2 * BLOCK <= self.size <= LARGEST:
            found.append(
                f"size={self.size}: must be a multiple of {BLOCK} from {2 * BLOCK} to "
                f"{LARGEST}"
            )
        if self.width > WIDEST:
            found.append(f"width={self.width}: must be at most {WIDEST}")
        for name in ("mask", "validation"):
            if not 0 < getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)}: must be in (0, 1)")
        if self.window is not None and (
            len(self.window) != 2 or not self.window[0] < self.window[1]
        ):
            found.append(f"window={self.window}: must be two values, the lower first")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(VolumeOptions):
    """Train a classifier of volumes. The data are a .csv file that also has the column
    label, and perhaps split (train, validation, test) and patient (volumes of one stay
    together)."""

    from_: str
    """The encoder: a finished run of volume-pretrain, or of volume-finetune."""

    mode: Literal["probe", "full", "scratch"] = "full"
    """What learns. probe: a linear head; features are computed once. full: everything.
    scratch: everything, from random weights, as a control."""

    test: float = 0.2
    """Share of each class held out for the test, drawn by seed, if there is no column
    split."""

    validation: float = 0.2
    """Share of the other volumes whose loss chooses the step, drawn by seed, if none
    have the split validation. 0: the last step is kept."""

    encoder_lr: float | None = None
    """Multiplies the learning rate of the encoder. Default: 0.3, and 1 from scratch."""

    def problems(self) -> list[str]:
        found = above_0(self, "encoder_lr")
        if not 0 < self.test < 1:
            found.append(f"test={self.test}: must be in (0, 1)")
        if not 0 <= self.validation < 1:
            found.append(f"validation={self.validation}: must be in [0, 1)")
        if self.mode == "probe" and self.encoder_lr is not None:
            found.append(f"encoder_lr={self.encoder_lr}: no effect, as a probe's is 0")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Classes of volumes, into a table."""

    data: str
    """The volumes: a folder or a .csv file, as in training; or one .nii file."""

    from_: str
    """The classifier: a finished run of volume-finetune."""

    out: str
    """The file to write: .csv, .jsonl or .parquet."""

    def __post_init__(self) -> None:
        check(field_problems(self), spec_problems("data", self.data))
