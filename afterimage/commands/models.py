"""`afterimage models [NAME]`."""

import dataclasses
from collections.abc import Sequence

from afterimage.commands.flags import Command, parse
from afterimage.console import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """Encoders, by name."""

    name: str | None = None
    """Which one to describe. Default: one line for each."""

    image_size: int = 64
    """Side of the images for which its maps and parameters are counted, pixels."""


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
    from afterimage.models import models

    if config.name is None:
        about = models()
        width = max(map(len, about))
        say("\n".join(f"{name:{width}}  {line}" for name, line in about.items()))
    else:
        say(_described(config.name, config.image_size))


def _described(name: str, side: int) -> str:
    import math

    import jax
    from flax import nnx

    from afterimage.models import ModelConfig, abstract_encoder, models

    model = ModelConfig(name=name, image_size=(side, side), channels=3)
    encoder = abstract_encoder(model)
    leaves = jax.tree.leaves(nnx.state(encoder, nnx.Param))
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    lines = [
        f"{name}: {models()[name]}",
        f"{count:,} parameters; normalisation {model.norm}, decoder {model.decoder}",
        f"maps of a {side} x {side} image:",
    ]
    for info in encoder.feature_info:
        rows = -(-side // info.stride)
        lines.append(f"  {info.name}: {rows} x {rows} x {info.channels}")
    return "\n".join(lines)
