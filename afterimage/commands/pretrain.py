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
    actions={
        "--show-augment": "write a page of training images and their augmented views, "
        "and exit"
    },
    presets=PRESETS,
    about="""\
Pretrain a convolutional encoder-decoder on images without labels, and keep the encoder.
The same command again continues an interrupted run.

  afterimage pretrain --preset digits --out runs/digits
  afterimage pretrain photos --image-size 64 --out runs/photos""",
    common={
        "What and where": ("data", "out", "image_size", "channels", "on_bad_image"),
        "Which encoder, and what it learns from": (
            *("model", "width", "bottleneck", "decoder", "objective"),
            *("augment", "view_size"),
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
        "On which machine": ("precision", "devices", "accumulate", "remat"),
    },
)


def main(argv: Sequence[str]) -> None:
    """Parses, pretrains, prints where the results are."""
    config = parse(COMMAND, argv)
    from afterimage.pretrain import pretrain, show_augment

    if "--show-augment" in argv:
        say(f"views  {show_augment(config)}")
        return
    say(pretrain(config).summary())
