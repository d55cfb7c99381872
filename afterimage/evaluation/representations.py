"""What representations are worth with few labels: one report of several of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer

from afterimage.data import ImageSet
from afterimage.data.sets import stratified
from afterimage.errors import DataError
from afterimage.evaluation.alignment import alignment_matrix
from afterimage.evaluation.budgets import FOLD_RULE, Budget, label_budgets
from afterimage.evaluation.classification import wilson
from afterimage.evaluation.knn import choose_k, knn_predict
from afterimage.evaluation.layers import (
    Layer,
    Representation,
    Sets,
    collect,
    dimensions,
)
from afterimage.evaluation.linear import LinearProbe, single_thread
from afterimage.evaluation.logistic import fit_logistic
from afterimage.evaluation.ridge import StreamedRidge, fit_ridge
from afterimage.evaluation.spectrum import (
    collapsed_dimensions,
    effective_rank,
    spectrum_report,
)
from afterimage.notes import ProgressBar

PROBES = ("linear probe", "kNN", "ridge")
_HELD_SHARE = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How representations are scored."""

    per_class: Sequence[int] = (1, 5, 10, 100)
    """Label budgets, labels a class; all labels are always one more."""
    seeds: int = 5
    """Draws of each budget."""
    most: int = 20_000
    """Training images whose vectors are kept for the linear probe and kNN; images that
    are scored."""
    seed: int = 0
    """Seed of the first draw, of the sample and of what is held out."""
    batch_size: int = 256
    """Images in memory together."""
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
    shares of `test` classified right. A row is a representation's vector, and its best
    layer where that is another one. "layers": {representation: [{"layer",
    "dimensions", "validation", "test", "effective_rank", "collapsed"}]}: ridge with all
    labels, on the held-out fifth of `train` and on `test`. "best": the layer with the
    highest accuracy on validation, the first of equal ones. "alignment": linear CKA
    between the levels, over `train`. "settings" and "notes" say what was left out or
    subsampled. The test labels decide nothing.

    Every layer of every image goes into sums; vectors are kept of `protocol.most`.
    Raises DataError for labels that cannot train and validate a probe.
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
        # max keeps the first of equal ones.
        best = max(report["layers"][name], key=lambda row: row["validation"])["layer"]
        report["best"][name] = best
        if representation.levels:
            sizes = dimensions(layers, representation.levels)
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
            f"{train.name}: no class has two labelled training images, so that none "
            "can be held out to choose by. Give more labelled images."
        )
    sampled = np.zeros(len(train), bool)
    sampled[_some(len(train), most, protocol.seed)] = True
    if len(train) > most:
        notes.append(
            f"linear probe and kNN learn from {most:,} of {len(train):,} training "
            f"images (most={most}); ridge with all labels, ranks and alignment are of "
            "all of them"
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
    """(ridge fitted with all labels, its figures); chosen and validated on `held`."""
    trial = StreamedRidge(layer.fit, sets.classes).choose(layer.held)
    whole = layer.fit + layer.held
    probe = StreamedRidge(whole, sets.classes).probe(trial.chosen)
    held = sets.held[sets.sampled]
    truth = sets.labels[sets.sampled & sets.held]
    size = layer.sample.shape[1]
    # Fewer images than dimensions: their own products are the smaller problem.
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
    budgets: Sequence[Budget],
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
        # All labels: fitted to every image, not to those alone whose vectors are kept.
        probe = streamed if budget.name == "all" else fit_ridge(x, y)
        return probe.predict(layer.test), probe.chosen

    known: Mapping[str, Callable] = dict(zip(PROBES, (linear, near, ridge)))
    kinds = {kind: known[kind] for kind in wanted}
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
                found[kind][budget.name] = _summary(values, chosen)
    return found


def _summary(values: list[float], chosen: list[Any]) -> dict[str, Any]:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {
        "mean": float(np.mean(values)),
        "std": std,
        "n": len(values),
        "values": values,
        "chosen": chosen,
    }
