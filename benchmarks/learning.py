"""Tables of `benchmarks.transfer` beyond adaptation: few-shot episodes, task sequences.

omniglot-5w1s, omniglot-5w5s  characters in two by seed; 600 held-out episodes
split-mnist-task, -class      five tasks of two digits, from random weights
"""

import contextlib
import io
import pathlib
import time
import zipfile
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from benchmarks.results import row

OMNIGLOT = "omniglot/background_small1.zip"
EPISODES: dict[str, dict[str, Any]] = {
    "maml": {"meta": "maml", "inner_lr": 0.4, "test_inner_steps": 3},
    "maml-first-order": {
        "meta": "maml-first-order",
        "inner_lr": 0.4,
        "test_inner_steps": 3,
    },
    "anil": {"meta": "anil", "inner_lr": 0.4, "test_inner_steps": 3},
    "reptile": {"meta": "reptile", "inner_lr": 0.05, "inner_steps": 5},
    "prototypical": {"meta": "prototypical"},
}
SEQUENCES: dict[str, dict[str, Any]] = {
    "none": {},
    "ewc": {"continual_weight": 1e5},
    "lwf": {},
    "replay": {"memory": 20},
    "joint": {},
}
DIGITS = ("0,1", "2,3", "4,5", "6,7", "8,9")
TEST_CLASSES = 0.3


class Settings(Protocol):
    """What of `benchmarks.transfer.Transfer` these tables read."""

    folder: str
    seeds: int
    steps: int
    pretrain_steps: int


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


def _pretrained(images: np.ndarray, out: pathlib.Path, steps: int, seed: int) -> str:
    """The run folder of an encoder of these images, without their labels."""
    from pretrain.presets import preset_config
    from pretrain.program import pretrain

    folder = out.with_name(f"{out.name}-pretrained")
    data = out.with_name(f"{out.name}-unlabelled.npz")
    if not data.exists():
        np.savez(data, images=images)
    config = preset_config(
        "small-images",
        data=f"npz:{data}",
        out=str(folder),
        seed=seed,
        steps=steps,
        epochs=None,
        tensorboard=False,
    )
    with _quiet():
        pretrain(config)
    return str(folder)


@contextlib.contextmanager
def _quiet() -> Any:
    nothing = io.StringIO()
    with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        yield


def _finetuned(**settings: Any) -> tuple[dict[str, Any], float]:
    """(results, seconds) of one run."""
    from finetune.config import FinetuneConfig
    from finetune.program import finetune

    clock = time.perf_counter()
    with _quiet():
        # Scored at the ends of phases alone.
        every = settings["steps"]
        config = FinetuneConfig(tensorboard=False, eval_every=every, **settings)
        results = dict(finetune(config).results)
    return results, time.perf_counter() - clock


def few_shot(run: Settings, table: str, out: pathlib.Path) -> list[dict[str, Any]]:
    """Held-out accuracy by method; the encoder has seen training characters only."""
    from afterimage.data import open_data
    from finetune.episodes.sampler import split_classes

    shots = int(table[-2])
    path = omniglot(pathlib.Path(run.folder), out)
    images = open_data(f"npz:{path}").train
    scores: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in range(run.seeds):
        known, _ = split_classes(images, TEST_CLASSES, seed)
        pixels = known.gather(np.arange(len(known)))
        place = out / f"omniglot-{seed}"
        encoder = _pretrained(pixels, place, run.pretrain_steps, seed)
        for method, settings in EPISODES.items():
            results, spent = _finetuned(
                from_=encoder,
                data=f"npz:{path}",
                out=str(out / f"{table}-{method}-{seed}"),
                mode="full",
                seed=seed,
                steps=run.steps,
                shots=shots,
                test_classes=TEST_CLASSES,
                weight_decay=0.0,
                **settings,
            )
            seconds.setdefault(method, []).append(spent)
            print(f"{table}: {method} {seed}: {spent:.0f} s", flush=True)
            for name, found in results["episodes"]["accuracy"].items():
                if name == method or method == "prototypical":
                    scores.setdefault(name, []).append(100 * found["value"])
    metric = "accuracy on 600 held-out episodes, %"
    return [
        row(table, name, metric, values, **_cost(seconds.get(name, [])))
        for name, values in scores.items()
    ]


def task_sequence(run: Settings, table: str, out: pathlib.Path) -> list[dict[str, Any]]:
    """Average accuracy and forgetting by method; `steps` for all tasks together."""
    data = f"{run.folder}/mnist.npz"
    with np.load(data) as arrays:
        few = arrays["x_train"].reshape(-1, 28, 28, 1)[:256]
    # Mode scratch takes the architecture alone from it.
    encoder = _pretrained(few, out / "split-mnist", 1, 0)
    rows = []
    for method, settings in SEQUENCES.items():
        found, spent = [], []
        for seed in range(run.seeds):
            results, seconds = _finetuned(
                from_=encoder,
                data=f"npz:{data}",
                out=str(out / f"{table}-{method}-{seed}"),
                mode="scratch",
                scenario=table.rsplit("-", 1)[1],
                continual=method,
                sequence=DIGITS,
                seed=seed,
                steps=run.steps,
                augment="none",
                weight_decay=0.0,
                **settings,
            )
            found.append(results["continual"])
            spent.append(seconds)
            print(f"{table}: {method} {seed}: {seconds:.0f} s", flush=True)
        for name in ("average_accuracy", "forgetting"):
            values = [100 * one[name] for one in found if one[name] is not None]
            if values:
                metric = f"{name.replace('_', ' ')}, %"
                rows.append(row(table, method, metric, values, **_cost(spent)))
    return rows


def _cost(seconds: list[float]) -> dict[str, Any]:
    return {"seconds": round(float(np.mean(seconds)), 1)} if seconds else {}


Table = Callable[[Any, str, pathlib.Path], list[dict[str, Any]]]
TABLES: dict[str, tuple[Table, str]] = {
    "omniglot-5w1s": (few_shot, OMNIGLOT),
    "omniglot-5w5s": (few_shot, OMNIGLOT),
    "split-mnist-task": (task_sequence, "mnist.npz"),
    "split-mnist-class": (task_sequence, "mnist.npz"),
}
"""{table: (what measures it, the file it needs)}"""
