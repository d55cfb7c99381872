"""`afterimage pretrain`."""

from collections.abc import Sequence

from afterimage.commands.flags import Command, parse
from afterimage.console import say
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.presets import PRESETS

COMMAND = Command(
    name="pretrain",
    config=PretrainConfig,
    kind="pretrain",
    positional="data",
    presets=PRESETS,
    about="""\
Pretrain a convolutional encoder-decoder on images without labels, and keep the encoder.
The same command again continues an interrupted run.

  afterimage pretrain --preset digits --out runs/digits
  afterimage pretrain photos --image-size 64 --out runs/photos""",
    common={
        "What and where": ("data", "out", "image_size", "channels", "on_bad_image"),
        "Which encoder, and what it learns": (
            *("model", "width", "bottleneck", "decoder", "objective", "augment"),
        ),
        "How long": ("steps", "epochs", "batch_size", "eval_every", "save_every"),
        "How good": (
            "lr",
            "warmup_epochs",
            "weight_decay",
            "ema",
            "validation",
            "seed",
        ),
        "On which device": ("precision", "devices", "accumulate", "remat"),
    },
)


def main(argv: Sequence[str]) -> None:
    """Parses, pretrains, prints where the results are."""
    config = parse(COMMAND, argv)
    from afterimage.pretrain import pretrain

    say(pretrain(config).summary())
