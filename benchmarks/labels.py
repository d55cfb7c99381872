"""Tables of `benchmarks.transfer`: what an encoder saves in labels, or in size.

few-labels          MNIST, one encoder a seed; rows MODE-LABELS
distillation-mnist  a teacher, and a quarter as wide a student without and with it
"""

import pathlib
from collections.abc import Iterator
from typing import Any

from benchmarks.programs import Settings, accuracy, cost, finetuned, pretrained
from benchmarks.results import row

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


def _encoder(run: Settings, out: pathlib.Path, seed: int, **settings: Any) -> str:
    home = out / f"mnist-pretrained-{seed}"
    data = f"npz:{run.folder}/{DATA}"
    return pretrained(data, home, run.pretrain_steps, seed, **settings)


def few_labels(
    run: Settings, table: str, out: pathlib.Path
) -> Iterator[dict[str, Any]]:
    """Test accuracy by mode and number of labels; the last step is kept."""
    for labels in LABELS:
        for mode, settings in MODES.items():
            name = f"{mode}-{labels}"
            if not run.wants(name):
                continue
            scores, seconds, rules = [], [], set()
            for seed in range(run.seeds):
                found, spent = finetuned(
                    from_=_encoder(run, out, seed),
                    data=f"npz:{run.folder}/{DATA}",
                    out=str(out / f"{table}-{name}-{seed}"),
                    seed=seed,
                    steps=run.steps,
                    eval_every=run.steps,
                    labels=labels,
                    **settings,
                )
                scores.append(accuracy(found))
                seconds.append(spent)
                rules.add(found["selection"]["rule"])
            more = {"selection": "; ".join(sorted(rules)), **cost(seconds)}
            yield row(table, name, "test accuracy, %", scores, **more)


def distillation(
    run: Settings, table: str, out: pathlib.Path
) -> Iterator[dict[str, Any]]:
    """Test errors of 10,000: the teacher, the student alone, the student taught."""
    small = {"mode": "scratch", "width": STUDENT_WIDTH}
    kinds: dict[str, dict[str, Any]] = {
        "teacher": {"mode": "full"},
        "student": small,
        "student-distilled": {**small, "distil": ("logits",)},
    }
    errors: dict[str, list[float]] = {}
    for name, settings in kinds.items():
        if not run.wants(name):
            continue
        seconds = []
        for seed in range(run.seeds):
            if "distil" in settings:
                teacher = str(out / f"{table}-teacher-{seed}")
                settings = {**settings, "teacher": teacher}
            found, spent = finetuned(
                from_=_encoder(run, out, seed),
                data=f"npz:{run.folder}/{DATA}",
                out=str(out / f"{table}-{name}-{seed}"),
                seed=seed,
                steps=run.steps,
                **settings,
            )
            errors.setdefault(name, []).append(100 * (100 - accuracy(found)))
            seconds.append(spent)
        yield row(table, name, "errors of 10,000", errors[name], **cost(seconds))
