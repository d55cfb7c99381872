"""`afterimage continual`."""

from collections.abc import Sequence

from afterimage.commands.finetune import HOW_LONG, WHERE, run
from afterimage.commands.flags import Command
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.presets import PRESETS

COMMAND = Command(
    name="continual",
    config=FinetuneConfig,
    kind="finetune",
    positional="data",
    images=("data", "target"),
    presets=PRESETS,
    groups={"methods": ("continual",)},
    fixed={"task": "continual"},
    about="""\
Train a classifier on one group of classes after another, and measure what it forgets.

  afterimage continual labelled --from runs/photos --sequence 0,1 2,3 4,5 \
--methods replay --out runs/sequence

Methods against forgetting: replay, ewc, lwf.""",
    common={
        "What and where": WHERE,
        "What learns": (
            *("methods", "mode", "features", "head", "layer_decay", "augment"),
        ),
        "How long": HOW_LONG,
        "How good": ("lr", "weight_decay", "seed"),
    },
)


def main(argv: Sequence[str]) -> None:
    """The command."""
    run(COMMAND, argv)
