"""Preset `photos` beside the default settings, on the same few labelled photos.

`python -m benchmarks.photos --record` fine-tunes EfficientNet-Lite0 with published
weights (extra `[known]`) on 20 photos of each class of CIFAR-10 (JPEG), at 48 pixels,
once with each, for the same number of steps; tested on 1,000 other photos. The last
step is kept. Nothing was tuned.
"""

import argparse
import pathlib
import tempfile
import time
from typing import Any

from afterimage.finetune import FinetuneConfig, finetune
from afterimage.finetune.presets import preset_config
from benchmarks.continued import SIDE, TEST, import_known, photos
from benchmarks.results import markdown, row, write_results

LABELS = 20


def measure(folder: pathlib.Path, steps: int, seeds: int) -> list[dict[str, Any]]:
    """The rows of the table."""
    images, labels = photos(folder / "cifar10/train-0.zip", LABELS)
    others, truth = photos(folder / "cifar10/test.zip", TEST)
    data = {"x_train": images, "y_train": labels, "x_test": others, "y_test": truth}
    rows = []
    for name, make in (("default", FinetuneConfig), ("preset photos", _preset)):
        found, spent = [], []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as scratch:
                known = import_known(pathlib.Path(scratch) / "lite0", "batch")
                config = make(
                    from_=str(known),
                    out=f"{scratch}/run",
                    steps=steps,
                    seed=seed,
                    validation=0.0,
                    select="last",
                    eval_every=steps,
                    tensorboard=False,
                )
                began = time.process_time()
                results = finetune(config, data=data).results
                spent.append(time.process_time() - began)
            found.append(100 * results["test"]["accuracy"]["value"])
        cost = sum(spent) / seeds
        rows.append(row("photos", name, "test accuracy, %", found, seconds=cost))
    return rows


def _preset(**settings: Any) -> FinetuneConfig:
    return preset_config("photos", **settings)


def main() -> None:
    """Measures, prints a table and, with `--record`, keeps it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, default="../shared/data")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    rows = measure(given.folder, given.steps, given.seeds)
    notes = (
        "EfficientNet-Lite0 with ImageNet weights, BatchNorm learning; "
        f"{LABELS} photos of each of 10 classes of CIFAR-10 (JPEG) at {SIDE} pixels; "
        f"{given.steps} steps of 64. Seconds are processor seconds of the whole run."
    )
    title = "Preset photos"
    print(markdown(rows, title, notes))
    if given.record:
        write_results("photos", rows, title=title, notes=notes)


if __name__ == "__main__":
    main()
