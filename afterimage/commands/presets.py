"""`afterimage presets [NAME]`."""

import dataclasses
from collections.abc import Sequence

from afterimage.commands.flags import Command, parse
from afterimage.console import say
from afterimage.finetune.presets import PRESETS as FINETUNE
from afterimage.presets import find_preset
from afterimage.pretrain.presets import PRESETS as PRETRAIN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Presets:
    """Settings that belong together, by name."""

    name: str | None = None
    """Name to describe. Default: list all, one line each."""


COMMAND = Command(
    name="presets",
    config=Presets,
    positional="name",
    about="""\
List the presets, or describe one: settings, cost, and what it reached where.

  afterimage presets
  afterimage presets small-photos""",
    common={"Settings": ("name",)},
)


def main(argv: Sequence[str]) -> None:
    """Parses, prints."""
    name = parse(COMMAND, argv).name
    if name is None:
        width = max(map(len, [*PRETRAIN, *FINETUNE]))
        for stage, presets in (("pretrain", PRETRAIN), ("finetune", FINETUNE)):
            say(f"{stage}:")
            say("\n".join(f"  {key:{width}}  {p.about}" for key, p in presets.items()))
        return
    found = [stage[name] for stage in (PRETRAIN, FINETUNE) if name in stage]
    if not found:
        find_preset({**PRETRAIN, **FINETUNE}, name)  # its error lists all presets
    say("\n\n".join(preset.describe() for preset in found))
