"""`afterimage select`."""

import json
from collections.abc import Sequence

from afterimage.commands.flags import Command, parse
from afterimage.console import say
from afterimage.evaluation.configs import write
from afterimage.finetune.select_config import SelectConfig

COMMAND = Command(
    name="select",
    kind="select",
    config=SelectConfig,
    positional="data",
    images=("data",),
    about="""\
Pick the best of several fine-tuned classifiers by images without labels. With --encoder
it is the one whose predictions are most alike between images that are near each other
in the features of that encoder; without, the one that agrees most with the mean of all.

  afterimage select others --from runs/plain runs/dann runs/mmd --encoder \
runs/pretrained""",
    common={
        "What and where": ("data", "from_", "encoder", "split", "most", "out"),
        "How it runs": ("batch_size", "on_bad_image", "cache"),
    },
)


def main(argv: Sequence[str]) -> None:
    """Parses, compares, prints."""
    config = parse(COMMAND, argv)
    from afterimage.finetune.select import select, text

    found = select(config)
    say(text(found))
    if config.out is not None:
        write(config.out, (json.dumps(found, indent=1) + "\n").encode())
