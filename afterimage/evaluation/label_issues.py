"""Which labels look wrong, from feature vectors: a probe and neighbours disagree."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Num

from afterimage.console import ProgressBar
from afterimage.errors import UserError
from afterimage.evaluation.logistic import fit_logistic
from afterimage.evaluation.nearest import nearest
from afterimage.evaluation.probes import Array, check_labelled, single_thread, unit_rows

FEWEST = 3
"""Images of a class: with fewer, its labels cannot be checked."""
_FOLDS, _NEIGHBOURS = 5, 10
_SURE, _ALONE = 0.3, 0.3
_MOST_TO_CHOOSE = 5_000  # images that choose the penalty


@dataclasses.dataclass(frozen=True)
class LabelIssues:
    """Images whose label looks wrong, the surest first."""

    rows: Int[np.ndarray, " k"]
    suggested: Int[np.ndarray, " k"]
    """The class that each looks like."""
    score: Float[np.ndarray, " k"]
    """The probability of that class less that of the label, in [0.3, 1]."""
    neighbours: Float[np.ndarray, " k"]
    """The share of the 10 nearest other images that have its label, below 0.3."""
    checked: Bool[np.ndarray, " n"]
    """False for the images of classes with fewer than 3."""
    agreement: float
    """The share of the checked labels that the probe predicts, each without the image:
    a low one means that the features cannot tell the classes apart."""


def find_label_issues(
    features: Num[Array, "n d"], labels: Integer[Array, " _n"], *, seed: int = 0
) -> LabelIssues:
    """Labels that a probe which has not seen the image, and its neighbours, contradict.

    Logistic regression on the features is fitted without each fifth of the images in
    turn and gives the probabilities of that fifth. A label is an issue if another class
    is the most probable one, by 0.3 or more, is also the most frequent label among the
    10 nearest other images, and fewer than 3 of these have the image's label.

    Confident learning (Northcutt et al. 2021), which compares the same probabilities
    with a threshold for each class, finds fewer wrong labels, and many false ones where
    the features are weak: benchmarks/results/suggest.md.

    Raises UserError for fewer than two classes of at least 3 images, unlabelled images
    (-1), or vectors that are not finite.
    """
    labels = check_labelled("labelled", features, labels)
    counts = np.bincount(labels)
    checked = counts[labels] >= FEWEST
    enough = int((counts >= FEWEST).sum())
    if enough < 2:
        raise UserError(
            f"labels: {enough} classes have at least {FEWEST} images; labels are "
            "checked against each other, which takes two such classes"
        )
    rows = np.flatnonzero(checked)
    names, y = np.unique(labels[rows], return_inverse=True)
    x = unit_rows(np.asarray(features)[rows])
    p = out_of_fold(x, y, seed)
    best, every = p.argmax(1), np.arange(len(y))
    score = p[every, best] - p[every, y]
    found = np.flatnonzero(score >= _SURE)
    found = found[np.argsort(-score[found], kind="stable")]
    votes = _votes(x, y, found)
    share = votes[np.arange(len(found)), y[found]] / np.maximum(votes.sum(1), 1)
    alone = (votes.argmax(1) == best[found]) & (share < _ALONE)
    found, share = found[alone], share[alone]
    return LabelIssues(
        rows=rows[found],
        suggested=names[best[found]],
        score=score[found],
        neighbours=share,
        checked=checked,
        agreement=float(np.mean(best == y)),
    )


def _votes(
    x: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"], rows: Int[np.ndarray, " k"]
) -> Int[np.ndarray, "k classes"]:
    """The labels among the 10 images nearest to each of `rows`."""
    near = nearest(x[rows], x, _NEIGHBOURS + 1)[0]
    votes = np.zeros((len(rows), int(y.max()) + 1), np.int64)
    for own, others, count in zip(rows, near, votes, strict=True):
        np.add.at(count, y[others[others != own][:_NEIGHBOURS]], 1)
    return votes


def out_of_fold(
    x: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"], seed: int
) -> Float[np.ndarray, "n classes"]:
    """Probabilities of each image by a probe that is fitted without its fold."""
    folds = _folds(y, seed)
    out = np.zeros((len(y), int(y.max()) + 1))
    with single_thread(x.size), ProgressBar(len(y), "checking") as progress:
        some = np.random.default_rng(seed).permutation(len(y))[:_MOST_TO_CHOOSE]
        strength = fit_logistic(x[some], y[some], folds=folds[some]).chosen
        for fold in range(_FOLDS):
            held = folds == fold
            probe = fit_logistic(x[~held], y[~held], strengths=[strength])
            logits = probe.scores(x[held])
            shares = np.exp(logits - logits.max(1, keepdims=True))
            out[held] = shares / shares.sum(1, keepdims=True)
            progress.add(int(held.sum()))
    return out


def _folds(y: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " n"]:
    """A fold for each image, the images of a class spread evenly."""
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    folds = np.empty(len(y), np.int64)
    folds[order] = np.arange(len(y)) % _FOLDS
    return folds
