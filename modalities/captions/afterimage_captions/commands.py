"""The commands `afterimage align` and `afterimage zero-shot`."""

from afterimage.commands.flags import Command, PackageCommand
from afterimage_captions.config import AlignConfig, ZeroShotConfig


def _align(config: AlignConfig) -> str:
    from afterimage_captions.training import align

    return align(config).text


def _zero_shot(config: ZeroShotConfig) -> str:
    from afterimage_captions.predict import zero_shot

    return zero_shot(config).text


ALIGN = PackageCommand(
    Command(
        name="align",
        kind="align",
        config=AlignConfig,
        positional="pairs",
        about="""\
Align a pretrained image encoder with frozen vectors of texts, from pairs of image and
text. It keeps its best step by validation pairs, and is tested once: each image finds
its text, and each text its images. The same command again continues an interrupted run.

  afterimage align pairs.csv --from runs/photos --out runs/aligned""",
        common={
            "What and where": (
                *("pairs", "text", "text_column", "from_", "out", "image_size"),
                *("validation", "hold_out"),
            ),
            "What learns, and from what": ("mode", "encoder_lr", "augment"),
            "How long": ("steps", "epochs", "batch_size", "eval_every", "save_every"),
            "How good": ("lr", "weight_decay", "ema", "seed"),
        },
    ),
    _align,
)
ZERO_SHOT = PackageCommand(
    Command(
        name="zero-shot",
        config=ZeroShotConfig,
        positional="images",
        about="""\
Write the most probable classes of every image, of classes that are given as words. No
image of them was needed in training.

  afterimage zero-shot photos --classes cat dog --prompt "a photo of a {}" \\
      --from runs/aligned --out predictions.csv""",
        common={
            "What and where": ("images", "classes", "from_", "out", "split"),
            "How": ("prompt", "text", "top", "on_bad_image"),
        },
    ),
    _zero_shot,
)
