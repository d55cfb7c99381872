"""`afterimage episodes`."""

from collections.abc import Sequence

from afterimage.commands.finetune import HOW_LONG, WHERE, run
from afterimage.commands.flags import Command
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.presets import PRESETS

COMMAND = Command(
    name="episodes",
    config=FinetuneConfig,
    kind="finetune",
    positional="data",
    images=("data", "target"),
    presets=PRESETS,
    groups={"methods": ("episodes",)},
    fixed={"task": "episodes"},
    about="""\
Meta-learning: train so that a few images of a new class are enough. Training and test
are made of episodes, small tasks of a few classes each.

  afterimage episodes characters --from runs/characters --methods prototypes --ways 5 \
--shots 1 --out runs/episodes

Methods: prototypes, maml, proto-maml, reptile; give one of them.""",
    common={
        "What and where": WHERE,
        "What learns": ("methods", "mode", "features", "head", "augment"),
        "How long": tuple(name for name in HOW_LONG if name != "batch_size"),
        "How good": ("lr", "weight_decay", "seed"),
    },
)


def main(argv: Sequence[str]) -> None:
    """The command."""
    run(COMMAND, argv)
