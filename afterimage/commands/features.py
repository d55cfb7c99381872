"""`afterimage features`."""

from collections.abc import Sequence

from afterimage.checkpoints.names import spelling
from afterimage.commands.flags import Command, parse
from afterimage.console import say
from afterimage.evaluation.configs import FeaturesConfig

COMMAND = Command(
    name="features",
    kind="features",
    config=FeaturesConfig,
    positional="data",
    images=("data",),
    about="""\
Write the feature vector of every image to a file.

  afterimage features photos --from runs/photos --out features.parquet""",
    common={
        "What and where": ("data", "from_", "out", "split"),
        "Which features": ("pool", "dim", "views", "dtype"),
        "How it runs": ("batch_size", "on_bad_image", "cache", "ray"),
    },
)


def main(argv: Sequence[str]) -> None:
    """Parses, writes, prints the number of images."""
    config = parse(COMMAND, argv)
    from afterimage.export import features

    say(f"wrote {features(config)} feature vectors to {spelling(config.out)}")
