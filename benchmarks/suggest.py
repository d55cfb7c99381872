"""Tables of `afterimage label`: which labels help most, and which wrong ones are found.

first labels   accuracy of a probe on the first 10, 20 and 40 labels, by rule
next labels    the same with more labels, chosen where there is a classifier already
wrong labels   of planted ones, the share found, and the share of wrong ones among those
               found: `find_label_issues` beside confident learning

Features are 64 principal components of HOG, the probe logistic regression. Each seed
draws 1,200 images to choose from, and the others test; two minutes on one core.
`python -m benchmarks.suggest --record`.
"""

import argparse
import io
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax

from afterimage.evaluation.acquisition import images_to_label
from afterimage.evaluation.label_issues import find_label_issues, out_of_fold
from afterimage.evaluation.logistic import fit_logistic
from afterimage.evaluation.probes import LinearProbe, single_thread, unit_rows
from afterimage.models.hog import hog_vectors
from benchmarks.results import markdown, row, write_results

_USED = 4_000  # images on which rules and thresholds were chosen: not used here
_IMAGES, _POOL, _COMPONENTS = 2_000, 1_200, 64
_FIRST = ("random", "typical", "k-center", "k-means++")
_NEXT = ("random", "typical", "margin", "badge")
_NOTES = """\
Features are 64 principal components of HOG; each seed draws 1,200 training images to
choose from, and 800 others test. Rules and thresholds were chosen on other images of
these sets. CIFAR-10 is made of JPEG files, so figures differ slightly from those on the
original pixels; its classes are hardly apart in HOG features, which shows what a check
does then. A wrong label is drawn among the other classes."""


class Vectors(NamedTuple):
    """Features and classes of images."""

    x: np.ndarray
    y: np.ndarray


def vectors_of(name: str, folder: pathlib.Path) -> Vectors:
    """Vectors of 2,000 training images, scaled to length 1."""
    rng = np.random.default_rng(0)
    if name == "cifar10":
        images, classes = _cifar(folder / name / "train-1.zip", rng)
    else:
        with np.load(folder / f"{name}.npz") as file:
            rows = rng.permutation(len(file["x_train"]))[_USED : _USED + _IMAGES]
            images = file["x_train"][rows][..., None]
            classes = file["y_train"][rows].astype(np.int64)
    parts = [hog_vectors(images[i : i + 400]) for i in range(0, len(images), 400)]
    x = np.concatenate(parts)
    x = x - x.mean(0)
    axes = np.linalg.eigh(x.T @ x)[1][:, -_COMPONENTS:]
    return Vectors(unit_rows(x @ axes), classes)


def _cifar(path: pathlib.Path, rng: Any) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        names = [names[i] for i in rng.permutation(len(names))[:_IMAGES]]
        images = [np.asarray(Image.open(io.BytesIO(archive.read(n)))) for n in names]
    classes = [name.split("/")[-2] for name in names]
    return np.stack(images), np.unique(classes, return_inverse=True)[1]


def _fitted(known: Vectors) -> LinearProbe:
    with single_thread(1):
        return fit_logistic(known.x, known.y)


def _accuracy(known: Vectors, test: Vectors) -> float:
    return 100 * float(np.mean(_fitted(known).predict(test.x) == test.y))


def _drawn(all_of_them: Vectors, seed: int) -> tuple[Vectors, Vectors]:
    """(1,200 to choose from, the others)."""
    order = np.random.default_rng(seed).permutation(len(all_of_them.y))
    x, y = all_of_them.x[order], all_of_them.y[order]
    return Vectors(x[:_POOL], y[:_POOL]), Vectors(x[_POOL:], y[_POOL:])


def first_labels(name: str, every: Vectors, seeds: int) -> Iterator[dict[str, Any]]:
    """Accuracy on the first labels, by rule."""
    for count in (10, 20, 40):
        for rule in _FIRST:
            scores = []
            for seed in range(seeds):
                pool, test = _drawn(every, seed)
                rows = images_to_label(pool.x, count, rule=rule, seed=seed)
                scores.append(_accuracy(Vectors(pool.x[rows], pool.y[rows]), test))
            yield row("first labels", f"{name} {count}: {rule}", _METRIC, scores)


_METRIC = "accuracy of a probe, %"


def next_labels(name: str, every: Vectors, seeds: int) -> Iterator[dict[str, Any]]:
    """Accuracy with further labels, by the rule that chose these."""
    for before, more in ((20, 20), (100, 100), (500, 100)):
        scores: dict[str, list[float]] = {rule: [] for rule in _NEXT}
        for seed in range(seeds):
            pool, test = _drawn(every, seed)
            rows = images_to_label(pool.x, before, seed=seed)
            probe = _fitted(Vectors(pool.x[rows], pool.y[rows]))
            rest = np.setdiff1d(np.arange(len(pool.y)), rows)
            shares = softmax(probe.scores(pool.x[rest]), axis=1)
            for rule in _NEXT:
                how: Any = {"rule": rule, "probabilities": shares, "seed": seed}
                new = images_to_label(pool.x[rest], more, known=pool.x[rows], **how)
                both = np.concatenate([rows, rest[new]])
                scores[rule].append(
                    _accuracy(Vectors(pool.x[both], pool.y[both]), test)
                )
        for rule, found in scores.items():
            yield row(
                "next labels", f"{name} {before} + {more}: {rule}", _METRIC, found
            )


def wrong_labels(name: str, every: Vectors, seeds: int) -> Iterator[dict[str, Any]]:
    """Of planted wrong labels: how many are found, and how many false ones."""
    for share in (0.0, 0.05):
        listed: dict[str, list[np.ndarray]] = {"ours": [], "confident learning": []}
        planted = []
        for seed in range(seeds):
            pool, _ = _drawn(every, seed)
            rng = np.random.default_rng(seed)
            wrong = rng.permutation(_POOL)[: int(share * _POOL)]
            y, classes = pool.y.copy(), int(pool.y.max()) + 1
            y[wrong] = (y[wrong] + rng.integers(1, classes, len(wrong))) % classes
            planted.append(wrong)
            listed["ours"].append(find_label_issues(pool.x, y, seed=seed).rows)
            listed["confident learning"].append(_confident(pool.x, y, seed))
        for how, found in listed.items():
            label = f"{name} {share:.0%}: {how}"
            yield row("wrong labels", label, "listed of 1,200", [len(f) for f in found])
            if share:
                pairs = list(zip(found, planted))
                right = [100 * np.isin(f, w).mean() if len(f) else 0 for f, w in pairs]
                hit = [100 * np.isin(w, f).mean() for f, w in pairs]
                yield row("wrong labels", label, "listed that are wrong, %", right)
                yield row("wrong labels", label, "wrong that are listed, %", hit)


def _confident(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Off the diagonal of the confident joint (Northcutt et al. 2021, section 3.1)."""
    p = out_of_fold(x, y, seed)
    own = p[np.arange(len(y)), y]
    threshold = np.array([own[y == c].mean() for c in range(p.shape[1])])
    sure = np.where(p >= threshold, p, -1)
    return np.flatnonzero((sure.max(1) >= 0) & (sure.argmax(1) != y))


def main() -> None:
    """Measures, prints the tables and, with `--record`, keeps them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, default="../shared/data")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    found: list[dict[str, Any]] = []
    for name in ("usps", "mnist", "cifar10"):
        every = vectors_of(name, given.folder)
        found += first_labels(name, every, given.seeds)
        found += next_labels(name, every, max(1, given.seeds // 2))
        found += wrong_labels(name, every, max(1, given.seeds // 2))
    found.sort(key=lambda one: one["table"])
    title = "Labels from a few"
    print(markdown(found, title, _NOTES))
    if given.record:
        write_results("suggest", found, title=title, notes=_NOTES)


if __name__ == "__main__":
    main()
