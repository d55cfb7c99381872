"""`afterimage evaluate`."""

import json
from collections.abc import Sequence

from afterimage.commands.flags import Command, parse
from afterimage.console import say
from afterimage.errors import UserError
from afterimage.evaluation.configs import EvaluateConfig, is_classifier, write

COMMAND = Command(
    name="evaluate",
    kind="evaluate",
    config=EvaluateConfig,
    positional="data",
    images=("data",),
    about="""\
Score a run on labelled images.

A classifier (`afterimage finetune`): accuracy, macro-F1, confusion matrix and
calibration error on the test images.

An encoder (`afterimage pretrain`): linear probe, kNN and ridge at several label
budgets, beside the same network untrained and raw pixels; which layer is best, how
many dimensions are used, how alike the layers are; a picture of the features. Probes
learn from the data's training images and are scored on its test images. Without any
label, criteria that need none: which of two encoders is better (--against)?

  afterimage evaluate test --from runs/cls
  afterimage evaluate labelled --from runs/photos --against runs/other""",
    common={
        "What and where": ("data", "from_", "out", "split", "validation", "against"),
        "What is measured": (
            *("views", "per_class", "label_seeds", "grid_3", "most"),
            *("embedding", "picture_images", "seed"),
        ),
        "How it runs": ("batch_size", "on_bad_image", "cache"),
    },
)


def main(argv: Sequence[str]) -> None:
    """Parses, scores, prints."""
    config = parse(COMMAND, argv)
    if is_classifier(config.from_):
        if config.against is not None:
            raise UserError(
                f"against={config.against}: {config.from_} is a classifier, but "
                "--against compares encoders. Leave it out, or use afterimage compare"
            )
        from afterimage.finetune.evaluate import evaluate, text

        figures = evaluate(config)
        say(text(figures).rstrip())
        if config.out is not None:
            write(config.out, (json.dumps(figures, indent=1) + "\n").encode())
    else:
        from afterimage.evaluate_encoder import evaluate_encoder

        say(evaluate_encoder(config)[1])
