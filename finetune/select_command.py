"""`afterimage select`: which of several classifiers to take, without labels."""

import json
from collections.abc import Sequence
from pathlib import Path

from afterimage.cli import parse
from afterimage.console import say
from afterimage.evaluate_command import write
from afterimage.finetune.select_config import SelectConfig

DESCRIPTION = """Which of several fine-tuned classifiers to take, by images without \
labels. With --encoder the one whose predictions are most alike between images that \
are near in the features of that pretrained encoder; else the one that most often says \
what the mean of all of them says.

  afterimage select --from runs/plain runs/dann runs/mmd --data folder:others \
--encoder runs/pretrained"""


def main(argv: Sequence[str], *, prog: str = "afterimage select") -> None:
    """Parses, compares, prints."""
    config = parse(SelectConfig, {}, argv, prog=prog, description=DESCRIPTION)
    from afterimage.finetune.select import select, text

    found = select(config)
    say(text(found))
    if config.out is not None:
        write(Path(config.out), (json.dumps(found, indent=1) + "\n").encode())
