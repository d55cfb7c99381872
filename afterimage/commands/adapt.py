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
    presets=PRESETS,
    needs=("target",),
    about="""\
Train a classifier that works on images of another kind (the target), of which no label
is known. Everything that finetune can do can be combined with it. --preset adapt is a
good start; without one, choose what makes the two kinds alike.

  afterimage adapt labelled --target others --from runs/photos --preset adapt \
--out runs/adapted
  afterimage adapt labelled --target others --from runs/photos --align dann \
--l2-sp 0.01 --weight-decay 0 --out runs/adapted""",
    common={
        "What and where": (*WHERE, "target", "sources", "labels_per_class"),
        "What is done about the target": (
            *("methods", "align", "align_weight", "compose", "domain_statistics"),
            *("density_ratio", "label_shift", "unlabelled", "distribution_alignment"),
            *("mode", "augment"),
        ),
        "How long": HOW_LONG,
        "How good": HOW_GOOD,
    },
)


def main(argv: Sequence[str]) -> None:
    """The command."""
    run(COMMAND, argv)
