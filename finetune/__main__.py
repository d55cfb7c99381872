"""`python -m afterimage finetune`: the same as `afterimage finetune`."""

import sys
from collections.abc import Sequence

from afterimage.cli import exit_code, leave, parse
from afterimage.console import say
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.presets import PRESETS

DESCRIPTION = """Train a classifier on a pretrained encoder, choose its best step on \
validation images, and test it once. The same command again continues an interrupted \
run.

  afterimage finetune --preset digits --from runs/digits --out runs/digits-100
  afterimage finetune --from runs/photos --data folder:labelled --out runs/cls \
--mode two-phase --labels-per-class 10"""


def main(
    argv: Sequence[str] | None = None, *, prog: str = "python -m afterimage finetune"
) -> None:
    """Parse, run, and say what came of it."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(
        FinetuneConfig, PRESETS, arguments, prog=prog, description=DESCRIPTION
    )
    from afterimage.finetune.run import finetune

    say(finetune(config).summary())


if __name__ == "__main__":
    leave(exit_code(main))
