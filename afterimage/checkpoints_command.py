"""`afterimage checkpoints list|show|verify|prune RUN`, `import FILE`, `export RUN`."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import tyro
from tyro.conf import Positional, subcommand

from afterimage.checkpoints import inspect
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.names import printable
from afterimage.fields import field_problems
from afterimage.training.options import check


@dataclasses.dataclass(frozen=True)
class List:
    """One line a checkpoint: step, date, size, metric, newest and best, status."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run folder."""


@dataclasses.dataclass(frozen=True)
class Show:
    """What a checkpoint says of itself, and every leaf with its shape and dtype."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder, a checkpoints/STEP folder or an encoder folder."""
    step: int | None = None
    """Which step of a run. Default: the newest."""


@dataclasses.dataclass(frozen=True)
class Verify:
    """Read every byte and compare it with its checksum; exits with 3 and names what is
    damaged, missing or foreign."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder, a checkpoints/STEP folder or an encoder folder."""


@dataclasses.dataclass(frozen=True)
class Prune:
    """Delete all checkpoints but the newest and the best good ones."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    keep_last: int = 1
    """How many of the newest stay."""
    keep_best: int = 1
    """How many of the best by validation stay."""
    dry_run: bool = False
    """Only say what would be deleted."""


@dataclasses.dataclass(frozen=True)
class Import:
    """torchvision's or timm's weights into an encoder folder; the file's code is not
    run, and its classification head is left out."""

    file: Annotated[Positional[str], tyro.conf.arg(metavar="FILE")]
    """A .safetensors, .pth, .pt or .bin file."""
    model: str
    """resnet18, resnet34, resnet50, vgg11, vgg11_bn, vgg16 or vgg16_bn."""
    out: str
    """The encoder folder to write."""
    image_size: int = 224
    """Pixels a side that images are scaled to."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of the channels, images in [0, 1]. Default: ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of the channels, images in [0, 1]. Default: ImageNet's."""
    norm: Literal["frozen", "batch"] = "frozen"
    """BatchNorm: frozen keeps all of it constant; batch lets it learn and move."""


@dataclasses.dataclass(frozen=True)
class Export:
    """An encoder as safetensors under torchvision's names, without a head."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder, a checkpoints/STEP folder or an encoder folder."""
    out: str
    """The .safetensors file to write."""


def main(argv: Sequence[str], *, prog: str = "afterimage checkpoints") -> None:
    """Parses, does, prints; raises `CheckpointError` when verification fails."""
    kinds = (
        Annotated[List, subcommand("list")]
        | Annotated[Show, subcommand("show")]
        | Annotated[Verify, subcommand("verify")]
        | Annotated[Prune, subcommand("prune")]
        | Annotated[Import, subcommand("import")]
        | Annotated[Export, subcommand("export")]
    )
    choice = tyro.cli(
        cast(Any, kinds),
        prog=prog,
        args=list(argv),
        description="What a run has saved: list, show, verify, prune; known encoders.",
    )
    check(field_problems(choice))
    if isinstance(choice, Import | Export):
        _convert(choice)
    elif isinstance(choice, List):
        _print(inspect.format_list(inspect.list_steps(choice.run)))
    elif isinstance(choice, Show):
        _print(inspect.format_show(inspect.show(choice.run, choice.step)))
    elif isinstance(choice, Prune):
        done = inspect.prune(
            choice.run, choice.keep_last, choice.keep_best, dry_run=choice.dry_run
        )
        _print(inspect.format_prune(done))
    elif isinstance(choice, Verify):
        findings = inspect.verify(choice.run)
        _print(inspect.format_verify(findings))
        if any(finding.fatal for finding in findings):
            raise CheckpointError(f"{choice.run} is damaged; see above")


def _print(text: str) -> None:
    """An artefact may be anybody's: nothing in it may steer a terminal."""
    print(printable(text, keep="\n\t"))


def _convert(choice: Import | Export) -> None:
    # Lazy: the other commands need no JAX.
    from afterimage.known import export_encoder, import_encoder

    if isinstance(choice, Import):
        options = dataclasses.asdict(choice)
        path = options.pop("file")
        print(f"{import_encoder(path, **options)}\nwrote {choice.out}")
    else:
        config = export_encoder(choice.run, choice.out)
        print(f"wrote {choice.out}: {config.name} under torchvision's names, no head")
