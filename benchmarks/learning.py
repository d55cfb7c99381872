"""Tables of `benchmarks.transfer` beyond adaptation: few-shot episodes, task sequences.

omniglot-5w1s, omniglot-5w5s  characters split in two by seed; 600 held-out episodes
split-mnist-task, -class      five tasks of two digits, from random weights
"""

import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from afterimage.finetune.presets import PRESETS
from benchmarks.programs import Settings, by_seed, pretrained_as
from benchmarks.results import row

OMNIGLOT = "omniglot/background_small1.zip"
_EPISODES = (*("maml", "maml-tied", "anil", "proto-maml", "prototypical", "reptile"),)
FIRST_ORDER = {"methods": ({"name": "maml", "first_order": True},)}
EPISODES: dict[str, dict[str, Any]] = {
    **{name: dict(PRESETS[name].settings) for name in _EPISODES},
    "maml-first-order": {**PRESETS["maml"].settings, **FIRST_ORDER},
}
# These rates were better with five shots and worse with one (finetune/presets).
_FIVE_SHOTS: dict[str, dict[str, Any]] = {
    "maml-tied": {"methods": ({"name": "maml", "tied_head": True, "inner_lr": 0.03},)},
    "prototypical": {"lr": 3e-3},
}
# The weight of EWC (its default) and the memory were chosen on 6,000 held-out training
# images, seed 7, 500 steps.
SEQUENCES: dict[str, dict[str, Any]] = {
    "none": {},
    "ewc": {"methods": "ewc"},
    "lwf": {"methods": "lwf"},
    "replay": {"methods": {"name": "replay", "memory": 100}},
    "joint": {"joint": True},
}
DIGITS = ("0,1", "2,3", "4,5", "6,7", "8,9")
TEST_CLASSES = 0.3


def omniglot(folder: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """An .npz of the characters at 28 px, white on black, label ALPHABET/CHARACTER."""
    import cv2

    path = out / "omniglot.npz"
    if path.exists():
        return path
    images, labels = [], []
    with zipfile.ZipFile(folder / OMNIGLOT) as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".png")):
            raw = np.frombuffer(archive.read(name), np.uint8)
            image = cv2.imdecode(raw, cv2.IMREAD_GRAYSCALE)
            assert image is not None, name
            small = cv2.resize(255 - image, (28, 28), interpolation=cv2.INTER_AREA)
            images.append(small)
            labels.append("/".join(name.split("/")[1:3]))
    np.savez(path, images=np.stack(images)[..., None], labels=np.array(labels))
    return path


def few_shot(run: Settings, table: str, out: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Held-out accuracy by method; the encoder has seen training characters only.

    The first method requested also gives the rows of the encoder before training: its
    nearest neighbour and nearest class mean.
    """
    path, shots = omniglot(pathlib.Path(run.folder), out), int(table[-2])
    methods = [name for name in EPISODES if run.wants(name)]
    for method in methods:

        def settings(seed: int, method: str = method) -> dict[str, Any]:
            return {
                **EPISODES[method],
                **(_FIVE_SHOTS.get(method, {}) if shots == 5 else {}),
                "from_": _of_characters(path, out, run.pretrain_steps, seed),
                "data": f"npz:{path}",
                "out": str(out / f"{table}-{method}-{seed}"),
                "eval_every": run.steps,
                "task": {
                    "name": "episodes",
                    "shots": shots,
                    "test_classes": TEST_CLASSES,
                },
            }

        found, spent = by_seed(run, settings)
        scores: dict[str, list[float]] = {}
        for results in found:
            own = results["episodes"]["method"]
            for name, figure in results["episodes"]["accuracy"].items():
                if name == own or method == methods[0]:
                    shown = method if name == own else name
                    scores.setdefault(shown, []).append(100 * figure["value"])
        for name, values in scores.items():
            metric = "accuracy on 600 held-out episodes, %"
            yield row(table, name, metric, values, **(spent if name == method else {}))


def _of_characters(path: pathlib.Path, out: pathlib.Path, steps: int, seed: int) -> str:
    """The run folder of an encoder pretrained on the training characters."""
    from afterimage.data import open_data
    from afterimage.finetune.tasks._sampler import split_classes

    data = out / f"omniglot-{seed}-unlabelled.npz"
    if not data.exists():
        known, _ = split_classes(open_data(f"npz:{path}").train, TEST_CLASSES, seed)
        np.savez(data, images=known.gather(np.arange(len(known))))
    return pretrained_as(
        "small-images", f"npz:{data}", out / f"omniglot-{seed}-pretrained", steps, seed
    )


def task_sequence(
    run: Settings, table: str, out: pathlib.Path
) -> Iterator[dict[str, Any]]:
    """Average accuracy and forgetting by method; `steps` for all tasks together."""
    data, few = f"{run.folder}/mnist.npz", out / "split-mnist-few.npz"
    with np.load(data) as arrays:
        np.savez(few, images=arrays["x_train"].reshape(-1, 28, 28, 1)[:256])
    # Mode scratch takes only the architecture from it.
    encoder = pretrained_as(
        "small-images", f"npz:{few}", out / "split-mnist-encoder", 1, 0
    )
    for method in filter(run.wants, SEQUENCES):

        def settings(seed: int, method: str = method) -> dict[str, Any]:
            own = dict(SEQUENCES[method])
            return {
                "from_": encoder,
                "data": f"npz:{data}",
                "out": str(out / f"{table}-{method}-{seed}"),
                "mode": "scratch",
                "task": {
                    "name": "continual",
                    "scenario": table.rsplit("-", 1)[1],
                    "sequence": DIGITS,
                    "joint": own.pop("joint", False),
                },
                "eval_every": run.steps,
                "augment": "none",
                "weight_decay": 0.0,
                **own,
            }

        found, spent = by_seed(run, settings)
        for name in ("average_accuracy", "forgetting"):
            each = [results["continual"][name] for results in found]
            values = [100 * value for value in each if value is not None]
            if values:
                metric = f"{name.replace('_', ' ')}, %"
                yield row(table, method, metric, values, **spent)
