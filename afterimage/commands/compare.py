"""`afterimage compare RUN RUN …`."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from afterimage.commands.flags import Command, parse
from afterimage.console import say
from afterimage.errors import UserError
from afterimage.storage.outputs import here


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Several runs side by side."""

    UPLOADED: ClassVar = ("out",)

    runs: tuple[str, ...]
    """Two or more run folders, of pretrain or finetune."""

    out: str | None = None
    """Also write a page with tables, curves and pictures to this .html file."""


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
    """Parses, compares, prints."""
    config = parse(COMMAND, argv)
    if len(config.runs) < 2:
        raise UserError("compare needs at least two run folders")
    from afterimage.report import comparison_text, read_run, write_comparison

    records = [read_run(folder) for folder in config.runs]
    say(comparison_text(records))
    if config.out is not None:
        with here(config.out) as place:
            write_comparison(place, records)
        say(f"\nreport  {config.out}")
