"""`afterimage adapt`."""

from collections.abc import Sequence

from afterimage.commands.finetune import HOW_GOOD, HOW_LONG, WHERE, run
from afterimage.commands.flags import Command
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.presets import PRESETS

COMMAND = Command(
    name="adapt",
    config=FinetuneConfig,
    kind="finetune",
    positional="data",
    images=("data", "target"),
    presets=PRESETS,
    groups={"methods": ("target", "")},
    needs=("target",),
    about="""\
Train a classifier that works on images of another kind (the target), of which no label
is known. Everything that finetune can do can be combined with it. --preset adapt is a
good start; without one, choose what makes the two kinds alike.

  afterimage adapt labelled --target others --from runs/photos --preset adapt \
--out runs/adapted
  afterimage adapt labelled --target others --from runs/photos --methods dann l2-sp \
--l2-sp.weight 0.01 --weight-decay 0 --out runs/adapted

Methods that align the two: dann, cdan, mdan (several sources), mmd, jmmd, coral, jdot,
compose, pseudo-labels; for other class frequencies label-shift, for other images of the
same classes density-ratio. `--methods NAME --help` shows the settings of each.""",
    common={
        "What and where": (*WHERE, "target", "labels_per_class"),
        "How to adapt to the target": (
            *("methods", "domain_statistics", "mode", "augment"),
        ),
        "How long": HOW_LONG,
        "How good": HOW_GOOD,
    },
)


def main(argv: Sequence[str]) -> None:
    """The command."""
    run(COMMAND, argv)
