"""`afterimage segment-predict`."""

from collections.abc import Sequence

from afterimage.commands.flags import Command, parse
from afterimage.console import say
from afterimage_segmentation.config import SegmentPredictConfig

COMMAND = Command(
    name="segment-predict",
    config=SegmentPredictConfig,
    positional="images",
    about="""\
Write a mask for every image of a folder, as PNG of the image's own size, and the same
in colour over the image.

  afterimage segment-predict new --from runs/cells --out new-masks""",
    common={
        "What and where": ("images", "from_", "out"),
        "How": ("overlay", "on_bad_image"),
    },
)


def main(argv: Sequence[str]) -> None:
    """Parses, predicts, prints a summary."""
    config = parse(COMMAND, argv)
    from afterimage_segmentation.predict import segment_predict

    say(segment_predict(config).summary())
