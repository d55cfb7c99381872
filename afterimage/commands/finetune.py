"""`afterimage finetune`, and the code shared with the four commands built on it."""

from collections.abc import Sequence

from afterimage.commands.flags import Command, parse
from afterimage.console import say_result
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.presets import PRESETS

WHERE = ("data", "from_", "out")
HOW_LONG = ("steps", "epochs", "batch_size", "eval_every", "save_every")
HOW_GOOD = ("lr", "weight_decay", "ema", "seed", "select")
COMMAND = Command(
    name="finetune",
    config=FinetuneConfig,
    kind="finetune",
    positional="data",
    images=("data", "target"),
    presets=PRESETS,
    groups={"methods": ("",)},
    about="""\
Train a classifier on a pretrained encoder, keep its best step by validation images, and
test it once. The same command again continues an interrupted run.

  afterimage finetune --preset digits --from runs/digits --out runs/digits-100
  afterimage finetune labelled --from runs/photos --out runs/cls --mode two-phase \
--labels-per-class 10""",
    common={
        "What and where": (
            *WHERE,
            "labels",
            "labels_per_class",
            "validation",
            "hold_out",
        ),
        "What learns, and from what": (
            *("task", "mode", "methods", "features", "head", "encoder_lr"),
            *("layer_decay", "augment", "class_weights", "label_smoothing"),
        ),
        "How long": HOW_LONG,
        "How good": HOW_GOOD,
    },
)


def run(command: Command[FinetuneConfig], argv: Sequence[str]) -> None:
    """Parses, fine-tunes, prints the result."""
    config = parse(command, argv)
    from afterimage.finetune import finetune

    say_result(finetune(config).summary())


def main(argv: Sequence[str]) -> None:
    """The command."""
    run(COMMAND, argv)
