"""`afterimage segment`."""

from collections.abc import Sequence

from afterimage.commands.flags import Command, parse
from afterimage.console import say_result
from afterimage_segmentation.config import SegmentConfig

COMMAND = Command(
    name="segment",
    kind="segment",
    config=SegmentConfig,
    positional="images",
    about="""\
Train a segmenter on a pretrained encoder: a class for every pixel, from images and
masks. It keeps its best step by validation images, and is tested once. The same command
again continues an interrupted run.

  afterimage segment photos --masks masks --from runs/photos --out runs/cells
  afterimage segment csv:table.csv --from runs/photos --out runs/cells --mode frozen""",
    common={
        "What and where": (
            *("images", "masks", "from_", "out", "classes", "ignore"),
            *("image_size", "validation", "hold_out"),
        ),
        "What learns, and from what": ("mode", "encoder_lr", "dice", "augment"),
        "How long": ("steps", "epochs", "batch_size", "eval_every", "save_every"),
        "How good": ("lr", "weight_decay", "ema", "seed"),
    },
)


def main(argv: Sequence[str]) -> None:
    """Parses, trains, prints the result."""
    config = parse(COMMAND, argv)
    from afterimage_segmentation.training import segment

    say_result(segment(config).summary())
