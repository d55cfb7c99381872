"""One report on several representations: accuracy by label budget."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, Integer

from afterimage.console import ProgressBar
from afterimage.data import ImageSet, choose_labels
from afterimage.data.sets import stratified
from afterimage.errors import DataError
from afterimage.evaluation.logistic import fit_logistic
from afterimage.evaluation.probes import (
    LinearProbe,
    StreamedRidge,
    choose_k,
    fit_ridge,
    knn_predict,
    single_thread,
    wilson,
)
from afterimage.evaluation.spectrum import (
    alignment_matrix,
    collapsed_dimensions,
    effective_rank,
    spectrum_report,
)
from afterimage.evaluation.vectors import Layer, Representation, Sets, collect

PROBES = ("linear probe", "kNN", "ridge")
_HELD_SHARE = 0.2
_FOLDS, _ALL_FOLDS_UP_TO = 5, 500
FOLD_RULE = (
    f"C: the value with the highest accuracy over {_FOLDS} stratified folds of the "
    f"budget's own labels (above {_ALL_FOLDS_UP_TO:,} labels: over one of the "
    f"{_FOLDS} folds), then refitted to all; values are tried from the smallest until "
    "both accuracy and likelihood get worse; C = 1 if no class has two labels. k: "
    "highest leave-one-out accuracy. Ridge penalty: lowest leave-one-out error; with "
    "all labels, lowest error on a held-out fifth"
)


@dataclasses.dataclass(frozen=True)
class LabelBudget:
    """A number of labels per class, drawn with different seeds."""

    name: str
    """The column name: the number of labels per class, or "all"."""
    draws: tuple[Int64[np.ndarray, " n"], ...]
    """Positions in the sample, one array per seed."""
    folds: tuple[Int32[np.ndarray, " n"], ...]
    """The fold of each position, see `folds_of`."""


def label_budgets(
    sample: ImageSet, per_class: Sequence[int], *, seeds: int, seed: int
) -> tuple[list[LabelBudget], list[str]]:
    """(budgets that `sample` has enough labels for, sentences about the others).

    Each size is drawn with seeds `seed` … `seed + seeds - 1`; with the same seed,
    smaller draws are subsets of larger ones. "all" is one draw: every label of the
    sample.
    """
    assert sample.labels is not None
    assert sample.class_names is not None
    counts = np.bincount(sample.labels, minlength=len(sample.class_names))
    fewest, budgets, left_out = int(counts.argmin()), [], []
    for size in sorted(set(per_class)):
        if counts.min() < size:
            left_out.append(
                f"budget {size} per class skipped: {sample.class_names[fewest]!r} has "
                f"only {counts.min()} training images"
            )
            continue
        draws = tuple(
            choose_labels(sample, per_class=size, seed=seed + i) for i in range(seeds)
        )
        budgets.append(_budget(str(size), draws, sample.labels, seed))
    everything = (np.arange(len(sample), dtype=np.int64),)
    return [*budgets, _budget("all", everything, sample.labels, seed)], left_out


def _budget(name: str, draws: tuple, labels: np.ndarray, seed: int) -> LabelBudget:
    folds = [folds_of(labels[d], seed=seed + i) for i, d in enumerate(draws)]
    return LabelBudget(name, draws, tuple(folds))


def folds_of(
    labels: Integer[np.ndarray, " n"], *, seed: int
) -> Int32[np.ndarray, " n"]:
    """The fold, 0 … 4, that holds out each example, stratified; -1 if none does.

    There are at most as many folds as the largest class has examples, and none if that
    is 1. Above 500 examples only fold 0 is held out; the rest are -1.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    number = min(_FOLDS, int(counts.max()))
    found = np.full(len(labels), -1, np.int32)
    if number < 2:
        return found
    start = 0  # classes continue round the folds, to keep them equally large
    for label, count in zip(classes, counts):
        rows = rng.permutation(np.flatnonzero(labels == label))
        found[rows] = (start + np.arange(count)) % number
        start += count
    return np.where(found > 0, -1, found) if len(labels) > _ALL_FOLDS_UP_TO else found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How representations are scored."""

    per_class: Sequence[int] = (1, 5, 10, 100)
    """Label budgets, in labels per class; all labels are always added."""
    seeds: int = 5
    """Draws of each budget."""
    most: int = 20_000
    """Maximum number of training images whose vectors are kept for the linear probe and
    kNN, and of images to score."""
    seed: int = 0
    """Seed for the first draw, the sample and the held-out images."""
    batch_size: int = 256
    """Number of images in memory at once."""
    probes: Sequence[str] = PROBES
    """Which probes are fitted."""


def representation_report(
    representations: Sequence[Representation],
    train: ImageSet,
    test: ImageSet,
    protocol: Protocol,
) -> dict[str, Any]:
    """Every representation's accuracy at every label budget, and its layers; for JSON.

    "accuracy": {row: {probe: {budget: {"mean", "std", "n", "values", "chosen"}}}},
    shares of `test` classified correctly. Rows are each representation's vector, and
    its best layer if that is a different one. "layers": {representation: [{"layer",
    "dimensions", "validation", "test", "effective_rank", "collapsed"}]}: ridge with all
    labels, on the held-out fifth of `train` and on `test`. "best": the layer with the
    highest validation accuracy; ties go to the first. "alignment": linear CKA between
    the levels, over `train`. "settings" and "notes" say what was left out or
    subsampled. Test labels are never used for selection.

    Every layer of every image is accumulated in sums; vectors are kept for
    `protocol.most` images. Raises DataError if the labels cannot train and validate a
    probe.
    """
    sets, notes = _sets(train, test, protocol)
    sample = sets.train.subset(np.flatnonzero(sets.sampled))
    budgets, left_out = label_budgets(
        sample, protocol.per_class, seeds=protocol.seeds, seed=protocol.seed
    )
    report: dict[str, Any] = {
        "settings": _settings(sets, protocol),
        "notes": [*notes, *left_out],
        "accuracy": {},
        "layers": {},
        "best": {},
        "alignment": {},
    }
    for representation in representations:
        name = representation.name
        layers, levels = collect(representation, sets, batch_size=protocol.batch_size)
        probes, report["layers"][name] = {}, []
        for layer, known in layers.items():
            with single_thread(known.fit.scatter.size):
                probes[layer], measured = _score_layer(known, sets)
            report["layers"][name].append({"layer": layer} | measured)
        # max returns the first of equal ones.
        best = max(report["layers"][name], key=lambda row: row["validation"])["layer"]
        report["best"][name] = best
        if representation.levels:
            sizes = [layers[n].sample.shape[1] for n in representation.levels]
            report["alignment"][name] = {
                "layers": list(representation.levels),
                "cka": alignment_matrix(levels, sizes).tolist(),
            }
        rows = {name: representation.vector}
        if best != representation.vector:
            rows[f"{name}, {best}"] = best
        layers = {layer: layers[layer] for layer in rows.values()}
        for row, layer in rows.items():
            report["accuracy"][row] = _score_budgets(
                row, layers[layer], probes[layer], budgets, sets, protocol.probes
            )
    return report


def _sets(
    train: ImageSet, test: ImageSet, protocol: Protocol
) -> tuple[Sets, list[str]]:
    notes, most = [], protocol.most
    held = np.zeros(len(train), bool)
    held[stratified(train.labels, len(train), _HELD_SHARE, protocol.seed)[1]] = True
    if not held.any():
        raise DataError(
            f"{train.name}: no class has two labelled training images, so none can be "
            "held out to choose the penalty. Add labelled images."
        )
    sampled = np.zeros(len(train), bool)
    sampled[_some(len(train), most, protocol.seed)] = True
    if len(train) > most:
        notes.append(
            f"linear probe and kNN use {most:,} of {len(train):,} training images "
            f"(most={most}); ridge with all labels, ranks and alignment use all of "
            "them"
        )
    if len(test) > most:
        notes.append(f"{most:,} of {len(test):,} test images are scored (most={most})")
        test = test.subset(_some(len(test), most, protocol.seed))
    return Sets(train, test, held, sampled), notes


def _some(size: int, most: int, seed: int) -> Integer[np.ndarray, " n"]:
    return np.sort(np.random.default_rng(seed).permutation(size)[:most])


def _settings(sets: Sets, protocol: Protocol) -> dict[str, Any]:
    return dataclasses.asdict(protocol) | {
        "per_class": list(protocol.per_class),
        "probes": list(protocol.probes),
        "train": sets.train.name,
        "train_images": len(sets.train),
        "test": sets.test.name,
        "test_images": len(sets.test),
        "choice": FOLD_RULE,
    }


def _score_layer(layer: Layer, sets: Sets) -> tuple[LinearProbe, dict[str, Any]]:
    """(ridge fitted with all labels, its metrics); selected and validated on `held`."""
    trial = StreamedRidge(layer.fit, sets.classes).choose(layer.held)
    whole = layer.fit + layer.held
    probe = StreamedRidge(whole, sets.classes).probe(trial.chosen)
    held = sets.held[sets.sampled]
    truth = sets.labels[sets.sampled & sets.held]
    size = layer.sample.shape[1]
    # With fewer images than dimensions, the Gram matrix is the smaller problem.
    few = whole.count == len(layer.sample) < size
    spectrum = (
        {
            "effective_rank": effective_rank(layer.sample),
            "collapsed": collapsed_dimensions(layer.sample),
        }
        if few
        else spectrum_report(whole, size)
    )
    return probe, {
        "dimensions": size,
        "validation": float(np.mean(trial.predict(layer.sample[held]) == truth)),
        "test": wilson(_right(probe.predict(layer.test), sets), len(sets.truth)),
        **spectrum,
    }


def _right(predicted: Integer[np.ndarray, " n"], sets: Sets) -> int:
    return int((predicted == sets.truth).sum())


def _score_budgets(
    row: str,
    layer: Layer,
    streamed: LinearProbe,
    budgets: Sequence[LabelBudget],
    sets: Sets,
    wanted: Sequence[str],
) -> dict[str, dict[str, Any]]:
    labels = sets.labels[sets.sampled]
    both, size = layer.fit + layer.held, layer.sample.shape[1]
    moments = both.mean[:size], both.deviation[:size]

    def linear(x: Any, y: Any, folds: Any) -> tuple[Any, float]:
        probe = fit_logistic(x, y, folds=folds, moments=moments)
        return probe.predict(layer.test), probe.chosen

    def near(x: Any, y: Any, folds: Any) -> tuple[Any, int]:
        k = choose_k(x, y)
        return knn_predict(x, y, layer.test, k=k), k

    def ridge(x: Any, y: Any, folds: Any) -> tuple[Any, float]:
        # All labels: fit to every image, not only to those whose vectors are kept.
        probe = streamed if budget.name == "all" else fit_ridge(x, y)
        return probe.predict(layer.test), probe.chosen

    scorers: Mapping[str, Callable] = dict(zip(PROBES, (linear, near, ridge)))
    kinds = {kind: scorers[kind] for kind in wanted}
    found: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    total = len(kinds) * sum(len(budget.draws) for budget in budgets)
    with ProgressBar(total, f"probes of {row}", "probes") as progress:
        for budget in budgets:
            for kind, score in kinds.items():
                values, chosen = [], []
                for rows, folds in zip(budget.draws, budget.folds, strict=True):
                    x, y = layer.sample[rows], labels[rows]
                    with single_thread(x.size):
                        predicted, choice = score(x, y, folds)
                    values.append(_right(predicted, sets) / len(sets.truth))
                    chosen.append(choice)
                    progress.add(1)
                found[kind][budget.name] = {
                    "mean": float(np.mean(values)),
                    "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                    "n": len(values),
                    "values": values,
                    "chosen": chosen,
                }
    return found
