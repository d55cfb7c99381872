"""What a model is: everything needed to build it again, and the table of presets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from afterimage.checkpoints.schemas import LARGEST_SIDE, MOST_CHANNELS, WIDEST
from afterimage.errors import UserError, did_you_mean

MIN_IMAGE_SIZE = 8
NORMS = ("rms", "layer", "group", "batch", "frozen", "none")
MASKED_DECODERS = ("hierarchical", "block")
"""Decoders that fill masked sites by a learned token."""
DECODERS = ("light", "symmetric", "transposed", "nearest", "unpool", *MASKED_DECODERS)


@dataclasses.dataclass(frozen=True)
class FeatureInfo:
    """One feature map: its name, its channels, and input pixels per map pixel.

    A map of stride s over H x W pixels is ceil(H / s) x ceil(W / s).
    """

    name: str
    channels: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Preset:
    """One line of the model table: family, size, and the family's defaults."""

    about: str
    family: str
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    norm: str
    decoder: str = "light"
    block: str = ""
    kernels: tuple[int, ...] = ()
    """classic, patches: sides of the stages' kernels; 3 where there is none."""


def _convnext(widths: tuple[int, ...], depths: tuple[int, ...], about: str) -> Preset:
    return Preset(about, "convnext", widths, depths, "layer")


def _resnet(depths: tuple[int, ...], block: str, about: str) -> Preset:
    return Preset(about, "resnet", (64, 128, 256, 512), depths, "rms", block=block)


def _vgg(convs: tuple[int, ...], norm: str, about: str) -> Preset:
    return Preset(about, "vgg", (64, 128, 256, 512, 512), convs, norm)


# Sizes: Simonyan & Zisserman 2014 (VGG), Table 1;
# Woo et al. 2023 (ConvNeXt V2), appendix; He et al. 2015 (ResNet), Table 1.
PRESETS: Mapping[str, Preset] = {
    "conv": Preset(
        "patchify down, residual 3x3 blocks; the fast default",
        "conv",
        (32, 64, 128),
        (0, 1, 1),
        "rms",
    ),
    "conv-classic": Preset(
        "3x3 convolution and max-pooling, max-unpooling decoder",
        "classic",
        (32, 64, 128),
        (1, 1, 1),
        "rms",
        "unpool",
    ),
    # Masci et al. 2011, section 4.
    "conv-masci": Preset(
        "5x5, 5x5 and 3x3 convolutions, max-pooling: 100, 150, 200 channels",
        "classic",
        (100, 150, 200),
        (1, 1, 1),
        "rms",
        "unpool",
        kernels=(5, 5, 3),
    ),
    # Coates, Lee & Ng 2011: 6 x 6 patches. Of their 1,600 filters as many as a probe on
    # a 2x2 grid is quick with.
    "conv-patches": Preset(
        "one wide convolution over whitened 6x6 patches; strong when frozen",
        "patches",
        (512,),
        (0,),
        "none",
        kernels=(6,),
    ),
    "resnet18": _resnet((2, 2, 2, 2), "basic", "ResNet-18, basic blocks"),
    "resnet34": _resnet((3, 4, 6, 3), "basic", "ResNet-34, basic blocks"),
    "resnet50": _resnet((3, 4, 6, 3), "bottleneck", "ResNet-50, bottleneck blocks"),
    "vgg11": _vgg((1, 1, 2, 2, 2), "none", "VGG-11 without a norm"),
    "vgg16": _vgg((2, 2, 3, 3, 3), "none", "VGG-16 without a norm"),
    "vgg11_bn": _vgg((1, 1, 2, 2, 2), "batch", "VGG-11 with BatchNorm"),
    "vgg16_bn": _vgg((2, 2, 3, 3, 3), "batch", "VGG-16 with BatchNorm"),
    "convnext-atto": _convnext((40, 80, 160, 320), (2, 2, 6, 2), "ConvNeXt V2 atto"),
    "convnext-femto": _convnext((48, 96, 192, 384), (2, 2, 6, 2), "ConvNeXt V2 femto"),
    "convnext-pico": _convnext((64, 128, 256, 512), (2, 2, 6, 2), "ConvNeXt V2 pico"),
    "convnext-nano": _convnext((80, 160, 320, 640), (2, 2, 8, 2), "ConvNeXt V2 nano"),
    "convnext-tiny": _convnext((96, 192, 384, 768), (3, 3, 9, 3), "ConvNeXt V2 tiny"),
}


def models() -> dict[str, str]:
    """Every model's name with one line about it."""
    return {name: preset.about for name, preset in PRESETS.items()}


def _stem_stride(family: str, image_size: tuple[int, int]) -> int:
    """Stride of the stem: small images keep their pixels (as timm's small stems do)."""
    side = min(image_size)
    small, large = {
        "conv": (2, 4),
        "classic": (1, 1),
        "patches": (4, 4),
        "vgg": (1, 1),
        "resnet": (1, 4),
        "convnext": (1 if side <= 16 else 2, 4),
    }[family]
    return small if side <= 64 else large


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build a model again; defaults are resolved when it is made.

    `norm=""`, `decoder=""` and `stem_stride=0` mean the preset's own choice, which for
    the stem depends on the image size: the fields then hold what was chosen, so a
    stored config rebuilds the same tree whatever later defaults are. `remat` trades
    compute for memory (blocks are computed again in the backward pass); it changes
    neither tree nor result.

    Raises:
        UserError: every field that cannot work, at once.
    """

    name: str = "conv"
    image_size: tuple[int, int] = (32, 32)
    channels: int = 3
    norm: str = ""
    decoder: str = ""
    bottleneck: int | None = None
    width: float = 1.0
    stem_stride: int = 0
    remat: bool = False

    def __post_init__(self) -> None:
        if self.name not in PRESETS:
            hint = did_you_mean(self.name, PRESETS)
            raise UserError(
                f"unknown model {self.name!r}{hint} Known: {', '.join(PRESETS)}."
            )
        preset = self.preset
        # JSON gives lists back; a frozen config is hashed, so it needs a tuple.
        object.__setattr__(self, "image_size", tuple(int(n) for n in self.image_size))
        wrong = self._mismatches()
        if wrong:
            raise UserError(f"model {self.name!r} cannot be built: {'; '.join(wrong)}.")
        object.__setattr__(self, "norm", self.norm or preset.norm)
        object.__setattr__(self, "decoder", self.decoder or preset.decoder)
        stem = self.stem_stride or _stem_stride(preset.family, self.image_size)
        object.__setattr__(self, "stem_stride", stem)

    def _mismatches(self) -> list[str]:
        wrong = []
        size = self.image_size
        if len(size) != 2 or min(size) < MIN_IMAGE_SIZE or max(size) > LARGEST_SIDE:
            wrong.append(
                f"image_size={size} must be (H, W), each at least {MIN_IMAGE_SIZE} px"
                f" and at most {LARGEST_SIDE} px"
                " (resize the images, e.g. --image-size 32)"
            )
        if not 1 <= self.channels <= MOST_CHANNELS:
            wrong.append(
                f"channels={self.channels} must be at least 1 and at most"
                f" {MOST_CHANNELS}"
            )
        if self.norm not in ("", *NORMS):
            wrong.append(f"norm={self.norm!r} must be one of {', '.join(NORMS)}")
        if self.decoder not in ("", *DECODERS):
            wrong.append(
                f"decoder={self.decoder!r} must be one of {', '.join(DECODERS)}"
            )
        elif self.decoder == "unpool" and self.preset.family != "classic":
            wrong.append(
                "decoder='unpool' needs the max-pooling of 'conv-classic' and"
                " 'conv-masci'; take decoder='light' or one of them"
            )
        if self.preset.family == "vgg" and any(n < 32 or n % 32 for n in size):
            wrong.append(
                f"image_size={size} must be multiples of 32: VGG halves five times"
                " and drops the odd pixel"
            )
        if self.bottleneck is not None and not 1 <= self.bottleneck <= WIDEST:
            wrong.append(
                f"bottleneck={self.bottleneck} must be None, or at least 1 and at most"
                f" {WIDEST}"
            )
        if not 0 < self.width <= 16:
            wrong.append(f"width={self.width} must be above 0 and at most 16")
        if self.stem_stride not in (0, 1, 2, 4):
            wrong.append(f"stem_stride={self.stem_stride} must be 1, 2 or 4")
        return wrong

    @property
    def preset(self) -> Preset:
        """The model's line in the table."""
        return PRESETS[self.name]

    @property
    def kernels(self) -> tuple[int, ...]:
        """Side of the kernels of each stage of a classic model, or one of patches."""
        return self.preset.kernels or (3,) * len(self.preset.widths)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage: the preset's; times `width`, in multiples of 8."""
        if self.width == 1:
            return self.preset.widths
        return tuple(max(8, round(w * self.width / 8) * 8) for w in self.preset.widths)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` gives an equal config back."""
        return dataclasses.asdict(self) | {"image_size": list(self.image_size)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """A config from `to_dict`'s values; unknown names are an error that lists them.

        Raises:
            UserError: fields this version does not know, or values that cannot work.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(
                f"model config has unknown fields {', '.join(unknown)}; this version"
                f" knows {', '.join(sorted(known))}. Is it from a newer version?"
            )
        # JSON has lists for tuples.
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        if isinstance(plain.get("width"), int):  # JSON may spell 1.0 as 1
            plain["width"] = float(plain["width"])
        return cls(**plain)
