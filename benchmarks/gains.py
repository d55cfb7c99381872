"""The table of `docs/guide/which-method.md`: each method against its control."""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.results import figure, read_results


class Gain(NamedTuple):
    """One line: a method and its control."""

    situation: str
    """The user's situation."""
    method: str
    """The method to use."""
    cost: str
    table: str
    row: str
    """The row with the method."""
    control: str
    """The row without it."""
    results: str = "transfer"
    """The file below `benchmarks/results`."""


GAINS: Sequence[Gain] = (
    Gain(
        "digits, 1 label per class",
        "pretraining, mode `full`",
        "pretraining, once",
        "few-labels",
        "full-10",
        "scratch-10",
    ),
    Gain(
        "digits, 10 per class",
        "pretraining, mode `full`",
        "pretraining, once",
        "few-labels",
        "full-100",
        "scratch-100",
    ),
    Gain(
        "photos, 10 per class",
        "pretraining, mode `partial`",
        "pretraining, once",
        "few-labels-cifar10",
        "partial-100",
        "scratch-100",
    ),
    Gain(
        "photos, 100 per class",
        "pretraining, mode `full`",
        "pretraining, once",
        "few-labels-cifar10",
        "full-1000",
        "scratch-1000",
    ),
    Gain(
        "photos, 5,000 per class, a linear classifier",
        "preset `patches`, frozen",
        "3.5 minutes of pretraining",
        "cifar10-patches",
        "linear-probe",
        "untrained-probe",
        results="representations",
    ),
    Gain(
        "digits, 6,000 per class",
        "pretraining, mode `full`",
        "pretraining, once",
        "mnist-labels",
        "best-all",
        "scratch-all",
        results="representations",
    ),
    Gain(
        "the same, prediction time does not matter",
        "nine shifted views",
        "9 × prediction",
        "mnist-labels",
        "views-all",
        "best-all",
        results="representations",
    ),
    Gain(
        "10 per class, and unlabelled images",
        "pseudo-labels",
        "2 to 3 × training",
        "mnist-labels",
        "pseudo-labels-100",
        "best-100",
        results="representations",
    ),
    Gain(
        "the same, the labels miss a kind of image",
        "label propagation as well",
        "2.5 minutes, once",
        "mnist-labels",
        "propagated-100",
        "pseudo-labels-100",
        results="representations",
    ),
    Gain(
        "100 per class, and unlabelled images",
        "pseudo-labels",
        "2 to 3 × training",
        "mnist-labels",
        "pseudo-labels-1000",
        "best-1000",
        results="representations",
    ),
    Gain(
        "labels of another domain, images look different",
        "MMD",
        "up to 2 × training",
        "mnist-usps-shift",
        "mmd",
        "source-only",
    ),
    Gain(
        "the same, augmentation covers the difference",
        "preset `adapt-pseudo-labels`",
        "2 to 3 × training",
        "mnist-usps",
        "pseudo-labels, counted",
        "source-only",
    ),
    Gain(
        "the same, from the plain to the varied domain",
        "CDAN+E",
        "up to 2 × training",
        "usps-mnist",
        "cdan-e",
        "source-only",
    ),
    Gain(
        "figures on black, the target on photos",
        "preset `adapt-ink`",
        "2 to 3 × training",
        "mnist-coloured",
        "ink + pseudo-labels",
        "source-only",
    ),
    Gain(
        "the network must be small",
        "distillation",
        "2.5 × a step",
        "distillation-mnist",
        "student-distilled",
        "student",
    ),
    Gain(
        "the same, with augmentation",
        "distillation",
        "2.5 × a step",
        "distillation-mnist",
        "student-augmented-distilled",
        "student-augmented",
    ),
    Gain(
        "the same, 4 × as long",
        "distillation",
        "2.5 × a step",
        "distillation-mnist",
        "student-long-distilled",
        "student-long",
    ),
    Gain(
        "classes arrive group after group",
        "replay",
        "100 stored images per class",
        "split-mnist-class",
        "replay",
        "none",
    ),
    Gain(
        "tasks with one head each, no stored images",
        "EWC",
        "two copies of the model",
        "split-mnist-task",
        "ewc",
        "none",
    ),
    Gain(
        "new classes, one image each",
        "Proto-MAML",
        "4 × prototypes",
        "omniglot-5w1s",
        "proto-maml",
        "frozen encoder, nearest neighbour",
    ),
    Gain(
        "new classes, five images each",
        "Proto-MAML",
        "4 × prototypes",
        "omniglot-5w5s",
        "proto-maml",
        "frozen encoder, nearest neighbour",
    ),
)


def gains_table() -> str:
    """Each method and its control, from rows of the other tables."""
    lines = [
        "| you have | use | with it | without | cost |",
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
