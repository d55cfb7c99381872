"""`afterimage compare RUN RUN …`."""

import dataclasses
from collections.abc import Sequence

from afterimage.commands.flags import Command, parse
from afterimage.console import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Several runs side by side."""

    runs: tuple[str, ...]
    """Two or more run folders, of pretrain or finetune."""

    out: str | None = None
    """Also write a page with tables and curves to this .html file."""


COMMAND = Command(
    name="compare",
    config=Compare,
    positional="runs",
    about="""\
Several runs in one table: what they reached, with 95 % intervals, and the settings that
differ. With --out also a page with their curves over each other.

  afterimage compare runs/plain runs/dann runs/mmd --out compare.html""",
    common={"Settings": ("runs", "out")},
)


def main(argv: Sequence[str]) -> None:
    """Parses, prints."""
    config = parse(COMMAND, argv)
    from afterimage.run_comparison import compare

    say(compare(config.runs, config.out))
