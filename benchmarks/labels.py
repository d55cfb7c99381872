"""Tables of `benchmarks.transfer`: what an encoder saves in labels, or in size.

few-labels          MNIST, one encoder per seed; rows MODE-LABELS
few-labels-cifar10  CIFAR-10, likewise
distillation-mnist  a teacher, and a student a quarter as wide, without and with it: on
                    plain images (as published), on augmented images, and on augmented
                    images for four times as long
"""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from afterimage.finetune.presets import PRESETS
from benchmarks.programs import Settings, accuracy, by_seed, pretrained_as
from benchmarks.recipes import CIFAR, MNIST, files_of
from benchmarks.results import row

RECIPE = PRESETS["mnist-masked"].settings
LABELS = (10, 100, 1000)
MODES: dict[str, dict[str, Any]] = {
    "probe": dict(PRESETS["probe"].settings),
    "partial": {"mode": {"name": "partial", "stages": 1}},
    "two-phase": {"mode": "two-phase"},
    "full": {"mode": "full"},
    "l2-sp": dict(PRESETS["l2-sp"].settings),
    "scratch": {"mode": "scratch"},
}
ROWS = tuple(f"{mode}-{labels}" for labels in LABELS for mode in MODES)
STUDENT_WIDTH = 0.25


class Images(NamedTuple):
    """The data and settings of a table of few labels."""

    data: str
    """The data spec, with {} for the folder of the files."""
    preset: str
    """Preset for pretraining."""
    tuning: dict[str, Any]
    """Settings common to all modes."""


TABLES = {
    "few-labels": Images(MNIST, "mnist-masked", dict(RECIPE)),
    # On 5,000 held-out training images, 300 steps, 100 and 1,000 labels, the mean of
    # full (from an encoder that had learned pixels) and scratch was 33.6, 34.1 and
    # 34.1 % at rates 1e-3, 3e-3 and 1e-2.
    "few-labels-cifar10": Images(
        CIFAR,
        "small-photos",
        {"lr": 3e-3, "augment": "crop-flip", "ema": 0.99},
    ),
}


def needed(table: str) -> set[str]:
    """The files of a table of few labels."""
    return set(files_of(TABLES[table].data))


def few_labels(
    run: Settings, table: str, out: pathlib.Path
) -> Iterator[dict[str, Any]]:
    """Test accuracy by mode and number of labels; the last step is kept."""
    images = TABLES[table]
    data = images.data.replace("{}", run.folder)
    for name in filter(run.wants, ROWS):
        mode, _, labels = name.rpartition("-")

        def settings(
            seed: int, name: str = name, mode: str = mode, labels: str = labels
        ) -> dict[str, Any]:
            home = out / f"{table}-pretrained-{seed}"
            return {
                **images.tuning,
                **MODES[mode],
                "from_": pretrained_as(
                    images.preset, data, home, run.pretrain_steps, seed
                ),
                "data": data,
                "out": str(out / f"{table}-{name}-{seed}"),
                "labels": int(labels),
                "eval_every": run.steps,
            }

        found, more = by_seed(run, settings)
        scores = [accuracy(results) for results in found]
        yield row(table, name, "test accuracy, %", scores, **more)


# As published (Hinton 2015, section 3): the teacher sees augmented images, the student
# plain ones, with and without the teacher.
SMALL: dict[str, Any] = {
    **RECIPE,
    "mode": {"name": "scratch", "width": STUDENT_WIDTH},
    "augment": "none",
}
KINDS: dict[str, dict[str, Any]] = {
    "teacher": {**RECIPE},
    "student": SMALL,
    "student-distilled": {**SMALL, "distil": True},
    "student-augmented": {**SMALL, "augment": RECIPE["augment"]},
    "student-augmented-distilled": {
        **SMALL,
        "augment": RECIPE["augment"],
        "distil": True,
    },
}
# Augmented images again, with four times the steps: distillation on augmented images
# keeps improving for a long time (Beyer et al. 2022, "A good teacher is patient and
# consistent"). The rate is the better one on 10,000 held-out training images.
LONG = 4
KINDS |= {
    name.replace("augmented", "long"): {**settings, "lr": 1e-2}
    for name, settings in KINDS.items()
    if "augmented" in name
}


def distillation(
    run: Settings, table: str, out: pathlib.Path
) -> Iterator[dict[str, Any]]:
    """Test errors of 10,000: teacher; student alone and distilled, three ways."""
    data = MNIST.replace("{}", run.folder)
    for name in filter(run.wants, KINDS):

        def settings(seed: int, name: str = name) -> dict[str, Any]:
            home = out / f"mnist-pretrained-{seed}"
            own = {
                **KINDS[name],
                "from_": pretrained_as(
                    "mnist-masked", data, home, run.pretrain_steps, seed
                ),
                "data": data,
                "out": str(out / f"{table}-{name}-{seed}"),
            }
            if own.pop("distil", False):
                teacher = str(out / f"{table}-teacher-{seed}")
                own["methods"] = {"name": "distil", "teacher": teacher}
            return own

        times = LONG if "-long" in name else 1
        found, more = by_seed(run, settings, times)
        more["steps"] = times * run.steps
        errors = [100 * (100 - accuracy(results)) for results in found]
        yield row(table, name, "errors of 10,000", errors, **more)
