"""`afterimage export RUN`."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

from afterimage.commands.flags import Command, parse
from afterimage.console import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """An encoder or a classifier as a file for other programs."""

    UPLOADED: ClassVar = ("out",)

    from_: str
    """A run folder, a checkpoints/STEP folder, an encoder/ or a classifier/ folder."""

    to: Literal["onnx", "stablehlo", "safetensors", "torchvision"]
    """What to write. onnx: a program for onnxruntime (needs afterimage[onnx]);
    stablehlo: a program for JAX on CPU, CUDA and TPU; safetensors: a folder for Hugging
    Face, with a card and a loader for PyTorch; torchvision: the weights of a known
    encoder under the names they were published with, torchvision's or timm's, without a
    head."""

    out: str
    """The file to write, which ends in .onnx, .stablehlo or .safetensors
    (torchvision); with --to safetensors the folder."""

    part: Literal["auto", "encoder", "classifier"] = "auto"
    """What to write of the run. auto: the classifier if there is one."""

    licence: str = "unknown"
    """The licence in the card of a safetensors folder, by Hugging Face's identifier:
    apache-2.0, mit, cc-by-4.0, other, ..."""


COMMAND = Command(
    name="export",
    config=Export,
    positional="from_",
    about="""\
Write an encoder or a classifier for other programs. Preprocessing is inside, batches
may have any size, and every file is loaded again and compared.

  afterimage export runs/photos --to onnx --out photos.onnx
  afterimage export runs/photos --to stablehlo --out photos.stablehlo
  afterimage export runs/photos --to safetensors --out photos-hf""",
    common={"Settings": tuple(f.name for f in dataclasses.fields(Export))},
)


def main(argv: Sequence[str]) -> None:
    """Parses, writes, prints what was written."""
    config = parse(COMMAND, argv)
    if config.to == "torchvision":
        from afterimage.known import export_encoder

        model = export_encoder(config.from_, config.out)
        say(f"wrote {config.out}: {model.name} under its published names, no head")
        return
    from afterimage.portable import export_model

    settings = dataclasses.asdict(config)
    say(export_model(settings.pop("from_"), **settings))
