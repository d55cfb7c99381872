"""Tables of `benchmarks.transfer`: what an encoder saves in labels, or in size.

few-labels          MNIST, one encoder a seed; rows MODE-LABELS
distillation-mnist  a teacher, and a quarter as wide a student without and with it
"""

import pathlib
from collections.abc import Iterator
from typing import Any

from benchmarks.programs import Settings, accuracy, by_seed, pretrained
from benchmarks.results import row
from finetune.presets import PRESETS

DATA = "mnist.npz"
LABELS = (10, 100, 1000)
MODES: dict[str, dict[str, Any]] = {
    "probe": {"mode": "probe"},
    "partial": {"mode": "partial", "unfreeze_stages": 1},
    "two-phase": {"mode": "two-phase"},
    "full": {"mode": "full"},
    "l2-sp": {"mode": "two-phase", "l2_sp": 0.01, "l2_head": 0.01, "weight_decay": 0.0},
    "scratch": {"mode": "scratch"},
    "pseudo-labels": {"mode": "two-phase", "unlabelled": "rest"},
    "pseudo-labels-scratch": {"mode": "scratch", "unlabelled": "rest"},
}
STUDENT_WIDTH = 0.25


ROWS = tuple(f"{mode}-{labels}" for labels in LABELS for mode in MODES)


def few_labels(
    run: Settings, table: str, out: pathlib.Path
) -> Iterator[dict[str, Any]]:
    """Test accuracy by mode and number of labels; the last step is kept."""
    for name in filter(run.wants, ROWS):
        mode, _, labels = name.rpartition("-")

        def settings(
            seed: int, name: str = name, mode: str = mode, labels: str = labels
        ) -> dict[str, Any]:
            fewer = {"labels": int(labels), "eval_every": run.steps}
            return _common(run, table, name, out, seed) | fewer | MODES[mode]

        found, more = by_seed(run, settings)
        scores = [accuracy(results) for results in found]
        yield row(table, name, "test accuracy, %", scores, **more)


RECIPE = PRESETS["mnist-masked"].settings
SMALL: dict[str, Any] = {**RECIPE, "mode": "scratch", "width": STUDENT_WIDTH}
KINDS: dict[str, dict[str, Any]] = {
    "teacher": {**RECIPE},
    "student": SMALL,
    "student-distilled": {**SMALL, "distil": ("logits",)},
}


def distillation(
    run: Settings, table: str, out: pathlib.Path
) -> Iterator[dict[str, Any]]:
    """Test errors of 10,000: the teacher, the student alone, the student taught."""
    for name in filter(run.wants, KINDS):

        def settings(seed: int, name: str = name) -> dict[str, Any]:
            own = _common(run, table, name, out, seed) | KINDS[name]
            if "distil" in own:
                own["teacher"] = str(out / f"{table}-teacher-{seed}")
            return own

        found, more = by_seed(run, settings)
        errors = [100 * (100 - accuracy(results)) for results in found]
        yield row(table, name, "errors of 10,000", errors, **more)


def _common(
    run: Settings, table: str, name: str, out: pathlib.Path, seed: int
) -> dict[str, Any]:
    """Encoder, data and run folder of one run."""
    data = f"npz:{run.folder}/{DATA}"
    home = out / f"mnist-pretrained-{seed}"
    return {
        "from_": pretrained(data, home, run.pretrain_steps, seed),
        "data": data,
        "out": str(out / f"{table}-{name}-{seed}"),
    }
