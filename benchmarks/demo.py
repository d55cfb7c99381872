"""The demo: what an encoder that saw no labels is worth, on one page.

`python -m benchmarks.demo --out runs/demo` (or `make demo`) takes about three minutes
on two cores. It pretrains on 2,679 letters and digits in 57 handwriting fonts, without
labels, and then has five labels for each of 47 characters: for a linear classifier on
the features and on three baselines, and for training the network, from the encoder and
from random weights. The characters of other fonts are classified, searched and compared
with the training images. Stopped, the same command continues. `--record` also writes
the table to benchmarks/results/demo.json.
"""

import argparse
import csv
import dataclasses
import pathlib
import sys
import time
from typing import Any

import numpy as np

from afterimage import runtime
from afterimage.commands import exit_code
from afterimage.data import ImageSet, choose_labels, open_data
from benchmarks import demo_page
from benchmarks.programs import quietly
from benchmarks.results import row, write_results

DATA = "characters"
PER_CLASS, _STEPS = 5, 300
FEATURES = {
    "raw pixels": "784 grey values",
    "random weights": "the encoder before training",
    "HOG": "gradients, no training",
    "pretrained": "the vector after pretraining, joined with patches and HOG",
}
NETWORKS = {"scratch": "from random weights", "fine-tuned": "from the encoder"}
_SECONDS = {
    "pretraining": 75,
    "features": 35,
    "scratch": 30,
    "fine-tuned": 30,
    "new images": 10,
}
"""About how long each part takes on two cores."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Pretrain, compare, predict; then one page."""

    out: str = "runs/demo"
    """Folder for the runs and the page."""
    steps: int = 340
    """Steps of pretraining: the same figures on every machine."""
    seed: int = 0
    """Seed of the runs and of the choice of labels."""
    record: bool = False
    """Write the table to benchmarks/results/demo.json."""

    @property
    def folder(self) -> pathlib.Path:
        """The folder of everything."""
        return pathlib.Path(self.out)


class Clock:
    """Says what comes next, and how long the rest takes at the speed so far."""

    def __init__(self) -> None:
        self._left = dict(_SECONDS)
        self._total, self._slower = len(self._left), 1.0
        self._began = self._start = time.perf_counter()
        self._planned = 0.0

    def next(self, what: str) -> None:
        """Print a line for the part that begins now."""
        now = time.perf_counter()
        if self._planned:
            self._slower = max(0.2, (now - self._start) / self._planned)
        left = self._slower * sum(self._left.values())
        seconds = self._left.pop(next(iter(self._left)))
        self._planned = float(seconds)
        self._start = now
        number = self._total - len(self._left)
        said = f"{int(left) // 60}:{int(left) % 60:02d}"
        print(f"\n[{number}/{self._total}] {what} (about {said} left)", flush=True)

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return time.perf_counter() - self._began


def _pretrain(demo: Demo, train: ImageSet) -> pathlib.Path:
    """The run of the encoder; it is given pixels only."""
    from afterimage.pretrain import pretrain, recommend

    out = demo.folder / "encoder"
    images = train.gather(np.arange(len(train)))
    config = recommend(images, out=str(out), seed=demo.seed, steps=demo.steps)
    pretrain(dataclasses.replace(config, tensorboard=False), data=images)
    return out


def vectors_of(encoder: Any, seed: int) -> dict[str, Any]:
    """{row of FEATURES: function of images}."""
    from afterimage.evaluation import pixel_vectors
    from afterimage.models.hog import hog_vectors

    return {
        "raw pixels": pixel_vectors,
        "random weights": encoder.untrained(seed).features,
        "HOG": hog_vectors,
        "pretrained": encoder.features,
    }


def probe_accuracies(
    demo: Demo, encoder: Any, train: ImageSet, test: ImageSet
) -> dict[str, float]:
    """{row of FEATURES: test accuracy of a linear classifier, %}."""
    from afterimage.evaluation.logistic import fit_logistic
    from afterimage.evaluation.representations import folds_of

    assert train.labels is not None
    images, new = (one.gather(np.arange(len(one))) for one in (train, test))
    rows = choose_labels(train, per_class=PER_CLASS, seed=demo.seed)
    labels = train.labels[rows]
    folds = folds_of(labels, seed=demo.seed)
    found: dict[str, float] = {}
    for name, function in vectors_of(encoder, demo.seed).items():
        vectors, others = function(images), function(new)
        probe = fit_logistic(vectors[rows], labels, folds=folds)
        found[name] = 100 * float(np.mean(probe.predict(others) == test.labels))
        print(f"  {name:14}  {found[name]:5.1f} %  {FEATURES[name]}", flush=True)
    return found


def _finetune(demo: Demo, encoder: pathlib.Path, name: str) -> float:
    """Test accuracy, %, of the whole network, trained with the same labels."""
    from afterimage.finetune import FinetuneConfig, finetune

    config = FinetuneConfig(
        from_=str(encoder),
        data=DATA,
        out=str(demo.folder / name),
        mode="scratch" if name == "scratch" else "full",  # pyright: ignore[reportArgumentType]
        labels_per_class=PER_CLASS,
        steps=_STEPS,
        eval_every=_STEPS,
        log_every=100,
        seed=demo.seed,
        tensorboard=False,
    )
    result = quietly(finetune, config).results["test"]["accuracy"]["value"]
    print(f"  {name:14}  {100 * result:5.1f} %  {NETWORKS[name]}", flush=True)
    return 100 * result


def _predict(demo: Demo, test: ImageSet) -> list[dict[str, str]]:
    """The rows of `afterimage predict` for the test images and the odd ones."""
    from afterimage.evaluation.configs import PredictConfig
    from afterimage.predict import predict

    folder, out = demo.folder / "new", demo.folder / "predictions.csv"
    demo_page.write_new(folder, test)
    out.unlink(missing_ok=True)
    config = PredictConfig(
        from_=str(demo.folder / "fine-tuned"), data=(str(folder),), out=str(out)
    )
    said = quietly(predict, config).summary()
    print("\n".join(f"  {line}" for line in said.splitlines() if "," not in line[-60:]))
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def run(demo: Demo) -> None:
    """Runs everything, says what it does; then prints the table and the page's path."""
    from afterimage.encoder import load_encoder

    runtime.start()
    splits = open_data(DATA)
    train, test = splits.train, splits.test
    assert test is not None
    clock = Clock()
    count = f"{len(train):,} letters and digits in 57 fonts"
    clock.next(f"pretraining on {count}, without labels")
    folder = _pretrain(demo, train)
    encoder = load_encoder(folder)
    what = f"{PER_CLASS} labels for each of 47 characters"
    clock.next(f"{what}: a linear classifier on four kinds of features")
    accuracy = probe_accuracies(demo, encoder, train, test)
    for name in NETWORKS:
        clock.next(f"the same labels: training the network {NETWORKS[name]}")
        accuracy[name] = _finetune(demo, folder, name)
    clock.next("characters of 38 other fonts, and four odd images")
    predictions = _predict(demo, test)
    page = demo_page.write(demo.folder, encoder, train, test, accuracy, predictions)
    print(f"\n{table(accuracy)}\n\nDone in {clock.seconds:.0f} s. Open {page}")
    if demo.record:
        rows = [
            row(f"{DATA}-{PER_CLASS}", name, "test accuracy, %", value)
            for name, value in accuracy.items()
        ]
        write_results("demo", rows, title=f"The demo: {what}")


def table(accuracy: dict[str, float]) -> str:
    """The accuracies, for a terminal."""
    lines = [f"Test accuracy with {PER_CLASS} labels for each of 47 characters:"]
    for name, value in accuracy.items():
        kind = "features" if name in FEATURES else "network"
        bar = "█" * round(value / 2.5)
        lines.append(f"  {name:14}  {kind:8}  {value:5.1f} %  {bar}")
    return "\n".join(lines)


def _parsed() -> Demo:
    """From argparse: the demo needs nothing that the package does not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo")
    parser.add_argument("--out", default=Demo.out, help="folder for runs and the page")
    parser.add_argument("--steps", type=int, default=Demo.steps, help="to pretrain")
    parser.add_argument("--seed", type=int, default=Demo.seed)
    parser.add_argument("--record", action="store_true", help="write the table to disk")
    return Demo(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(_parsed())))
