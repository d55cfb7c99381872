"""The first table of `docs/guide/representations.md`: published figures and ours."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.recipes import ERROR
from benchmarks.results import figure, read_results


class Published(NamedTuple):
    """One line: a published figure, and the row of `representations` to compare."""

    protocol: str
    """Data, labels, and the method."""
    table: str
    row: str
    control: str
    """The row without pretraining."""
    figure: float
    """The published figure, in the row's metric."""
    aim: float | None = None
    """Our aim. None: to exceed `figure`."""
    gap: float = 0.0
    """The gain over the control to exceed, in percentage points."""


def _classic(data: str, size: str, row: str, figure: float, gap: float) -> Published:
    protocol = f"{data}, {size} labels, classic network"
    table = f"{data.lower().replace('-', '')}-masci"
    return Published(
        protocol, table, f"pretrained-{row}", f"scratch-{row}", figure, gap=gap
    )


def _digits(size: str, how: str, row: str, figure: float, aim: float) -> Published:
    mode, _, labels = row.rpartition("-")
    control = "scratch" if mode == "best" else f"{mode}-scratch"
    return Published(
        f"MNIST, {size} labels, {how}",
        "mnist-labels",
        row,
        f"{control}-{labels}",
        figure,
        aim,
    )


_UNLABELLED, _VIEWS = "pseudo-labels", "nine views"
FIGURES: Sequence[Published] = (
    _classic("MNIST", "1,000", "1k", 92.35, gap=0.37),
    _classic("MNIST", "10,000", "10k", 97.80, gap=0.39),
    _classic("MNIST", "all", "all", 98.77, gap=0.32),
    _digits("100", "fine-tuned", "best-100", 3.33, aim=1.06),
    _digits("100", _UNLABELLED, "propagated-100", 3.33, aim=1.06),
    _digits("1,000", "fine-tuned", "best-1000", 2.40, aim=0.84),
    _digits("1,000", _UNLABELLED, "pseudo-labels-1000", 2.40, aim=0.84),
    _digits("all", "fine-tuned", "best-all", 0.71, aim=0.40),
    _digits("all", _VIEWS, "views-all", 0.71, aim=0.40),
    _classic("CIFAR-10", "1,000", "1k", 36.67, gap=0.0),
    _classic("CIFAR-10", "10,000", "10k", 55.86, gap=0.0),
    _classic("CIFAR-10", "all", "all", 65.42, gap=0.0),
    Published(
        "CIFAR-10, linear probe of `small-photos`",
        "cifar10",
        "linear-probe",
        "untrained-probe",
        49.33,
        75,
    ),
    Published(
        "CIFAR-10, linear probe of `patches --width 1.5`, two views",
        "cifar10-patches",
        "wide-linear-probe",
        "wide-untrained-probe",
        49.33,
        75,
    ),
    Published(
        "CIFAR-10, 4,000 labels, fine-tuned",
        "cifar10",
        "fine-tuned-4000",
        "scratch-4000",
        20.40,
        10,
    ),
    Published(
        "CIFAR-10, all labels, fine-tuned",
        "cifar10",
        "fine-tuned",
        "scratch",
        96.41,
        96.5,
    ),
)


def published_table() -> str:
    """Each published figure beside ours, our control and our aim."""
    rows = {(e["table"], e["row"]): e for e in read_results("representations")}
    lines = [
        "| data and method | pretrained | control | published | aim | reached |",
        "|---|---|---|---|---|---|",
    ]
    for line in FIGURES:
        with_, without = (rows[line.table, r] for r in (line.row, line.control))
        short = "*" if with_["settings"]["budget"] == "stand-in" else ""
        unit = "% error" if with_["metric"] == ERROR else "%"
        lines.append(
            f"| {line.protocol}{short} | {figure(with_, 2)} {unit} "
            f"| {figure(without, 2)} | {line.figure:.2f} | {_aim(line)} "
            f"| {_reached(line, with_, without)} |"
        )
    return "\n".join(lines)


def _aim(line: Published) -> str:
    if line.aim is not None:
        return f"{line.aim:g}"
    return f"more, gain > {line.gap:g}"


def _reached(
    line: Published, with_: Mapping[str, Any], without: Mapping[str, Any]
) -> str:
    """From means over seeds: "aim", "published" if only that is exceeded, or "no"."""
    sign = -1 if with_["metric"] == ERROR else 1
    ours, figure_ = sign * with_["mean"], sign * line.figure
    ahead = ours - sign * without["mean"]
    if ours <= figure_:
        return "no"
    enough = line.aim is None or ours >= sign * line.aim
    return "**aim**" if enough and ahead > line.gap else "published"
