"""The table `label-free` of `benchmarks.strangers`: which criterion ranks encoders?

A short run of every objective. For at most four checkpoints of each, every criterion of
`afterimage.evaluation.criteria` on training images, and accuracy on test images. Then
Spearman's rank correlation of the two, and what keeping a run's best step by the
criterion gains over its last step.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from afterimage.evaluation.criteria import CRITERIA
from afterimage.runs import write_json
from afterimage.training.batches import spaced
from benchmarks.programs import quietly
from benchmarks.results import row
from benchmarks.strangers import OBJECTIVES, Cell, Strangers, available

_IMAGES = 1_000  # for criteria, and to train and to score probes
_STEPS = 4  # checkpoints of a run, evenly spaced: the first, the last and two between
_FEWEST_STEPS = 3
"""Checkpoints of a run from which a best one is chosen."""
_SHORT = (
    *("--steps", "120", "--eval-every", "40", "--batch-size", "48"),
    *("--image-size", "32", "--augment", "photos", "--normalise", "image"),
    *("--lr", "2e-3", "--weight-decay", "0.05", "--clip", "5"),
)
_ACCURACY = ("kNN", "ridge")


class Short(Cell):
    """A short run of an objective; its steps are counted, not timed."""

    @property
    def run(self) -> pathlib.Path:
        """The run folder."""
        folder = pathlib.Path(self.config.out) / "runs" / "short"
        return folder / self.set_name / f"{self.row}-{self.seed}"

    @property
    def command(self) -> list[str]:
        """The command as typed."""
        flags = OBJECTIVES[self.row] or ("--objective", "simclr")
        place = ("--out", str(self.run), "--seed", str(self.seed))
        return ["afterimage", "pretrain", self.data.unlabelled, *place, *flags, *_SHORT]


def run_criteria(config: Strangers) -> list[dict[str, Any]]:
    """Runs and measures what is missing; rows of correlations and gains."""
    by_set: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for set_name, data in available(config):
        by_set[set_name] = {}
        for name in OBJECTIVES:
            cell = Short(config, data, set_name, name, config.first_seed)
            if not (cell.run / "encoder").exists():
                cell.run.parent.mkdir(parents=True, exist_ok=True)
                cell.pretrain()
            found = quietly(_measured, cell.run, data.labelled)
            by_set[set_name][name] = found
            print(f"{set_name}: {name}, {len(found)} encoders", flush=True)
    return list(_rows(by_set))


def _measured(run: pathlib.Path, data: str) -> dict[str, dict[str, float]]:
    """{step: criteria and accuracies} of checkpoints of a run; stored beside it."""
    file = run.with_name(f"{run.name}-criteria.json")
    stored = json.loads(file.read_text()) if file.exists() else {}
    there = sorted(run.glob("checkpoints/*/encoder"))
    for folder in [there[n] for n in spaced(len(there), _STEPS)]:
        step = folder.parent.name
        if step not in stored:
            stored[step] = measure(folder, data)
            write_json(file, stored)
    return stored


def measure(folder: pathlib.Path, data: str) -> dict[str, float]:
    """Every criterion and accuracy of an encoder, on images of this data."""
    from afterimage.data import open_data
    from afterimage.data.views import suited_augment, two_views
    from afterimage.encoder import load_encoder
    from afterimage.evaluation import fit_ridge, knn_accuracy, label_free_report
    from afterimage.training.batches import subsample

    encoder = load_encoder(folder)
    splits = open_data(data, image_size=encoder.preprocessing.image_size[0])
    assert splits.test is not None
    train, test = (subsample(part, _IMAGES) for part in (splits.train, splits.test))
    pixels, held = (part.gather(np.arange(len(part))) for part in (train, test))
    # The same views for every encoder of a set.
    views = two_views(pixels, suited_augment(pixels))
    x, first, second, z = (encoder.features(i) for i in (pixels, *views, held))
    known, truth = (np.asarray(part.labels) for part in (train, test))
    return label_free_report(x, first, second) | {
        "kNN": 100 * knn_accuracy(x, known, z, truth),
        "ridge": 100 * float(np.mean(fit_ridge(x, known).predict(z) == truth)),
    }


def _rows(
    by_set: dict[str, dict[str, dict[str, dict[str, float]]]],
) -> Iterator[dict[str, Any]]:
    from scipy.stats import spearmanr

    for criterion in CRITERIA:
        for accuracy in _ACCURACY:
            rhos, gains = [], []
            for set_name, runs in by_set.items():
                found = [values for run in runs.values() for values in run.values()]
                pairs = np.array([(v[criterion], v[accuracy]) for v in found], float)
                pairs = pairs[np.isfinite(pairs).all(1)] if len(pairs) else pairs
                if len(pairs) < _FEWEST_STEPS or np.ptp(pairs, axis=0).min() == 0:
                    continue
                rhos.append(float(spearmanr(*pairs.T).statistic))
                metric = f"Spearman's ρ with {accuracy}, {set_name}"
                yield row("label-free", criterion, metric, rhos[-1], n=len(pairs))
                gains += [_gain(run, criterion, accuracy) for run in runs.values()]
            gains = [gain for gain in gains if gain is not None]
            if rhos:
                metric = f"mean over sets of ρ with {accuracy}"
                yield row("label-free", criterion, metric, rhos)
            if gains:
                metric = f"{accuracy} at the run's best step minus the last, points"
                yield row("label-free", criterion, metric, gains)


def _gain(
    run: dict[str, dict[str, float]], criterion: str, accuracy: str
) -> float | None:
    """Accuracy at the step that the criterion likes most, minus that at the last."""
    steps = sorted(run, key=int)
    values = [run[step][criterion] for step in steps]
    if len(steps) < _FEWEST_STEPS or not np.isfinite(np.array(values, float)).all():
        return None
    best = steps[int(np.argmax(values))]
    return run[best][accuracy] - run[steps[-1]][accuracy]
