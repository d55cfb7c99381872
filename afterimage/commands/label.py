"""`afterimage label`."""

from collections.abc import Sequence

from afterimage.commands.flags import Command, parse
from afterimage.console import say
from afterimage.evaluation.configs import LabelConfig

COMMAND = Command(
    name="label",
    kind="label",
    config=LabelConfig,
    positional="data",
    images=("data", "labelled"),
    about="""\
Suggest which images to label next, or find labels that look wrong.

  afterimage label photos --from runs/photos --suggest 20 --out first.csv
  afterimage finetune csv:first.csv --from runs/photos --out runs/cls
  afterimage label labelled --from runs/photos --check --out wrong.html

Fill in the column label of first.csv between the first two.""",
    common={
        "What and where": ("data", "from_", "suggest", "check", "out", "labelled"),
        "How it is chosen": ("rule", "task", "seed"),
        "How it runs": ("batch_size", "outside_images"),
    },
)


def main(argv: Sequence[str]) -> None:
    """Parses, chooses or checks, prints what was found."""
    config = parse(COMMAND, argv)
    from afterimage.label import check_labels, suggest_labels

    say((check_labels if config.check else suggest_labels)(config).summary())
