"""`afterimage distil`."""

from collections.abc import Sequence

from afterimage.commands.finetune import HOW_GOOD, HOW_LONG, WHERE, run
from afterimage.commands.flags import Command
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.presets import PRESETS

COMMAND = Command(
    name="distil",
    config=FinetuneConfig,
    kind="finetune",
    positional="data",
    images=("data", "target"),
    presets=PRESETS,
    groups={"methods": ("",)},
    fixed={"methods": "distil"},
    about="""\
Train a classifier that learns from a finished one, the teacher, of any architecture.

  afterimage distil labelled --teacher runs/large --from runs/small --out runs/distilled
  afterimage distil labelled --teacher runs/large --from runs/small --mode scratch \
--scratch.model conv --out runs/distilled""",
    common={
        "What and where": (*WHERE, "labels_per_class"),
        "What else": ("mode", "methods", "augment"),
        "How long": HOW_LONG,
        "How good": HOW_GOOD,
    },
)


def main(argv: Sequence[str]) -> None:
    """The command."""
    run(COMMAND, argv)
