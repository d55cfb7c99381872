"""`afterimage checkpoints list|show|verify|prune RUN`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from afterimage.checkpoints import inspect
from afterimage.checkpoints.errors import CheckpointError
from afterimage.commands.flags import Command, parse
from afterimage.console import say
from afterimage.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """One line per checkpoint: step, date, size, metric, newest and best, status."""

    run: str
    """The run folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """A checkpoint's metadata, and every leaf with its shape and dtype."""

    run: str
    """A run folder, a checkpoints/STEP folder or an encoder folder."""

    step: int | None = None
    """Which step of a run. Default: the newest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify:
    """Read every file and compare it with its checksum; if any is damaged, missing or
    foreign, name it and exit with 3."""

    run: str
    """A run folder, a checkpoints/STEP folder or an encoder folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune:
    """Delete all undamaged checkpoints except the newest and the best."""

    run: str
    """The run folder."""

    keep_last: int = 1
    """How many of the newest checkpoints to keep."""

    keep_best: int = 1
    """How many of the best checkpoints to keep, by validation metric."""

    dry_run: bool = False
    """Only print what would be deleted."""


COMMANDS = {
    kind.__name__.lower(): Command(
        name=f"checkpoints {kind.__name__.lower()}",
        config=kind,
        positional="run",
        about=" ".join((kind.__doc__ or "").split()),
        common={"Settings": tuple(f.name for f in dataclasses.fields(kind))},
    )
    for kind in (List, Show, Verify, Prune)
}


def main(argv: Sequence[str]) -> None:
    """Parses, runs, prints; raises `CheckpointError` when verification fails."""
    if not argv or argv[0] not in COMMANDS:
        say("usage: afterimage checkpoints list|show|verify|prune RUN\n")
        say("\n".join(f"  {name:8}{c.about}" for name, c in COMMANDS.items()))
        if argv and argv[0] not in ("-h", "--help", "--help-all"):
            hint = did_you_mean(argv[0], COMMANDS)
            raise UserError(f"afterimage checkpoints has no command {argv[0]}{hint}")
        return
    choice: Any = parse(COMMANDS[argv[0]], argv[1:])
    if isinstance(choice, List):
        say(inspect.format_list(inspect.list_steps(choice.run)))
    elif isinstance(choice, Show):
        say(inspect.format_show(inspect.show(choice.run, choice.step)))
    elif isinstance(choice, Prune):
        done = inspect.prune(
            choice.run, choice.keep_last, choice.keep_best, dry_run=choice.dry_run
        )
        say(inspect.format_prune(done))
    else:
        findings = inspect.verify(choice.run)
        say(inspect.format_verify(findings))
        if any(finding.fatal for finding in findings):
            raise CheckpointError(f"{choice.run} is damaged; the list above says where")
