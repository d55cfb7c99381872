"""Settings of a pretraining run, checked when made."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from afterimage.fields import OneOf, above_0, at_least_0, at_least_1
from afterimage.plugins import ENCODERS, OBJECTIVES
from afterimage.settings import given_problems, resolve
from afterimage.training.options import (
    Augmentation,
    DataOptions,
    RunOptions,
    TrainingOptions,
    check,
    whole_photos_problems,
)

if TYPE_CHECKING:
    from afterimage.models.encoder import ModelConfig
    from afterimage.pretrain.objective import Objective
else:  # parsing the command line needs no JAX
    Objective = Any


_USUAL: Mapping[str, Any] = {"model": "conv", "width": 1.0, "normalise": "data"}
"""Of a new encoder; one that is continued has its own."""
CONTINUED_LR = 0.1
"""`encoder_lr` of an encoder that is continued."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingOptions, RunOptions, DataOptions):
    """Pretrain an encoder on images without labels, and keep it."""

    objective: Annotated["Objective", OBJECTIVES] = "plain"  # pyright: ignore[reportAssignmentType]
    """What the network learns. In Python: a name, an instance such as
    Masked(ratio=0.5), or {"name": "masked", "ratio": 0.5}."""

    data: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """The images: characters, digits, folder:PATH, zip:PATH[,PATH], csv:PATH, npz:PATH,
    tar:PATTERN, parquet:PATTERN, tfds:NAME, synthetic:HxWxC, or a path. None if an
    object is passed to `pretrain`."""

    from_: str | None = None
    """Continue a pretrained encoder on these images: a run folder, one of its
    checkpoints/STEP, or an encoder/ folder, such as one with published weights. Model,
    image size, channels and preprocessing are the encoder's; a decoder or projector
    starts fresh. Default: a new encoder."""

    model: Annotated[str, OneOf(ENCODERS)] | None = None
    """The encoder, e.g. conv or resnet18; `afterimage models` lists all. Default:
    conv."""

    norm: Literal["rms", "layer", "group", "batch"] | None = None
    """Normalisation inside the network. Default: batch for objectives that compare
    embeddings (simclr, vicreg, byol), the model's own for others."""

    decoder: (
        Literal[
            "light",
            "symmetric",
            "transposed",
            "nearest",
            "unpool",
            "hierarchical",
            "block",
        ]
        | None
    ) = None
    """Reconstructs the image from the features; discarded after pretraining. Default:
    the model's own. Objectives that mask images need one of the last two: block
    (default of masked), which uses only the last feature map and is cheaper, or
    hierarchical (default of latent), which uses all."""

    bottleneck: int | None = None
    """Length of a single vector through which all information passes; it becomes the
    feature vector. Default: no bottleneck; the decoder reads the last feature map."""

    width: float | None = None
    """Multiplies the channels of every layer. Default: 1."""

    encoder_lr: float | None = None
    """The encoder's learning rate, as a multiple of lr. Default: 1, or 0.1 for an
    encoder that is continued."""

    augment: Augmentation = "none"
    """Random augmentation of the training images: one, or several joined by commas and
    applied in order, with numbers after colons, such as crop:0.3,flip,color.
    `afterimage methods crop` describes one. Sets for a kind of images: photos, writing
    (letters, digits, documents), any-way-up (microscopy, satellite images)."""

    view_size: int | None = None
    """Side, in pixels, of the views that an augmentation with `crop` cuts from the
    images for training; smaller views are faster. Evaluation uses images of
    image_size. Default: image_size."""

    normalise: Literal["data", "image"] | None = None
    """How the encoder's images are normalised. data: by the mean and deviation of each
    channel in the training images. image: then each image by its own channel means and
    its own contrast, so that brightness and tint hardly matter. Default: data, or as
    the encoder that is continued."""

    probe_images: int = 5000
    """Most training images for the kNN and ridge probes, if there are labels; 0 turns
    the probes off. Short runs use fewer, and leave probes out of some evaluations, so
    that evaluations take a small part of the time."""

    probe_k: int = 20
    """Number of neighbours of the kNN probe."""

    pictures: int = 10
    """Number of validation images in each reconstruction picture; 0 turns pictures
    off."""

    def __post_init__(self) -> None:
        resolve(self)
        # First, because the other checks compare these values with numbers.
        check(given_problems(self))
        if self.from_ is None:
            for name, usual in _USUAL.items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, usual)
        check(
            DataOptions.problems(self),
            TrainingOptions.problems(self),
            RunOptions.problems(self),
            self.problems(),
        )

    def problems(self) -> list[str]:
        """Every setting of this stage that cannot work, in one list."""
        found = at_least_0(self, "probe_images", "pictures")
        found += at_least_1(self, "probe_k")
        found += above_0(self, "encoder_lr")
        found += whole_photos_problems(self)
        return found + self._view_problems() + self._model_problems()

    def _view_problems(self) -> list[str]:
        from afterimage.data.augmentations import cuts

        if self.view_size is None:
            return []
        found, shown = [], f"view_size={self.view_size}"
        if self.view_size < 8:
            found.append(f"{shown}: must be at least 8")
        if self.image_size is not None and self.view_size > self.image_size:
            found.append(f"{shown}: must be at most image_size={self.image_size}")
        if not cuts(self.augment):
            found.append(
                f"{shown}: augment={self.augment!r} cuts no views; add crop "
                "(crop,flip), or use a set with crop, such as photos"
            )
        if self.bottleneck is not None:
            found.append(
                f"{shown} and bottleneck={self.bottleneck}: a bottleneck works with "
                "only one image size; leave one of them out"
            )
        return found

    def _model_problems(self) -> list[str]:
        from afterimage.errors import UserError
        from afterimage.models.encoder import ModelConfig

        if self.from_ is not None:
            return []  # the encoder is read first: `afterimage.pretrain.origin`
        try:
            # Size and channels come from the data and are not known yet.
            model = ModelConfig(**self.model_settings())
        except UserError as error:
            return [str(error)]
        return self.objective_problems(model)

    def objective_problems(self, model: "ModelConfig") -> list[str]:
        """Problems of the objective with these settings and this model."""
        found = self.objective.problems(self, model)
        return [f"objective {self.objective.name}: {problem}" for problem in found]

    def model_settings(self) -> dict[str, Any]:
        """The `ModelConfig` fields of a new encoder, without size and channels."""
        return {
            "name": self.model,
            "norm": self.norm or self.objective.default_norm,
            "decoder": self.decoder or self.objective.default_decoder,
            "bottleneck": self.bottleneck,
            "width": self.width,
            "remat": self.remat,
        }
