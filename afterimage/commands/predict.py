"""`afterimage predict`."""

from collections.abc import Sequence

from afterimage.commands.flags import Command, parse
from afterimage.console import say
from afterimage.evaluation.configs import PredictConfig

COMMAND = Command(
    name="predict",
    kind="predict",
    config=PredictConfig,
    positional="data",
    images=("data",),
    about="""\
Write the class of every image to a file, with its probability and how sure it is.

  afterimage predict photos --from runs/cls --out predictions.csv
  afterimage predict new/*.jpg --from runs/cls --out predictions.parquet

A stopped command continues where it was when it is repeated.""",
    common={
        "What and where": ("data", "from_", "out"),
        "What is written": ("top", "threshold", "task", "views"),
        "How it runs": ("batch_size", "on_bad_image", "outside_images"),
    },
)


def main(argv: Sequence[str]) -> None:
    """Parses, predicts, prints a summary."""
    config = parse(COMMAND, argv)
    from afterimage.predict import predict

    say(predict(config).summary())
