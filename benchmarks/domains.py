"""Tables of `benchmarks.transfer`: labels in one domain, none in another.

mnist-usps, usps-mnist  10,000 labelled MNIST digits to USPS, and back
mnist-usps-shift        the same, with digits drawn at one size, preset adapt's rate and
                        an encoder pretrained by denoising
mnist-coloured          to digits blended over photos (made here in the way of MNIST-M)

An encoder is pretrained on the training images of both domains, without labels; then
every method is fine-tuned on the source's labels together with the target's images, and
scored once on the target's test split. source-only never sees the target; target-only
uses the target's labels. `best` is the method that `afterimage select --encoder`
chooses from the target's training images, without labels, and their neighbours in the
pretrained encoder's features; if `--select` names a label-free rule, `best` is the best
by that rule.
"""

import json
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from afterimage.finetune.presets import PRESETS
from afterimage.finetune.selection import LABEL_FREE
from benchmarks.programs import Settings, accuracy, by_seed, pretrained_as, quietly
from benchmarks.results import row

TABLES = {
    "mnist-usps": ("mnist", "usps"),
    "mnist-usps-shift": ("mnist", "usps"),
    "usps-mnist": ("usps", "mnist"),
    "mnist-coloured": ("mnist", "coloured"),
}
# The pretraining preset of a table's encoder, if it is not small-images.
PRESET = {"mnist-usps": "mnist-masked"}
PHOTOS = {"train": "cifar10/train-0.zip", "test": "cifar10/test.zip"}
_SURE = {
    "name": "pseudo-labels",
    "images": "target",
    "distribution_alignment": True,
}
_RUNNING = {**_SURE, "alignment_momentum": 0.99}
_COUNTED = {**_RUNNING, "alignment_frequencies": "predicted"}
_INK = {"name": "compose", "kind": "ink"}
_CDAN_E = {"name": "cdan", "entropy": True}


def _methods(*methods: str | dict[str, Any]) -> dict[str, Any]:
    return {"methods": methods}


METHODS: dict[str, dict[str, Any]] = {
    "source-only": {},
    "target-only": {},
    "dann": _methods("dann"),
    "dann, weight 0.1": _methods({"name": "dann", "weight": 0.1}),
    "cdan": _methods("cdan"),
    "cdan-e": _methods(_CDAN_E),
    "mmd": _methods("mmd"),
    "jmmd": _methods("jmmd"),
    "jmmd, weight 0.1": _methods({"name": "jmmd", "weight": 0.1}),
    "coral": _methods("coral"),
    "jdot": _methods("jdot"),
    "jdot, mass 0.5": _methods({"name": "jdot", "mass": 0.5}),
    "jdot, whole batches": _methods({"name": "jdot", "mass": 1.0}),
    "pseudo-labels": _methods(_SURE),
    "pseudo-labels, running mean": _methods(_RUNNING),
    "pseudo-labels, counted": _methods(_COUNTED),
    "cdan-e + pseudo-labels, counted": _methods(_CDAN_E, _COUNTED),
    "mmd + pseudo-labels": _methods("mmd", _SURE),
    "cdan-e + pseudo-labels": _methods(_CDAN_E, _SURE),
    "cdan-e + pseudo-labels, running mean": _methods(_CDAN_E, _RUNNING),
    "ink": _methods(_INK),
    "ink + pseudo-labels": _methods({**_SURE, "confidence": 0.8}, _INK),
    "ink + pseudo-labels, from scratch": {
        **_methods(_INK, {**_SURE, "confidence": 0.8}),
        "mode": "scratch",
    },
    "density-ratio": _methods("density-ratio"),
    "cdan-e + l2-sp": {
        **_methods({"name": "l2-sp", "weight": 0.01, "head": 0.01}, _CDAN_E),
        "weight_decay": 0.0,
        "layer_decay": 0.75,
    },
}
METRIC = "target test accuracy, %"
_LABELLED = {"mnist": 10_000, "usps": None}
_MOST = 20_000


def needed(table: str) -> set[str]:
    """The files below `--folder` that the table reads."""
    files = {f"{name}.npz" for name in TABLES[table] if name != "coloured"}
    return files | set(PHOTOS.values() if "coloured" in TABLES[table] else ())


def coloured(folder: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """An .npz of MNIST's digits over photos: |patch - digit| per channel, 28x28x3.

    Each digit is blended with a random 28x28 patch of a random CIFAR-10 photo: training
    digits with training photos, test digits with test photos (Ganin et al. 2016,
    MNIST-M, which takes its patches from BSDS500). Seed 0.
    """
    path, rng = out / "coloured.npz", np.random.default_rng(0)
    if path.exists():
        return path
    arrays = {}
    with np.load(folder / "mnist.npz") as mnist:
        for split, archive in PHOTOS.items():
            digits = mnist[f"x_{split}"].reshape(-1, 28, 28, 1).astype(np.int16)
            photos = _photos(folder / archive)
            which = rng.integers(0, len(photos), len(digits))
            corners = rng.integers(0, photos.shape[1] - 28 + 1, (len(digits), 2))
            blended = np.empty((len(digits), 28, 28, 3), np.uint8)
            for i, (photo, (top, left)) in enumerate(zip(which, corners)):
                patch = photos[photo, top : top + 28, left : left + 28]
                blended[i] = np.abs(patch - digits[i])
            arrays |= {f"x_{split}": blended, f"y_{split}": mnist[f"y_{split}"]}
    np.savez(path, **arrays)
    return path


def _photos(archive: pathlib.Path) -> np.ndarray:
    import cv2

    photos = []
    with zipfile.ZipFile(archive) as files:
        for name in sorted(n for n in files.namelist() if n.endswith(".jpg")):
            raw = np.frombuffer(files.read(name), np.uint8)
            image = cv2.imdecode(raw, cv2.IMREAD_COLOR)
            assert image is not None, name
            photos.append(image[:, :, ::-1])
    return np.stack(photos)


def _domain(name: str, folder: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    return coloured(folder, out) if name == "coloured" else folder / f"{name}.npz"


def _joined(table: str, folder: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """An .npz of both domains' training images at 28 pixels, for pretraining."""
    import cv2

    names = sorted(TABLES[table])
    path = out / f"{'-'.join(names)}.npz"
    if path.exists():
        return path
    both = []
    for name in names:
        with np.load(_domain(name, folder, out)) as arrays:
            images = arrays["x_train"]
        side = 16 if name == "usps" else 28
        images = images.reshape(len(images), side, side, -1)
        if side != 28:
            images = np.stack([cv2.resize(image, (28, 28)) for image in images])
            images = images[..., None]
        both.append(images)
    channels = max(images.shape[-1] for images in both)
    both = [np.broadcast_to(x, (*x.shape[:3], channels)) for x in both]
    np.savez(path, images=np.concatenate(both))
    return path


def _settings(run: Settings, table: str, method: str, out: pathlib.Path) -> dict:
    """The data and fine-tuning settings of one row."""
    source, target = (
        f"npz:{_domain(name, pathlib.Path(run.folder), out)}" for name in TABLES[table]
    )
    # Chosen on 1,500 held-out training images of USPS, seed 7, as was the alignment of
    # pseudo-labels.
    recipe = PRESETS["mnist-masked"].settings
    if table.endswith("-shift"):
        recipe = {"mode": "two-phase", "augment": "shift"}
    elif table == "mnist-coloured":
        ink = PRESETS["adapt-ink"].settings
        recipe = {name: ink[name] for name in ("mode", "lr", "ema", "augment")}
    common = {**recipe, "weight_decay": 0.01, **METHODS[method]}
    if method == "target-only":
        return {"data": target, **common}
    labels = _LABELLED[TABLES[table][0]]
    domain = {"target": target, "select": run.select, "labels": labels}
    return {"data": source, **domain, **common}


def _source_accuracy(
    run: Settings, table: str, home: pathlib.Path, results: dict[str, Any]
) -> float:
    """Accuracy on source images not used for training.

    Up to 20,000 evenly spaced images of the training split that were not used for
    validation either; if the runs use all of them, their validation images.
    """
    from afterimage.evaluation.configs import EvaluateConfig
    from afterimage.finetune.evaluate import evaluate

    source = TABLES[table][0]
    if _LABELLED[source] is None:
        return results["validation"]["accuracy"]["value"]
    path = home.parent / f"{source}-rest-{results['seed']}.npz"
    if not path.exists():
        chosen = json.loads((home / "labels.json").read_text())
        used = [chosen[part].values() for part in ("train", "validation")]
        used = {int(i) for classes in used for ids in classes for i in ids}
        data = _domain(source, pathlib.Path(run.folder), home.parent)
        with np.load(data) as arrays:
            images, labels = arrays["x_train"], arrays["y_train"]
        rest = np.array(sorted(set(range(len(labels))) - used))
        rest = rest[:: max(1, len(rest) // _MOST)][:_MOST]
        np.savez(path, images=images[rest], labels=labels[rest])
    found = evaluate(EvaluateConfig(from_=str(home), data=f"npz:{path}"))
    return found["accuracy"]["value"]


def measure(run: Settings, table: str, out: pathlib.Path) -> Iterator[dict[str, Any]]:
    """One row per method, and `best`, chosen without target labels."""
    known = {}
    data = f"npz:{_joined(table, pathlib.Path(run.folder), out)}"
    preset = PRESET.get(table, "small-images")
    for method in filter(run.wants, METHODS):

        def settings(seed: int, method: str = method) -> dict[str, Any]:
            home = _encoder(out, table, seed)
            return {
                "from_": pretrained_as(preset, data, home, run.pretrain_steps, seed),
                "out": str(_home(out, table, method, seed)),
                **_settings(run, table, method, out),
            }

        found, more = by_seed(run, settings)
        scores = [accuracy(results) for results in found]
        if method == "target-only":
            yield row(table, method, METRIC, scores, **more)
            continue
        told = [
            100 * _source_accuracy(run, table, _home(out, table, method, r["seed"]), r)
            for r in found
        ]
        more["source_accuracy"] = round(float(np.mean(told)), 2)
        yield row(table, method, METRIC, scores, **more)
        known[method] = (found, scores, more)
    if known:
        merits = _merits(run, table, out, known)
        best = max(merits, key=lambda name: merits[name])
        _, scores, more = known[best]
        if len(merits) > 1:
            more["merits"] = {name: round(value, 4) for name, value in merits.items()}
        why = "predictions most alike between neighbours in the pretrained features"
        if run.select in LABEL_FREE:
            why = f"{LABEL_FREE[run.select][1]} of the target predictions"
        yield row(table, "best", METRIC, scores, **more, method=f"{best}: {why}")


def _merits(
    run: Settings, table: str, out: pathlib.Path, known: dict[str, Any]
) -> dict[str, float]:
    """The figure that chooses `best`, larger is better: the mean over the seeds."""
    if run.select not in LABEL_FREE:
        return _neighbours(run, table, out, list(known))
    direction, _ = LABEL_FREE[run.select]
    sign = 1 if direction == "max" else -1
    return {
        method: sign
        * float(np.mean([r["label_free"][f"target_{run.select}"] for r in found]))
        for method, (found, *_) in known.items()
    }


def _neighbours(
    run: Settings, table: str, out: pathlib.Path, methods: list[str]
) -> dict[str, float]:
    """For each method, the mutual information of neighbouring target images, nats."""
    from afterimage.finetune.select import select
    from afterimage.finetune.select_config import SelectConfig

    if len(methods) < 2:
        return dict.fromkeys(methods, 0.0)
    told: dict[str, list[float]] = {method: [] for method in methods}
    target = _domain(TABLES[table][1], pathlib.Path(run.folder), out)
    for seed in range(run.seeds):
        runs = {str(_home(out, table, method, seed)): method for method in methods}
        given = SelectConfig(
            from_=tuple(runs),
            data=f"npz:{target}",
            encoder=str(_encoder(out, table, seed)),
        )
        for one in quietly(select, given)["runs"]:
            told[runs[one["run"]]].append(one["neighbours"])
    return {method: float(np.mean(values)) for method, values in told.items()}


def _home(out: pathlib.Path, table: str, method: str, seed: int) -> pathlib.Path:
    return out / f"{table}-{method.replace(' ', '')}-{seed}"


def _encoder(out: pathlib.Path, table: str, seed: int) -> pathlib.Path:
    kind = "masked" if table in PRESET else "pretrained"
    return out / f"{'-'.join(sorted(TABLES[table]))}-{kind}-{seed}"
