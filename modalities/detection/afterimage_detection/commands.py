"""The commands `afterimage detect` and `afterimage detect-predict`."""

from afterimage.commands.flags import Command, PackageCommand
from afterimage_detection.config import DetectConfig, PredictConfig


def _detect(config: DetectConfig) -> str:
    from afterimage_detection.training import detect

    return detect(config).text


def _predict(config: PredictConfig) -> str:
    from afterimage_detection.detector import predict

    return predict(config)


DETECT = PackageCommand(
    Command(
        name="detect",
        kind="detect",
        config=DetectConfig,
        positional="data",
        about="""\
Train a detector on a pretrained encoder: boxes and classes, from images and boxes in
the format of COCO or YOLO. It keeps its best step by validation images, and is tested
once. The same command again continues an interrupted run.

  afterimage detect images --boxes boxes.json --from runs/photos --out runs/cells
  afterimage detect images --boxes labels --from runs/photos --out runs/cells""",
        common={
            "What and where": (
                *("data", "boxes", "from_", "out", "classes", "image_size"),
                *("validation", "hold_out", "test_data", "test_boxes"),
            ),
            "What learns, and from what": ("mode", "encoder_lr", "augment"),
            "How long": ("steps", "epochs", "batch_size", "eval_every", "save_every"),
            "How good": ("lr", "weight_decay", "ema", "seed"),
        },
    ),
    _detect,
)
PREDICT = PackageCommand(
    Command(
        name="detect-predict",
        config=PredictConfig,
        positional="data",
        about="""\
Write the boxes of every image of a folder as a COCO file, in pixels of the image, and
pictures with the boxes drawn.

  afterimage detect-predict new --from runs/cells --out new-boxes""",
        common={
            "What and where": ("data", "from_", "out"),
            "How": ("score", "on_bad_image"),
        },
    ),
    _predict,
)
