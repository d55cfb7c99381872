"""The tables of `benchmarks.representations`: data, pretraining recipe, rows."""

import dataclasses
from typing import Any, Literal

import afterimage.finetune.presets
import afterimage.pretrain.presets
from afterimage.finetune.presets.labels import PROPAGATION, PSEUDO_LABELS

Kind = Literal["pretrained", "scratch", "linear-probe", "untrained-probe"]
Metric = Literal["test accuracy, %", "test error, %"]
ACCURACY: Metric = "test accuracy, %"
ERROR: Metric = "test error, %"
MNIST = "npz:{}/mnist.npz"
CIFAR = f"zip:{','.join(f'{{}}/cifar10/train-{i}.zip' for i in range(5))}"
CIFAR += ",{}/cifar10/test.zip"


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: number of labels, and settings."""

    labels: int | None
    """Number in all, balanced over the classes; None: all labels."""
    kind: Kind
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fine-tuning settings, in addition to the table's own."""
    metric: Metric = ACCURACY
    pretrain: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Pretraining settings, in addition to the table's own."""
    views: str = "none"
    """`afterimage evaluate --views`, for test images or for every image's vector."""
    grid_3: bool = False
    """`afterimage evaluate --grid-3`, for a probe."""
    runs: str | None = None
    """The row whose runs are scored, if this row has none of its own."""


@dataclasses.dataclass(frozen=True)
class Table:
    """One data set, one pretraining recipe, several rows."""

    data: str
    """The data spec, with {} for the folder of the files."""
    pretrain: dict[str, Any]
    finetune: dict[str, Any]
    rows: dict[str, Row]
    stand_in: dict[str, dict[str, Any]]
    """Settings that replace the recipe's own with `--stand-in`, for a CPU."""


def _pairs(
    sizes: dict[str, int | None],
    name: str,
    metric: Metric = ACCURACY,
    control: str = "scratch",
    **settings: Any,
) -> dict[str, Row]:
    """A pretrained row for each size, and its control from scratch."""
    kinds: tuple[tuple[str, Kind], ...] = (
        (name, "pretrained"),
        (control, "scratch"),
    )
    return {
        f"{prefix}-{size}": Row(labels, kind, settings, metric)
        for size, labels in sizes.items()
        for prefix, kind in kinds
    }


def files_of(data: str) -> list[str]:
    """The files that a data spec of a table names, below the folder of the files."""
    return [part.removeprefix("{}/") for part in data.partition(":")[2].split(",")]


def _preset(name: str) -> dict[str, dict[str, Any]]:
    """The preset with this name, for both stages."""
    return {
        "pretrain": dict(afterimage.pretrain.presets.PRESETS[name].settings),
        "finetune": dict(afterimage.finetune.presets.PRESETS[name].settings),
    }


_MASCI_TUNING: dict[str, Any] = {
    "mode": "full",
    "head": "mlp",
    "head_width": 300,
    "steps": 3000,
    "batch_size": 128,
    "augment": "none",
}


def _viewed(rows: dict[str, Row], names: dict[str, str]) -> dict[str, Row]:
    """The runs of other rows, scored with several views of each test image."""
    return {
        name: dataclasses.replace(rows[runs], views="shift", runs=runs)
        for name, runs in names.items()
    }


_MASKED_8 = {**_preset("mnist-masked")["pretrain"]["objective"], "patch": 8}
_LATENT_8 = {**_MASKED_8, "name": "latent", "weight": 1.0}
LABELS_BESIDE = {"steps": 4000}
"""Steps of runs with pseudo-labels, as in the preset."""
_SIZES = {"1k": 1_000, "10k": 10_000, "all": None}
_MNIST_ROWS: dict[str, Row] = (
    _pairs({"100": 100, "1000": 1_000, "all": None}, "best", ERROR)
    | _pairs(
        {"100": 100, "1000": 1_000},
        "pseudo-labels",
        ERROR,
        control="pseudo-labels-scratch",
        **LABELS_BESIDE,
        methods=(PSEUDO_LABELS,),
    )
    | _pairs(
        {"100": 100},
        "propagated",
        ERROR,
        control="propagated-scratch",
        **LABELS_BESIDE,
        methods=({**PSEUDO_LABELS, "propagation": PROPAGATION},),
    )
    | {
        # Patches of the last map's stride, as a latent target needs them.
        "latent-100": Row(
            100,
            "pretrained",
            metric=ERROR,
            pretrain={"objective": _LATENT_8},
        ),
        "patch-8-100": Row(
            100, "pretrained", metric=ERROR, pretrain={"objective": _MASKED_8}
        ),
    }
)
_WIDE_PROBE = Row(
    None, "linear-probe", pretrain={"width": 1.5}, views="flip", grid_3=True
)
TABLES: dict[str, Table] = {
    "mnist-masci": Table(
        data=MNIST,
        rows=_pairs(_SIZES, "pretrained"),
        pretrain=_preset("mnist-masked")["pretrain"]
        | {"model": "conv-masci", "steps": 10_000},
        # Without augmentation, 10,000 labels are memorised within 400 steps, and
        # pretraining gains nothing.
        finetune=_MASCI_TUNING | {"augment": "affine"},
        stand_in={"pretrain": {"steps": 1440}, "finetune": {"steps": 120}},
    ),
    "mnist-labels": Table(
        data=MNIST,
        rows=_MNIST_ROWS
        | _viewed(
            _MNIST_ROWS,
            {
                "views-all": "best-all",
                "views-scratch-all": "scratch-all",
                **{
                    f"views-{name}": name
                    for name in (
                        "pseudo-labels-1000",
                        "pseudo-labels-scratch-1000",
                        "propagated-100",
                        "propagated-scratch-100",
                    )
                },
            },
        ),
        stand_in={"pretrain": {"steps": 1200}, "finetune": {"steps": 400}},
        **_preset("mnist-masked"),
    ),
    "cifar10-masci": Table(
        data=CIFAR,
        rows=_pairs(_SIZES, "pretrained"),
        # After 240 steps of 128 with a rectangle erased, scratch was the better start.
        pretrain=_preset("small-photos")["pretrain"]
        | {"model": "conv-masci", "steps": 10_000},
        finetune=_MASCI_TUNING,
        stand_in={"pretrain": {"steps": 1440}, "finetune": {"steps": 120}},
    ),
    "cifar10": Table(
        data=CIFAR,
        rows={
            "linear-probe": Row(None, "linear-probe"),
            "untrained-probe": Row(None, "untrained-probe"),
            "fine-tuned": Row(None, "pretrained"),
            "scratch": Row(None, "scratch"),
            "fine-tuned-4000": Row(4_000, "pretrained", {"ema": 0.99}, ERROR),
            "scratch-4000": Row(4_000, "scratch", {"ema": 0.99}, ERROR),
        },
        # One core trains 32 images a second on a ResNet-18, even at half the width.
        stand_in={
            "pretrain": {
                **afterimage.pretrain.presets.PRESETS["small-photos"].settings,
                "precision": "float32",
            },
            "finetune": {
                name: afterimage.finetune.presets.PRESETS["small-photos"].settings[name]
                for name in ("steps", "batch_size", "lr")
            }
            | {"precision": "float32"},
        },
        **_preset("cifar-masked"),
    ),
    "cifar10-patches": Table(
        data=CIFAR,
        rows={
            "linear-probe": Row(None, "linear-probe"),
            "untrained-probe": Row(None, "untrained-probe"),
            "views-linear-probe": Row(None, "linear-probe", views="flip", grid_3=True),
            "views-untrained-probe": Row(
                None, "untrained-probe", views="flip", grid_3=True
            ),
            "wide-linear-probe": _WIDE_PROBE,
            "wide-untrained-probe": dataclasses.replace(
                _WIDE_PROBE, kind="untrained-probe", runs="wide-linear-probe"
            ),
        },
        pretrain=dict(afterimage.pretrain.presets.PRESETS["patches"].settings),
        finetune={"steps": 1},  # nothing is fine-tuned
        stand_in={"pretrain": {"steps": 100}, "finetune": {}},
    ),
}
