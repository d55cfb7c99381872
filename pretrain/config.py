"""Settings of a pretraining run: flat, frozen, documented, checked when made."""

import dataclasses
from typing import Any, Literal

from afterimage.fields import field_problems
from afterimage.pretrain.options import ObjectiveOptions
from afterimage.training.options import (
    Augmentation,
    DataOptions,
    RunOptions,
    TrainingOptions,
    check,
)

USUAL_STRENGTH = {"gaussian": 1.0, "salt-and-pepper": 0.25, "erasing": 0.25}
"""What `corruption_strength` is where it is not given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(ObjectiveOptions, TrainingOptions, RunOptions, DataOptions):
    """Pretrain an encoder-decoder to reconstruct images; keep the encoder."""

    model: str = "conv"
    """The encoder: conv, conv-classic, conv-masci, conv-patches, resnet18/34/50,
    convnext-atto/femto/pico/nano/tiny."""

    norm: Literal["rms", "layer", "group", "batch"] | None = None
    """Normalisation inside the network. Default: the model's own."""

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
    """How the features become an image again; thrown away afterwards. Default: the
    model's own; with objective=masked, which takes one of the last two, hierarchical:
    every feature map takes part, or block: only the last, cheaper."""

    bottleneck: int | None = None
    """Squeeze the features through one vector of this many numbers, which then is the
    feature vector. Default: no bottleneck, the decoder sees the last feature map."""

    width: float = 1.0
    """Multiplies the channels of every layer."""

    loss: Literal["mse", "l1", "huber", "bce", "ssim"] = "mse"
    """What a reconstruction is scored by. mse: in units of the data's variance; l1,
    huber: of its standard deviation; bce: nats, for pixels as probabilities; ssim: 84 %
    structural dissimilarity, 16 % l1 of pixels in [0, 1]."""

    gradient_weight: float = 0.0
    """Adds the mean size of the differences of neighbouring pixels of the error, times
    this: edges count more."""

    laplacian_weight: float = 0.0
    """Adds the mean size of the error at every scale (a Laplacian pyramid), times
    this."""

    ssim_weight: float = 0.0
    """Adds the structural dissimilarity, times this."""

    target: Literal["data", "image", "patch", "hog"] = "data"
    """What is reconstructed: images normalised by the data's statistics, or each image,
    or with objective=masked each patch, by its own mean and spread, so that brightness
    and contrast cost nothing; or, with objective=masked, histograms of oriented
    gradients, so that only edges count."""

    corruption: Literal["none", "gaussian", "salt-and-pepper", "erasing"] = "none"
    """What the encoder's input suffers and the decoder must undo (a denoising
    autoencoder)."""

    corruption_strength: float | None = None
    """gaussian: sigma in standard deviations of the data; salt-and-pepper: probability
    that a pixel is replaced; erasing: share of the area. Default: 1, 0.25, 0.25."""

    augment: Augmentation = "none"
    """Random changes of the images before they are corrupted and reconstructed."""

    probe_images: int = 5000
    """How many training images the kNN and ridge probes learn from, where there are
    labels; 0 turns the probes off."""

    probe_k: int = 20
    """Neighbours the kNN probe asks."""

    pictures: int = 10
    """Validation images in each reconstruction picture; 0 turns pictures off."""

    def __post_init__(self) -> None:
        # First: the other checks compare these values with numbers.
        check(field_problems(self))
        check(
            DataOptions.problems(self),
            ObjectiveOptions.problems(self),
            TrainingOptions.problems(self),
            RunOptions.problems(self),
            self.problems(),
        )

    def problems(self) -> list[str]:
        """Every setting of this stage that cannot work, in one list."""
        # Here, not above: naming a setting on the command line needs no JAX.
        from afterimage.pretrain.corruptions import corruption_mistakes
        from afterimage.pretrain.losses import loss_mistakes

        found = loss_mistakes(
            self.loss,
            self.target,
            ssim_weight=self.ssim_weight,
            gradient_weight=self.gradient_weight,
            laplacian_weight=self.laplacian_weight,
        )
        found += corruption_mistakes(self.corruption, self.strength)
        if self.corruption == "none" and self.corruption_strength is not None:
            found.append(
                f"corruption_strength={self.corruption_strength} without a corruption: "
                "choose one, e.g. corruption='gaussian'"
            )
        for name in ("gradient_weight", "laplacian_weight", "ssim_weight"):
            if not getattr(self, name) >= 0:
                found.append(f"{name}={getattr(self, name)}: at least 0")
        for name in ("probe_images", "pictures"):
            if getattr(self, name) < 0:
                found.append(f"{name}={getattr(self, name)}: at least 0")
        if self.target in ("patch", "hog") and self.objective != "masked":
            found.append(
                f"target={self.target!r} is for the patches of objective='masked'"
            )
        if self.target == "patch" and self.mask_patch == 1:
            found.append("target='patch' leaves nothing of patches of mask_patch=1")
        if self.probe_k < 1:
            found.append(f"probe_k={self.probe_k}: at least 1")
        return found + self._model_problems()

    def _model_problems(self) -> list[str]:
        from afterimage.errors import UserError
        from afterimage.models.config import MASKED_DECODERS, ModelConfig

        try:
            # The size and channels are the data's, and not known yet.
            model = ModelConfig(**self.model_settings())
        except UserError as error:
            return [str(error)]
        if (self.objective == "masked") == (model.decoder in MASKED_DECODERS):
            return []
        return [
            f"decoder={model.decoder!r} with objective={self.objective!r}: masked "
            f"images, and they alone, need one of {', '.join(MASKED_DECODERS)}"
        ]

    def model_settings(self) -> dict[str, Any]:
        """What these settings say of a `ModelConfig`; size and channels are missing."""
        usual = "hierarchical" if self.objective == "masked" else ""
        return {
            "name": self.model,
            "norm": self.norm or "",
            "decoder": self.decoder or usual,
            "bottleneck": self.bottleneck,
            "width": self.width,
            "remat": self.remat,
        }

    @property
    def strength(self) -> float:
        """The corruption's strength, the usual one where none was given."""
        if self.corruption_strength is not None:
            return self.corruption_strength
        return USUAL_STRENGTH.get(self.corruption, 0.0)
