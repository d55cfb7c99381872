"""`afterimage similar`."""

from collections.abc import Sequence

from afterimage.commands.flags import Command, parse
from afterimage.console import say
from afterimage.evaluation.configs import SimilarConfig

COMMAND = Command(
    name="similar",
    kind="similar",
    config=SimilarConfig,
    positional="data",
    images=("data", "query"),
    about="""\
Find the images of an album that are nearest to some, or its near-duplicates.

  afterimage similar album --from runs/photos --query a.jpg b.jpg --out near.html
  afterimage similar album --from runs/photos --duplicates --out doubles.csv sheet.png

The vectors of the album are kept; the next time only new images are read.""",
    common={
        "What and where": ("data", "from_", "query", "duplicates", "out"),
        "What is found": ("top", "cosine"),
        "How it runs": ("index", "batch_size", "outside_images"),
    },
)


def main(argv: Sequence[str]) -> None:
    """Parses, searches, prints what is nearest."""
    config = parse(COMMAND, argv)
    from afterimage.similar import similar

    say(similar(config).summary())
