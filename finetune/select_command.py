"""`afterimage select`: which of several classifiers to take, without labels."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from afterimage.cli import parse
from afterimage.console import say
from afterimage.errors import UserError
from afterimage.evaluate_command import write
from afterimage.fields import field_problems
from afterimage.reading import ReadingOptions
from afterimage.training.options import check

DESCRIPTION = """Which of several fine-tuned classifiers to take, by images without \
labels. With --encoder the one whose predictions are most alike between images that \
are near in the features of that pretrained encoder; else the one that most often says \
what the mean of all of them says.

  afterimage select --from runs/plain runs/dann runs/mmd --data folder:others \
--encoder runs/pretrained"""
FEWEST = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig(ReadingOptions):
    """Compare finished runs on images without labels."""

    from_: tuple[str, ...]
    """Fine-tuning runs, or their classifier/ folders, of the same classes: two or more
    with encoder, three or more without."""

    data: str
    """Where the images are: digits, folder:PATH, zip:PATH[,PATH], csv:PATH, npz:PATH,
    tfds:NAME, synthetic:HxWxC. Labels among them are not looked at."""

    encoder: str | None = None
    """The pretrained encoder, a run or its encoder/ folder, by whose features the
    neighbours of an image are told: best the one that the runs began from. Without it
    the mean of all predictions decides."""

    split: Literal["train", "validation", "test"] = "train"
    """Which of the images."""

    most: int = 10_000
    """Of more images so many, evenly spaced."""

    out: str | None = None
    """Write the figures to this file, as JSON."""

    batch_size: int = 256
    """Images that go through the network together."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with a broken image: stop and name it, or skip and count it."""

    cache: bool = True
    """Keep decoded images of folders and archives on disk for the next pass."""

    def __post_init__(self):
        check(field_problems(self))
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: at least 1")
        if len(self.from_) < 2:
            raise UserError(f"from has {len(self.from_)} runs: name two or more")
        if len(self.from_) < FEWEST and self.encoder is None:
            raise UserError(
                f"from has {len(self.from_)} runs: name {FEWEST} or more, since of two "
                "the surer one would always win; or give --encoder"
            )
        if self.most < 2:
            raise UserError(f"most={self.most}: at least 2 images")
        twice = {one for one in self.from_ if self.from_.count(one) > 1}
        if twice:
            raise UserError(f"from names {sorted(twice)[0]} twice: each run once")


def text(found: dict[str, Any]) -> str:
    """The comparison for a terminal."""
    width = max(len(one["run"]) for one in found["runs"])
    columns = {"agreement": "agrees with the mean", "infomax": "infomax, nats"}
    if "neighbours" in found["runs"][0]:
        columns = {"neighbours": "neighbours, nats", **columns}
    lines = [
        f"{found['data']}, {found['examples']} images, labels not looked at",
        "  ".join([f"{'run':{width}}", *columns.values()]),
    ]
    for one in found["runs"]:
        cells = {"agreement": f"{100 * one['agreement']:.1f} %"}
        cells |= {k: f"{one[k]:.3f}" for k in columns if k not in cells}
        row = [f"{cells[k]:>{len(head)}}" for k, head in columns.items()]
        lines.append("  ".join([f"{one['run']:{width}}", *row]))
    return "\n".join([*lines, f"take {found['chosen']}: {found['rule']}"])


def main(argv: Sequence[str], *, prog: str = "afterimage select") -> None:
    """Parses, compares, prints."""
    config = parse(SelectConfig, {}, argv, prog=prog, description=DESCRIPTION)
    from afterimage.finetune.select import select

    found = select(config)
    say(text(found))
    if config.out is not None:
        write(Path(config.out), (json.dumps(found, indent=1) + "\n").encode())
