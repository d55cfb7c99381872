"""`afterimage models [NAME]`."""

import dataclasses
from collections.abc import Sequence

from afterimage.commands.flags import Command, parse
from afterimage.console import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """Encoders, by name."""

    name: str | None = None
    """Name to describe. Default: list all, one line each."""

    image_size: int = 64
    """Image side, in pixels, for the sizes of maps and the number of parameters."""


COMMAND = Command(
    name="models",
    config=Models,
    positional="name",
    about="""\
List the encoders, or describe one: feature maps, vector, parameters.

  afterimage models
  afterimage models resnet18 --image-size 224""",
    common={"Settings": ("name", "image_size")},
)


def main(argv: Sequence[str]) -> None:
    """Parses, prints."""
    config = parse(COMMAND, argv)
    from afterimage.models.encoder import describe, models

    if config.name is None:
        known = models()
        width = max(map(len, known))
        say("\n".join(f"{name:{width}}  {about}" for name, about in known.items()))
    else:
        from afterimage.known import KNOWN

        found = describe(config.name, config.image_size)
        known = KNOWN.get(config.name)
        say(found if known is None else f"{found}\n{known}")
