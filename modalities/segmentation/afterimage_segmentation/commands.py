"""The commands `afterimage segment` and `afterimage segment-predict`."""

from afterimage.commands.flags import Command, PackageCommand
from afterimage_segmentation.config import SegmentConfig, SegmentPredictConfig


def _segment(config: SegmentConfig) -> str:
    from afterimage_segmentation.training import segment

    return segment(config).text


def _predict(config: SegmentPredictConfig) -> str:
    from afterimage_segmentation.predict import segment_predict

    return segment_predict(config).text


SEGMENT = PackageCommand(
    Command(
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
    ),
    _segment,
)
PREDICT = PackageCommand(
    Command(
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
    ),
    _predict,
)
