"""`afterimage anomalies`."""

from collections.abc import Sequence

from afterimage.anomalies.config import AnomaliesConfig
from afterimage.commands.flags import Command, parse
from afterimage.console import say

COMMAND = Command(
    name="anomalies",
    kind="anomalies",
    config=AnomaliesConfig,
    positional="data",
    images=("data",),
    about="""\
Find images unlike the normal ones: a score for each, a threshold, heat maps.

  afterimage anomalies new --from runs/parts --normal good --out scores.csv
  afterimage anomalies newer --from runs/parts --out scores.csv --maps maps

The first command keeps what it knows of the normal images; the next ones use it.
A stopped command continues where it was when it is repeated.""",
    common={
        "What and where": ("data", "from_", "normal", "out"),
        "How it scores": ("by", "false_alarms", "held_out", "normal_class"),
        "What is drawn": ("maps", "sheet"),
        "How it runs": ("batch_size", "on_bad_image", "outside_images"),
    },
)


def main(argv: Sequence[str]) -> None:
    """Parses, scores, prints a summary."""
    config = parse(COMMAND, argv)
    from afterimage.anomalies.program import anomalies

    say(anomalies(config).summary())
