"""`afterimage import FILE`."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

from afterimage.commands.flags import Command, parse
from afterimage.console import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
    """Published weights as an encoder folder."""

    UPLOADED: ClassVar = ("out",)

    file: str
    """A .safetensors, .pth, .pt, .bin or .h5 file, or a model.json of TensorFlow.js."""

    model: str
    """resnet18, resnet34, resnet50, vgg11, vgg11_bn, vgg16, vgg16_bn, mobilenet_v2,
    efficientnet_lite0, efficientnet_lite1, efficientnet_lite2, inception_v3,
    inception_v3_keras, or convnext_SIZE (V1) or convnextv2_SIZE, with atto, femto,
    pico, nano or tiny."""

    out: str
    """The encoder folder to write."""

    image_size: int | None = None
    """Side of the square, in pixels, that images are resized to. Default: that which
    the weights were trained with."""

    mean: tuple[float, float, float] | None = None
    """Mean of each channel, for images in [0, 1]. Default: as the weights were trained
    with, mostly ImageNet's."""

    std: tuple[float, float, float] | None = None
    """Standard deviation of each channel. Default: likewise."""

    norm: Literal["frozen", "batch"] = "frozen"
    """How BatchNorm behaves. frozen: scale, shift and statistics stay constant; batch:
    scale and shift learn, and the statistics are updated."""


COMMAND = Command(
    name="import",
    config=Import,
    positional="file",
    about="""\
Read published weights, torchvision's and timm's for most, into an encoder folder, which
finetune and features take. No code in the file is run, and its classification head is
left out. `afterimage models NAME` says where to get weights.

  afterimage import resnet18.pth --model resnet18 --out encoders/resnet18""",
    common={"Settings": tuple(f.name for f in dataclasses.fields(Import))},
)


def main(argv: Sequence[str]) -> None:
    """Parses, converts, prints what was read."""
    config = parse(COMMAND, argv)
    from afterimage.known import import_encoder

    settings = dataclasses.asdict(config)
    made = import_encoder(settings.pop("file"), **settings)
    say(f"{made}\nwrote {config.out}")
