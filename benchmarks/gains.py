"""The table of `docs/guide/which-method.md`: each method beside its control."""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.results import figure, read_results


class Gain(NamedTuple):
    """One line: what a method gained over doing without it."""

    situation: str
    """What one has."""
    method: str
    """What one takes."""
    cost: str
    table: str
    row: str
    """With the method."""
    control: str
    """The row without it."""
    results: str = "transfer"
    """The file below `benchmarks/results`."""


GAINS: Sequence[Gain] = (
    Gain(
        "digits, one label a class",
        "`full` after pretraining",
        "pretraining, once",
        "few-labels",
        "full-10",
        "scratch-10",
    ),
    Gain(
        "digits, ten a class",
        "`full` after pretraining",
        "pretraining, once",
        "few-labels",
        "full-100",
        "scratch-100",
    ),
    Gain(
        "photos, ten a class",
        "`partial` after pretraining",
        "pretraining, once",
        "few-labels-cifar10",
        "partial-100",
        "scratch-100",
    ),
    Gain(
        "photos, a hundred a class",
        "`full` after pretraining",
        "pretraining, once",
        "few-labels-cifar10",
        "full-1000",
        "scratch-1000",
    ),
    Gain(
        "photos, 5,000 a class, a linear classifier",
        "preset `patches`, frozen",
        "three and a half minutes of pretraining",
        "cifar10-patches",
        "linear-probe",
        "untrained-probe",
        results="representations",
    ),
    Gain(
        "digits, 6,000 a class",
        "`full` after pretraining",
        "pretraining, once",
        "mnist-labels",
        "best-all",
        "scratch-all",
        results="representations",
    ),
    Gain(
        "the same, a prediction may take longer",
        "`evaluate --views shift`",
        "nine predictions for one",
        "mnist-labels",
        "views-all",
        "best-all",
        results="representations",
    ),
    Gain(
        "ten a class, the other images without labels",
        "`--unlabelled rest`",
        "two to three times a run",
        "mnist-labels",
        "pseudo-labels-100",
        "best-100",
        results="representations",
    ),
    Gain(
        "the same, kinds that the labels lack",
        "`--propagation 0.5`",
        "two and a half minutes, once",
        "mnist-labels",
        "propagated-100",
        "pseudo-labels-100",
        results="representations",
    ),
    Gain(
        "a hundred a class, and the others",
        "`--unlabelled rest`",
        "two to three times a run",
        "mnist-labels",
        "pseudo-labels-1000",
        "best-1000",
        results="representations",
    ),
    Gain(
        "labels elsewhere, images that look otherwise",
        "`--align mmd`",
        "up to twice a run",
        "mnist-usps-shift",
        "mmd",
        "source-only",
    ),
    Gain(
        "the same, the difference drawn by augmentation",
        "preset `adapt-pseudo-labels`",
        "two to three times a run",
        "mnist-usps",
        "pseudo-labels, counted",
        "source-only",
    ),
    Gain(
        "the same, from the plainer domain to the richer",
        "`--align cdan-e`",
        "up to twice a run",
        "usps-mnist",
        "cdan-e",
        "source-only",
    ),
    Gain(
        "figures on black, the target on photos",
        "preset `adapt-ink`",
        "two to three times a run",
        "mnist-coloured",
        "ink + pseudo-labels",
        "source-only",
    ),
    Gain(
        "a network that must be small",
        "`--teacher`",
        "two and a half times a step",
        "distillation-mnist",
        "student-distilled",
        "student",
    ),
    Gain(
        "the same, with augmentation",
        "`--teacher`",
        "two and a half times a step",
        "distillation-mnist",
        "student-augmented-distilled",
        "student-augmented",
    ),
    Gain(
        "the same, four times as long",
        "`--teacher`, augmentation",
        "two and a half times a step",
        "distillation-mnist",
        "student-long-distilled",
        "student-long",
    ),
    Gain(
        "classes that come group after group",
        "`--continual replay`",
        "100 images a class, kept",
        "split-mnist-class",
        "replay",
        "none",
    ),
    Gain(
        "tasks with a head each, no image kept",
        "`--continual ewc`",
        "two copies of the model",
        "split-mnist-task",
        "ewc",
        "none",
    ),
    Gain(
        "new classes of one image each",
        "`--meta proto-maml`",
        "four times prototypes",
        "omniglot-5w1s",
        "proto-maml",
        "frozen encoder, nearest neighbour",
    ),
    Gain(
        "new classes of five images each",
        "`--meta proto-maml`",
        "four times prototypes",
        "omniglot-5w5s",
        "proto-maml",
        "frozen encoder, nearest neighbour",
    ),
)


def gains_table() -> str:
    """What each method gained over doing without it, from the other tables' rows."""
    lines = [
        "| what one has | what one takes | with it | without | what it costs |",
        "|---|---|---|---|---|",
    ]
    for gain in GAINS:
        rows = [e for e in read_results(gain.results) if e["table"] == gain.table]
        names = gain.row, gain.control
        pair = [next(e for e in rows if e["row"] == name) for name in names]
        metric = pair[0]["metric"].split(" on ")[0].removesuffix(", %")
        small = any(entry["mean"] < 1 for entry in pair)
        digits = 2 if small else 1
        better, worse = (figure(entry, digits) for entry in pair)
        lines.append(
            f"| {gain.situation} | {gain.method} | {better} {metric} | {worse} "
            f"| {gain.cost} |"
        )
    return "\n".join(lines)
