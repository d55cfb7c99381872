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

    image_size: int | None = None
    """Image side, in pixels, for the sizes of maps and the number of parameters.
    Default: 64, or what published weights expect."""


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

        known = KNOWN.get(config.name)
        usual = 64 if known is None else known.image_size
        found = describe(config.name, config.image_size or usual)
        say(found if known is None else f"{found}\n{known}")
