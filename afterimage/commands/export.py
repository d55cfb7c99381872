"""`afterimage export RUN`."""

import dataclasses
from collections.abc import Sequence

from afterimage.commands.flags import Command, parse
from afterimage.console import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """An encoder as a file that torchvision and timm can load."""

    run: str
    """A run folder, a checkpoints/STEP folder or an encoder folder."""

    out: str
    """The .safetensors file to write."""


COMMAND = Command(
    name="export",
    config=Export,
    positional="run",
    about="""\
Write an encoder as safetensors under torchvision's names, without a head.

  afterimage export runs/photos --out photos.safetensors""",
    common={"Settings": tuple(f.name for f in dataclasses.fields(Export))},
)


def main(argv: Sequence[str]) -> None:
    """Parses, writes, prints what was written."""
    config = parse(COMMAND, argv)
    from afterimage.known import export_encoder

    model = export_encoder(config.run, config.out)
    say(f"wrote {config.out}: {model.name} under torchvision's names, without a head")
