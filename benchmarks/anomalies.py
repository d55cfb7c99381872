"""How well scorers find anomalies: the AUROC of each, beside raw pixels.

mnist, fashion  one class is normal, the other nine are not; ten problems each
defects         CIFAR-10 photos: undamaged; with a scratch, a missing or a foreign part

`python -m benchmarks.anomalies --folder ../shared/data --record` measures all of it and
writes `benchmarks/results/anomalies.md`. A stopped command continues: figures are kept
in `--out` as they come. An encoder is pretrained on the normal images alone.
"""

import argparse
import contextlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from afterimage.anomalies.detector import AnomalyDetector
from afterimage.evaluation.classification import auroc
from afterimage.plugins import SCORERS
from benchmarks.image_sets import STRANGERS, Places
from benchmarks.programs import pretrained, quietly
from benchmarks.results import markdown, row, write_results

TABLES = ("mnist", "fashion", "defects")
KINDS = ("scratch", "missing part", "foreign part")
_USUAL: dict[str, Any] = {"model": "conv", "batch_size": 64, "lr": 3e-3}
RECIPES: dict[str, dict[str, Any]] = {
    # Whole images are unlike the normal ones: what does not fit into 32 numbers.
    **dict.fromkeys(("mnist", "fashion"), _USUAL | {"bottleneck": 32}),
    # Parts are: what the rest of the image does not foretell.
    "defects": _USUAL | {"objective": {"name": "masked", "ratio": 0.6, "patch": 4}},
}
_GEOTRANS = (
    "Golan and El-Yaniv, Deep Anomaly Detection Using Geometric Transformations, "
    "NeurIPS 2018, as quoted in table 1 of AGAD, arXiv:2304.04211"
)
PUBLISHED: dict[str, dict[str, tuple[tuple[float, ...], int, str]]] = {
    "mnist": {
        "Deep SVDD (published)": (
            (98.0, 99.7, 91.7, 91.9, 94.9, 88.5, 98.3, 94.6, 93.9, 96.5),
            10,
            "Ruff et al., Deep One-Class Classification, ICML 2018, table 1: one-class "
            "Deep SVDD, means of 10 seeds for these digits",
        ),
        "GeoTrans (published)": (
            (98.2, 91.6, 99.4, 99.0, 99.1, 99.6, 99.9, 96.3, 97.2, 99.2),
            5,
            _GEOTRANS,
        ),
    },
    "fashion": {
        "GeoTrans (published)": (
            (99.4, 97.6, 91.1, 89.9, 92.1, 93.4, 83.3, 98.9, 90.8, 99.2),
            5,
            _GEOTRANS,
        )
    },
}
"""{table: {method: (AUROC of each class, seeds, source)}}."""
_COMPONENTS = 0.95  # of the variance, for the PCA of raw pixels
Found = tuple[np.ndarray, np.ndarray]
"""Scores [n] and heat [n, h, w]."""


class Problem(NamedTuple):
    """Normal images to learn from, and others to tell."""

    normal: np.ndarray
    images: np.ndarray
    anomalous: np.ndarray
    masks: np.ndarray | None = None
    """True where an image is damaged."""


def one_class(given: argparse.Namespace, table: str, cell: str, seed: int) -> Problem:
    """Training images of one class, and test images of all, drawn by seed."""
    places = Places(pathlib.Path(given.folder), pathlib.Path(given.packages))
    if table == "mnist":
        with np.load(places.shared("mnist.npz")) as file:
            train, known = file["x_train"], file["y_train"]
            images, labels = file["x_test"], file["y_test"]
    else:
        found = STRANGERS["fashion"](places)
        every, classes = np.stack(list(found.images)), np.array(found.classes, int)
        assert found.test is not None
        train, known = every[~found.test], classes[~found.test]
        images, labels = every[found.test], classes[found.test]
    some = np.random.default_rng(seed).permutation(len(images))[: given.test]
    normal = train[known == int(cell)][..., None]
    return Problem(normal, images[some][..., None], labels[some] != int(cell))


def photos(given: argparse.Namespace, kind: str, seed: int) -> Problem:
    """Photos for learning; as many others undamaged as damaged."""
    from afterimage.data import open_data

    folder = f"{given.folder}/cifar10"
    rng = np.random.default_rng(seed)
    known = open_data(f"zip:{folder}/train-0.zip").train
    normal = known.gather(rng.permutation(len(known))[: given.photos])
    others = open_data(f"zip:{folder}/test.zip").train
    images = others.gather(rng.permutation(len(others))[: given.test])
    damaged = np.arange(len(images)) % 2 == 1
    masks = np.zeros(images.shape[:3], bool)
    for place in np.flatnonzero(damaged):
        images[place], masks[place] = damage(images[place], kind, normal, rng)
    return Problem(normal, images, damaged, masks)


def damage(
    image: np.ndarray, kind: str, others: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A copy with a defect, and where it is.

    A scratch is a line of two pieces, half as long as a side or longer, black on bright
    images and white on dark ones. A missing part is a rectangle of the image's mean
    colour, a foreign part one of another image; sides of 0.2 to 0.4 of the image's.
    """
    import cv2

    side, mask = min(image.shape[:2]), np.zeros(image.shape[:2], np.uint8)
    if kind == "scratch":
        points = [rng.uniform(0.15, 0.85, 2) * side]
        while len(points) < 3:
            turn = rng.uniform(0, 2 * np.pi)
            step = (
                rng.uniform(0.25, 0.45) * side * np.array([np.cos(turn), np.sin(turn)])
            )
            points.append(np.clip(points[-1] + step, 0, side - 1))
        line = np.round(points).astype(np.int32)
        cv2.polylines(mask, [line], False, 1, max(1, side // 32))
        there = mask > 0
        colour: Any = 0 if image[there].mean() > 127 else 255
    else:
        high, wide = (rng.uniform(0.2, 0.4, 2) * side).round().astype(int)
        y, x = (rng.integers(0, side - n + 1) for n in (high, wide))
        mask[y : y + high, x : x + wide] = 1
        there = mask > 0
        other = others[rng.integers(len(others))]
        colour = image.mean((0, 1)) if kind == "missing part" else other[there]
    damaged = image.copy()
    damaged[there] = colour
    return damaged, there


def pixels_near(problem: Problem) -> Found:
    """Squared distance to the nearest normal image."""
    normal, images = (_flat(part) for part in (problem.normal, problem.images))
    nearest = np.concatenate(
        [
            ((normal**2).sum(1) - 2 * part @ normal.T).argmin(1)
            for part in np.array_split(images, max(1, len(images) // 256))
        ]
    )
    return _errors(problem, images - normal[nearest])


def pixels_pca(problem: Problem) -> Found:
    """Squared error of the projection onto the principal components."""
    normal, images = (_flat(part) for part in (problem.normal, problem.images))
    mean = normal.mean(0)
    energy, basis = np.linalg.eigh((normal - mean).T @ (normal - mean))
    shares = np.cumsum(energy[::-1]) / energy.sum()
    basis = basis[:, ::-1][:, : 1 + int((shares < _COMPONENTS).sum())]
    rest = images - mean
    return _errors(problem, rest - (rest @ basis) @ basis.T)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255


def _errors(problem: Problem, rest: np.ndarray) -> Found:
    heat = np.square(rest).reshape(problem.images.shape).mean(-1)
    return heat.mean((1, 2)), heat


BASELINES: Mapping[str, Callable[[Problem], Found]] = {
    "raw pixels, nearest": pixels_near,
    "raw pixels, PCA": pixels_pca,
}


def measure(
    given: argparse.Namespace, table: str, cell: str, seed: int
) -> dict[str, dict[str, float]]:
    """{method: {metric: AUROC}} of one problem."""
    make = photos if table == "defects" else None
    problem = make(given, cell, seed) if make else one_class(given, table, cell, seed)
    out = pathlib.Path(given.out)
    # All kinds of defects have the same undamaged images.
    name = table if make else f"{table}-{cell}"
    data = out / f"{name}-{seed}.npz"
    if not data.exists():
        np.savez(data, images=problem.normal)
    settings = RECIPES[table] | {"steps": given.steps}
    run = pretrained(
        f"npz:{data}", out / f"{name}-{seed}-{given.steps}", seed, **settings
    )
    some = problem.normal[: given.normal]
    found = {}
    for by in SCORERS.names():
        detector = quietly(_fitted, run, some, by, seed)
        found[by] = detector.score(problem.images), detector.maps(problem.images)
    few = problem._replace(normal=some)
    found |= {method: score(few) for method, score in BASELINES.items()}
    return {method: _scored(problem, *both) for method, both in found.items()}


def _fitted(run: str, normal: np.ndarray, by: str, seed: int) -> AnomalyDetector:
    return AnomalyDetector.fit(run, normal, by=by, seed=seed, held_out=0.1)


def _scored(problem: Problem, scores: np.ndarray, heat: np.ndarray) -> dict[str, float]:
    found = {"images": auroc(scores, problem.anomalous)}
    if problem.masks is not None:
        masks = problem.masks[problem.anomalous].ravel()
        found["pixels"] = auroc(heat[problem.anomalous].ravel(), masks)
    return found


def rows_of(
    cells: Mapping[str, Mapping[str, Mapping[str, float]]], table: str
) -> list[dict[str, Any]]:
    """The rows of a table: by method, the mean over its problems for each seed."""
    mine = {
        tuple(key.split("/")[1:]): v
        for key, v in cells.items()
        if key.split("/")[0] == table
    }
    if not mine:
        return []
    names = list(dict.fromkeys(cell for cell, _ in mine))
    # Only seeds that have every problem: means must be of the same ones.
    seeds = sorted({seed for _, seed in mine if all((n, seed) in mine for n in names)})
    groups = {n: [n] for n in names} if table == "defects" else {"": names}
    one = f"AUROC of class {names[0]}, %"
    classes = f"AUROC, mean of {len(names)} classes, %" if len(names) > 1 else one
    found = []
    for kind, members in groups.items():
        for method in next(iter(mine.values())):
            for metric in mine[members[0], seeds[0]][method]:
                values = [
                    100 * float(np.mean([mine[n, s][method][metric] for n in members]))
                    for s in seeds
                ]
                name = f"{kind}: {method}" if kind else method
                what = f"AUROC of {metric}, %" if kind else classes
                found.append(row(table, name, what, values))
    for method, (figures, seeds, source) in PUBLISHED.get(table, {}).items():
        value = float(np.mean([figures[int(n)] for n in names]))
        found.append(row(table, method, classes, value, n=seeds, source=source))
    return found


def _cells(given: argparse.Namespace) -> list[tuple[str, str, int]]:
    return [
        (table, str(cell), seed)
        for seed in range(given.seeds)
        for table in given.table
        for cell in (KINDS if table == "defects" else given.classes)
    ]


def notes(given: argparse.Namespace) -> str:
    """What was measured, for the page."""
    every = [source for table in PUBLISHED.values() for _, _, source in table.values()]
    sources = "; ".join(dict.fromkeys(every))
    return (
        f"Each encoder: conv, {given.steps} steps of 64 images, on the normal images "
        "alone; plain reconstruction with a bottleneck of 32 for classes, masked "
        f"pixels for defects. Scorers have their defaults and at most {given.normal} "
        "normal images, as have the raw pixels; "
        f"{given.test} test images a problem. A higher AUROC is better, 50 is chance. "
        "Defects: of images, damaged against undamaged ones; of pixels, where in the "
        f"damaged ones. Published: {sources}."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing, prints the tables and, with `--record`, keeps them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", default="../shared/data")
    parser.add_argument("--packages", default="../packages")
    parser.add_argument("--table", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--classes", nargs="+", type=int, default=range(10))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--normal", type=int, default=2000)
    parser.add_argument("--photos", type=int, default=10_000, help="to pretrain on")
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--out", default="runs/anomalies")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args(argv)
    pathlib.Path(given.out).mkdir(parents=True, exist_ok=True)
    budget = f"{given.steps}-{given.normal}-{given.test}"
    kept = pathlib.Path(given.out) / f"figures-{budget}.json"
    cells: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        cells = json.loads(kept.read_text())
    for table, cell, seed in _cells(given):
        key = f"{table}/{cell}/{seed}"
        if key not in cells:
            cells[key] = measure(given, table, cell, seed)
            kept.write_text(json.dumps(cells, indent=1))
        print(key, json.dumps(cells[key]), flush=True)
    wanted = {f"{table}/{cell}/{seed}" for table, cell, seed in _cells(given)}
    chosen = {key: value for key, value in cells.items() if key in wanted}
    rows = [one for table in given.table for one in rows_of(chosen, table)]
    print(markdown(rows, "Anomalies", notes(given)))
    if given.record:
        write_results("anomalies", rows, title="Anomalies", notes=notes(given))


if __name__ == "__main__":
    main()
