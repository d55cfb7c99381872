"""Settings both stages share, as mixins of flat, frozen, documented dataclasses."""

import dataclasses
import os
from typing import Annotated, Any, Literal

from afterimage.checkpoints.names import spelling, unfit_for_arrays
from afterimage.errors import UserError
from afterimage.fields import MOST, SeveralOf, above_0, at_least_0, at_least_1
from afterimage.plugins import AUGMENTATIONS
from afterimage.reading import ReadingOptions


def _augment_problem(spec: str) -> str | None:
    # Imported here: parsing the command line needs no JAX.
    from afterimage.data.augmentations import spec_problem

    return spec_problem(spec)


def whole_photos_problems(config: Any) -> list[str]:
    """Why `whole_photos` cannot work with the augmentation of these settings."""
    from afterimage.data.augmentations import cuts_first

    if not config.whole_photos or cuts_first(config.augment):
        return []
    return [
        f"whole_photos: crop must come first in augment={config.augment!r}, or after "
        "only flip, flip-vertical, rotate, zoom, slant and translate; use crop,flip, "
        "or the set photos or any-way-up"
    ]


Augmentation = Annotated[str, SeveralOf(AUGMENTATIONS, _augment_problem)]
"""Registered augmentations, joined by commas: `crop:0.3,flip,color`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions(ReadingOptions):
    """Which images, at which size."""

    data: str
    """The images: the path of a folder, or of a .zip, .csv or .npz file; or
    characters, digits, folder:PATH, zip:PATH[,PATH], csv:PATH, npz:PATH, tar:PATTERN,
    parquet:PATTERN, tfds:NAME, synthetic:HxWxC."""

    image_size: int | None = None
    """Side, in pixels, of the square the images are resized to. Default: the data's own
    size."""

    whole_photos: bool = False
    """Cut training views from all of a photo, not only from its central square. `crop`
    must come first in augment, or after only flip, flip-vertical, rotate, zoom, slant
    and translate. Evaluation uses the central square."""

    channels: int | None = None
    """1 converts every image to grey, 3 to colour; another number N reads images of N
    bands unchanged. Default: as in the data, which must be grey or colour."""

    value_range: str | None = None
    """The values of black and white in images with more than 8 bits: LOW,HIGH (0,4095
    for 12 bits in 16), or auto, the 0.1 and 99.9 % quantiles of the training images.
    Default: those of the encoder, if there is one; else the range of the data type, 0,1
    for floats. 8-bit images are unchanged."""

    validation: float = 0.1
    """Share of the training images held out for validation, drawn by seed and
    stratified by label. Ignored if the data has its own validation split."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with a damaged image: stop and name it, or skip, count and list it."""

    cache: bool = True
    """Cache decoded images of folders and archives on disk for the next run."""

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        found = []
        if self.image_size is not None and self.image_size < 8:
            found.append(f"image_size={self.image_size}: must be at least 8")
        found += at_least_1(self, "channels")
        if self.value_range is not None:
            # Imported here: parsing the command line needs no JAX.
            from afterimage.data.pixels import parse_range

            try:
                parse_range(self.value_range)
            except UserError as error:
                found.append(str(error))
        if not 0 <= self.validation < 1:
            found.append(
                f"validation={self.validation}: must be a share in [0, 1) (for a "
                "folder of validation images, use --validation-folder)"
            )
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Length, learning rates and precision of training."""

    seed: int = 0
    """Seed for initialisation, order of the data, augmentation and splits."""

    steps: int | None = None
    """Optimiser steps. Give either steps or epochs."""

    epochs: float | None = None
    """Passes over the training images, instead of steps."""

    batch_size: int = 256
    """Images per step, over all devices."""

    lr: float = 1e-3
    """Peak learning rate, reached after the warm-up."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: cosine decay to zero, or constant."""

    warmup_steps: int | None = None
    """Steps of linear warm-up, in each phase of the run. Default: 5 % of the phase."""

    warmup_epochs: float | None = None
    """The warm-up in epochs, instead of steps."""

    weight_decay: float = 0.05
    """AdamW's decoupled weight decay; not applied to norms and biases."""

    beta2: float = 0.999
    """AdamW's decay of the second moment."""

    clip: float = 1.0
    """Scale gradients down to this global norm; 0 turns clipping off."""

    accumulate: int = 1
    """Micro-batches per step: splits batch_size to save memory."""

    ema: float = 0.0
    """Decay of a running mean of the parameters and of BatchNorm's moments, e.g. 0.999;
    0 turns it off."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward and backward pass; parameters are always float32."""

    remat: bool = False
    """Recompute activations in the backward pass: saves memory, takes more time."""

    devices: int | None = None
    """Number of local devices to use. Default: all."""

    shard_parameters: bool = False
    """Split parameters, moments and running means over the devices instead of keeping
    all of them on each: for an encoder that does not fit one device. The result is the
    same to rounding; each step sends more between the devices."""

    steps_per_dispatch: int | None = None
    """Steps per dispatch to the device. Default: 1 on CPU, up to 32 on accelerators."""

    resident: bool | None = None
    """Keep the training images on the device. Default: if they fit."""

    max_bad_steps: int = 5
    """Stop after this many consecutive steps with a non-finite loss or gradient."""

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        found = []
        if self.steps is not None and self.epochs is not None:
            found.append(f"steps={self.steps} and epochs={self.epochs}: give only one")
        if self.warmup_steps is not None and self.warmup_epochs is not None:
            found.append("warmup_steps and warmup_epochs: give only one")
        found += at_least_1(self, "batch_size", "accumulate", "max_bad_steps")
        found += at_least_1(self, "steps", "devices", "steps_per_dispatch")
        found += above_0(self, "epochs", "lr")
        found += at_least_0(self, "warmup_steps", "warmup_epochs")
        found += at_least_0(self, "weight_decay", "clip")
        for name in ("ema", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)}: must be in [0, 1)")
        if self.accumulate >= 1 and self.batch_size % self.accumulate:
            found.append(
                f"batch_size={self.batch_size} cannot be divided into "
                f"accumulate={self.accumulate} micro-batches"
            )
        return found

    def total_steps(self, images: int, *, default_epochs: float = 100.0) -> int:
        """Steps of the run over `images` training images; UserError for too many."""
        if self.steps is not None:
            return self.steps
        epochs = self.epochs if self.epochs is not None else default_epochs
        steps = max(1, round(epochs * images / self.batch_size))
        if steps > MOST:
            raise UserError(
                f"epochs={epochs:g}: gives {steps} steps, but the maximum is {MOST}"
            )
        return steps

    def warmup(self, images: int, total: int) -> int:
        """Warm-up steps of a phase of `total` steps, at most all of them."""
        if self.warmup_steps is not None:
            return min(self.warmup_steps, total)
        if self.warmup_epochs is not None:
            return min(round(self.warmup_epochs * images / self.batch_size), total)
        return round(0.05 * total)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run is stored, and how often it reports and saves."""

    out: str
    """The run folder. To continue an interrupted run, give the same command again."""

    eval_every: int | None = None
    """Steps between evaluations. Default: a tenth of the run."""

    save_every: int | None = None
    """Steps between checkpoints. Default: the same as eval_every."""

    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    keep_last: int = 2
    """Number of newest checkpoints to keep."""

    keep_best: int = 1
    """Number of best checkpoints, by validation metric, to keep."""

    tensorboard: bool = True
    """Write TensorBoard files too."""

    wandb: bool = False
    """Send metrics to Weights & Biases too; needs the [wandb] extra. Otherwise nothing
    is sent anywhere."""

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        found = at_least_1(self, "eval_every", "save_every", "log_every", "keep_last")
        found += at_least_0(self, "keep_best")
        place = os.path.abspath(self.out)
        if (reason := unfit_for_arrays(place)) is not None:
            found.append(f"out={spelling(place)}: {reason}")
        return found

    def cadence(self, total: int) -> tuple[int, int]:
        """(eval_every, save_every) in steps for a run of `total` steps."""
        evaluate = self.eval_every or max(1, -(-total // 10))
        return evaluate, self.save_every or evaluate


# Settings that do not change what a run computes; they may differ on resume.
FREE_TO_CHANGE = frozenset(
    {"out", "save_every", "log_every", "keep_last", "keep_best", "tensorboard", "wandb"}
    | {"devices", "shard_parameters", "steps_per_dispatch", "resident", "cache"}
)


def check(*parts: list[str]) -> None:
    """Raises one `UserError` that lists the problems of all parts."""
    found = [problem for part in parts for problem in part]
    if found:
        raise UserError("These settings are not valid:\n  " + "\n  ".join(found))
