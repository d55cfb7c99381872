"""`afterimage pretrain`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from afterimage.commands.flags import Command, parse
from afterimage.console import say, say_result
from afterimage.errors import UserError
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.presets import PRESETS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(PretrainConfig):
    """Pretrain an encoder on images without labels, and keep it."""

    minutes: float | None = None
    """How long the run takes on this machine, to within a tenth: with reading,
    compiling and evaluating. A few steps are timed to set their number. Default: 10,
    unless steps or epochs are given."""


def _recommended(flags: Mapping[str, Any]) -> PretrainConfig:
    import jax

    from afterimage.pretrain.recipe import recommend

    if (count := jax.process_count()) > 1:
        raise UserError(
            f"{count} processes form this job, and each would choose settings for its "
            "own machine. Give --preset, or --config FILE with settings that "
            "--print-config wrote"
        )
    return recommend(**{"data": None, **flags})


COMMAND = Command(
    name="pretrain",
    config=PretrainConfig,
    flags=Flags,
    kind="pretrain",
    positional="data",
    images=("data",),
    actions={
        "--show-augment": "write a page of training images and their augmented views, "
        "and exit"
    },
    presets=PRESETS,
    recipe=_recommended,
    explicit=("objective",),
    about="""\
Pretrain a convolutional encoder-decoder on images without labels, and keep the encoder.
The same command again continues an interrupted run.

  afterimage pretrain photos --out runs/photos
  afterimage pretrain photos --out runs/photos --minutes 60
  afterimage pretrain photos --from encoders/resnet50 --out runs/photos

What you leave out is chosen for your images, your machine and the time, and printed
before the first step. With --preset, --config or --objective (without --minutes) the
defaults below hold instead.""",
    common={
        "What and where": ("data", "out", "image_size", "channels", "on_bad_image"),
        "Which encoder, and what it learns": (
            *("from_", "model", "width", "bottleneck", "decoder", "objective"),
            *("augment", "view_size"),
        ),
        "How long": (
            *("minutes", "steps", "epochs", "batch_size", "eval_every", "save_every"),
        ),
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
    from afterimage.pretrain import pretrain, show_augment

    if "--show-augment" in argv:
        say(f"views  {show_augment(config)}")
        return
    say_result(pretrain(config).summary())
