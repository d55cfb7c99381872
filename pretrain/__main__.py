"""`python -m afterimage pretrain`: the same as `afterimage pretrain`."""

import sys
from collections.abc import Sequence

from afterimage.cli import exit_code, leave, parse
from afterimage.console import say
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.presets import PRESETS

DESCRIPTION = """Pretrain a convolutional encoder-decoder on images without labels, \
and keep the encoder. The same command again continues an interrupted run.

  afterimage pretrain --preset digits --out runs/digits
  afterimage pretrain --data folder:photos --image-size 64 --out runs/photos"""


def main(
    argv: Sequence[str] | None = None, *, prog: str = "python -m afterimage pretrain"
) -> None:
    """Parse, run, and say where everything is."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(
        PretrainConfig, PRESETS, arguments, prog=prog, description=DESCRIPTION
    )
    from afterimage.pretrain.run import pretrain

    say(pretrain(config).summary())


if __name__ == "__main__":
    leave(exit_code(main))
