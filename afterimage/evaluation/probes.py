"""Ridge and nearest-neighbour probes: how well features separate classes."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Integer, Num, UInt8

from afterimage.data.pixels import cover_and_crop
from afterimage.errors import UserError
from afterimage.evaluation.spectrum import Moments, collapsed_dimensions, effective_rank

_PIXEL_SIDE = 32  # 3,072 numbers per colour image: a ridge probe takes seconds
# In shapes, `_n` is a size that should equal n but is left to the checks below: a
# mismatch is a user error and gets a message.
Array = np.ndarray | jax.Array


def check_labelled(name: str, features: Any, labels: Any, *, empty=False) -> np.ndarray:
    """The labels as int32 [n], checked against the features [n, d].

    Raises UserError listing all problems: different lengths, no examples, values that
    are not finite, labels below 0 (unlabelled).
    """
    features, labels = np.asarray(features), np.asarray(labels)
    wrong = []
    if len(features) != len(labels):
        wrong.append(f"{len(features)} feature vectors but {len(labels)} labels")
    if not empty and not len(features):
        wrong.append("no examples")
    bad = ~np.isfinite(features).all(axis=tuple(range(1, features.ndim)))
    if bad.any():
        wrong.append(
            f"{bad.sum()} of {len(features)} feature vectors are not finite "
            f"(first at index {int(np.argmax(bad))})"
        )
    if len(labels) and labels.min() < 0:
        wrong.append(f"{(labels < 0).sum()} unlabelled examples (-1); drop them first")
    if wrong:
        raise UserError(f"{name} set: " + "; ".join(wrong) + ".")
    return labels.astype(np.int32)


_DEVIATIONS = 1.959963984540054  # of a normal variable, within which 95 % lie


def wilson(successes: int, trials: int) -> dict[str, float]:
    """A share and its 95 % Wilson score interval: {"value", "low", "high"}.

    Not from scipy.stats, which takes a second to import.
    """
    share, square = successes / trials, _DEVIATIONS**2
    centre = (successes + square / 2) / (trials + square)
    variance = trials * share * (1 - share) + square / 4
    half = _DEVIATIONS * math.sqrt(variance) / (trials + square)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return {"value": share, "low": low, "high": high}


_WORTH_THREADS = 1_000_000


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: scores = (features - mean) / scale @ weights + intercept."""

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    weights: Float[np.ndarray, "d classes"]
    intercept: Float[np.ndarray, " classes"]
    chosen: float
    """The selected ridge penalty λ per example, or C of logistic regression."""

    def scores(self, features: Num[Array, "m d"]) -> Float[np.ndarray, "m classes"]:
        """Ridge: regression scores, near 1 for the class. Logistic: logits."""
        features = np.asarray(features)
        # Standardisation is folded into the weights, not applied to every vector.
        weights = self.weights / self.scale[:, None]
        shift = self.intercept - self.mean @ weights
        return features.astype(np.float64, copy=False) @ weights + shift

    def predict(self, features: Num[Array, "m d"]) -> Integer[np.ndarray, " m"]:
        """Class with the largest score."""
        return np.argmax(self.scores(features), axis=1).astype(np.int32)


@contextlib.contextmanager
def single_thread(size: int) -> Iterator[None]:
    """Linear algebra on `size` numbers with one thread, if more would only wait.

    On a busy machine, thousands of products of a few microseconds each are 4-8 times
    slower on two threads.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1 if size < _WORTH_THREADS else None, user_api="blas"):
        yield


def usable_scale(
    mean: Float[np.ndarray, " d"], deviation: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " d"]:
    """The deviation to divide by: 1 where a dimension is constant.

    The deviation of a constant column is rounding noise; dividing by it would turn
    noise into a feature.
    """
    floor = 1e-7 * (np.abs(mean) + deviation.max(initial=0))
    return np.where(deviation > floor, deviation, 1.0)


def principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies s, coordinates z and basis v with x = z vᵀ, zᵀz = diag(s).

    From the smaller of x xᵀ and xᵀ x.
    """
    wide = x.shape[0] < x.shape[1]
    energy, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    # Anything below this is rounding error of the product.
    keep = energy > energy[-1] * max(x.shape) * np.finfo(x.dtype).eps
    energy, vectors = energy[keep], vectors[:, keep]
    if not wide:
        return energy, x @ vectors, vectors
    size = np.sqrt(energy)
    return energy, vectors * size, x.T @ vectors / size


# Per training example, on standardised features: from almost none to very strong.
PENALTIES = tuple(10.0**p for p in range(-6, 2))


def fit_ridge(
    features: Num[Array, "n d"],
    labels: Integer[Array, " _n"],
    *,
    penalties: Sequence[float] = PENALTIES,
) -> LinearProbe:
    """Least squares on one-hot targets with an L2 penalty, exactly.

    Minimises ‖X W + b - Y‖² + λ n ‖W‖² over features standardised by the training set's
    mean and deviation (a constant feature is only centred). λ is the one of `penalties`
    with the lowest squared leave-one-out error, also in closed form: with the hat
    matrix H the residual without example i is r_i / (1 - H_ii). No validation data is
    used. In float64; costs one eigendecomposition of the smaller of X Xᵀ, XᵀX.

    Raises UserError for an empty set, values that are not finite, unlabelled examples,
    or penalties that are not positive.
    """
    _check(penalties)
    labels = check_labelled("train", features, labels)
    x = np.asarray(features, np.float64)
    y = np.eye(int(labels.max()) + 1)[labels]
    mean = x.mean(axis=0)
    scale = usable_scale(mean, x.std(axis=0))
    intercept = y.mean(axis=0)
    energy, z, basis = principal(np.subtract(x, mean) / scale)
    targets = y - intercept
    projected = z.T @ targets
    errors = [_left_out(energy, z, projected, targets, p) for p in penalties]
    best = penalties[int(np.argmin(errors))]
    weights = basis @ (projected / (energy + best * len(x))[:, None])
    return LinearProbe(mean, scale, weights, intercept, best)


def _left_out(energy, z, projected, targets, penalty) -> float:
    """Sum of squared leave-one-out residuals; the intercept's leverage is 1/n."""
    shrunk = z / (energy + penalty * len(z))
    leverage = np.einsum("nr,nr->n", shrunk, z) + 1 / len(z)
    # With leverage 1 (a single example) nothing is left to predict it from.
    free = np.maximum(1 - leverage, np.finfo(z.dtype).eps)
    return float((((targets - shrunk @ projected) / free[:, None]) ** 2).sum())


class StreamedRidge:
    """The same probe computed from moments, for data that does not fit in memory.

    `moments` are of [features, one-hot labels] side by side: they hold the normal
    equations, which are solved by a Cholesky factorisation for each penalty.
    """

    def __init__(self, moments: Moments, classes: int):
        d = len(moments.mean) - classes
        self._count = moments.count
        self._mean, self._intercept = moments.mean[:d], moments.mean[d:]
        self._scale = usable_scale(self._mean, moments.deviation[:d])
        self._normal = moments.scatter[:d, :d] / np.outer(self._scale, self._scale)
        self._targets = moments.scatter[:d, d:] / self._scale[:, None]

    def probe(self, penalty: float) -> LinearProbe:
        """The minimiser for λ = `penalty`, as `fit_ridge` defines it."""
        from scipy.linalg import cho_factor, cho_solve

        shifted = self._normal + penalty * self._count * np.eye(len(self._mean))
        weights = cho_solve(cho_factor(shifted, overwrite_a=True), self._targets)
        return LinearProbe(self._mean, self._scale, weights, self._intercept, penalty)

    def choose(
        self, held: Moments, *, penalties: Sequence[float] = PENALTIES
    ) -> LinearProbe:
        """The probe with the lowest squared error on the examples of `held`."""
        _check(penalties)
        probes = [self.probe(penalty) for penalty in penalties]
        return min(probes, key=lambda probe: _squared_error(probe, held))


def _squared_error(probe: LinearProbe, moments: Moments) -> float:
    """Σ ‖scores - one-hot‖² over the examples that the moments are of."""
    weights = probe.weights / probe.scale[:, None]
    residual = np.concatenate([weights, -np.eye(weights.shape[1])])
    constant = probe.intercept - probe.mean @ weights
    centre = moments.mean @ residual + constant
    spread = np.sum((moments.scatter @ residual) * residual)
    return float(spread + moments.count * np.sum(centre**2))


def _check(penalties: Sequence[float]) -> None:
    if not penalties or min(penalties) <= 0:
        raise UserError(
            f"penalties={penalties}: give at least one, each greater than 0."
        )


def ridge_accuracy(
    train_features: Num[Array, "n d"],
    train_labels: Integer[Array, " _n"],
    features: Num[Array, "m _d"],
    labels: Integer[Array, " _m"],
) -> float:
    """Share of `features`, in [0, 1], that a probe fitted on train gets right."""
    labels = check_labelled("validation", features, labels)
    probe = fit_ridge(train_features, train_labels)
    return float(np.mean(probe.predict(features) == labels))


NEIGHBOURS = (1, 2, 5, 10, 20, 50, 100, 200)
"""Candidate values of k for `choose_k`."""
# Bytes of the similarity block in memory: queries in a chunk x training vectors.
_BLOCK_BYTES = 256 * 2**20
# At most this many vectors are left out in turn to choose k.
_MOST_QUERIES = 2000


def unit_rows(features: Num[Array, "n d"]) -> np.ndarray:
    """Rows scaled to length 1 in float32; a row of zeros stays zero."""
    features = np.asarray(features, np.float32)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1)


def knn_predict(
    train_features: Num[Array, "n d"],
    train_labels: Integer[Array, " _n"],
    features: Num[Array, "m _d"],
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Integer[np.ndarray, " m"]:
    """Class by a weighted vote of the `k` training vectors with the largest cosine.

    A neighbour with cosine similarity s votes for its class with weight exp(s /
    temperature); ties go to the smaller class index. A `k` larger than the training set
    means all of it. Queries are compared in chunks, so memory use is at most about 256
    MiB plus the vectors themselves.

    Raises UserError for k < 1, temperature ≤ 0, features that are not finite or do not
    match, and labels below 0 (drop unlabelled images first).
    """
    if k < 1 or temperature <= 0:
        raise UserError(
            f"k={k} must be at least 1, and temperature={temperature} greater than 0."
        )
    train_labels = check_labelled("train", train_features, train_labels)
    check_labelled("query", features, np.zeros(len(features), np.int32), empty=True)
    if train_features.shape[1] != features.shape[1]:
        raise UserError(
            f"training features have {train_features.shape[1]} dimensions, the others "
            f"{features.shape[1]}; compute both with one encoder."
        )
    bank, k = unit_rows(train_features), min(k, len(train_labels))
    return _votes(bank, train_labels, unit_rows(features), (k,), temperature)[0]


def choose_k(
    features: Num[Array, "n d"],
    labels: Integer[Array, " _n"],
    *,
    candidates: Sequence[int] = NEIGHBOURS,
    temperature: float = 0.07,
) -> int:
    """The k with the highest leave-one-out accuracy; ties go to the smallest.

    At most 2,000 vectors, evenly spaced, are left out in turn; the others all vote.
    """
    labels = check_labelled("train", features, labels)
    ks = [k for k in sorted(candidates) if k < len(labels)]
    if not ks:
        return 1
    count = min(len(labels), _MOST_QUERIES)
    rows = np.linspace(0, len(labels) - 1, count).round().astype(np.int64)
    bank = unit_rows(features)
    found = _votes(bank, labels, bank[rows], ks, temperature, own=rows)
    return ks[int(np.argmax((found == labels[rows][None]).mean(axis=1)))]


def _votes(
    bank: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, " n"],
    queries: Float[np.ndarray, "m d"],
    ks: Sequence[int],
    temperature: float,
    own: Integer[np.ndarray, " m"] | None = None,
) -> Integer[np.ndarray, "ks m"]:
    """The class the nearest k vote for, for each k; row `own` of the bank abstains.

    `ks` ascends. NumPy's partition beats XLA's top-k on a CPU (2.5 times at 20,000
    vectors), and compiles nothing for each new shape.
    """
    most, classes = ks[-1], int(labels.max()) + 1
    chunk = max(1, _BLOCK_BYTES // (4 * max(len(bank), classes)))
    found = np.zeros((len(ks), len(queries)), np.int32)
    for start in range(0, len(queries), chunk):
        part = slice(start, start + chunk)
        similarity = queries[part] @ bank.T
        rows = np.arange(len(similarity))
        if own is not None:
            similarity[rows, own[part]] = -np.inf
        near = np.argpartition(similarity, -most, axis=1)[:, -most:]
        near.sort(axis=1)  # ties: the earlier comes first
        strength = np.take_along_axis(similarity, near, axis=1)
        order = np.argsort(-strength, axis=1, kind="stable")
        near, strength = (np.take_along_axis(a, order, 1) for a in (near, strength))
        # Only ratios of weights matter; scale the largest to 1 to avoid overflow.
        weight = np.exp((strength - strength[:, :1]) / temperature)
        votes = np.zeros((len(rows), classes), np.float32)
        for i, (first, last) in enumerate(zip([0, *ks], ks)):
            for j in range(first, last):
                votes[rows, labels[near[:, j]]] += weight[:, j]
            found[i, part] = votes.argmax(axis=1)
    return found


def knn_accuracy(
    train_features: Num[Array, "n d"],
    train_labels: Integer[Array, " _n"],
    features: Num[Array, "m _d"],
    labels: Integer[Array, " _m"],
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of `features`, in [0, 1], whose class `knn_predict` gets right."""
    labels = check_labelled("validation", features, labels)
    predicted = knn_predict(
        train_features, train_labels, features, k=k, temperature=temperature
    )
    return float(np.mean(predicted == labels))


FEW, _MOST_FEW, _DRAWS = 10, 2000, 5


def labels_a_class(labels: Integer[Array, " n"]) -> int:
    """Labels of each class that `few_labels_right` learns from: ten, fewer if there
    are more than 200 classes."""
    classes = len(np.unique(np.asarray(labels)))
    return max(1, min(FEW, _MOST_FEW // max(classes, 1)))


def few_labels_right(
    train_features: Num[Array, "n d"],
    train_labels: Integer[Array, " _n"],
    features: Num[Array, "m _d"],
    labels: Integer[Array, " _m"],
) -> Float[np.ndarray, " m"]:
    """How often ridge gets each image right when it learns from few labels.

    The mean over five draws (one above 500 labels) of ten labels a class, or of all
    that a class has. The draws depend on the labels alone, so different features are
    compared on the same ones.
    """
    known, truth = np.asarray(train_labels), np.asarray(labels)
    x, per_class = np.asarray(train_features), labels_a_class(known)
    rng, right = np.random.default_rng(0), []
    for _ in range(_DRAWS):
        order = rng.permutation(len(known))
        kept = [order[known[order] == c][:per_class] for c in np.unique(known)]
        rows = np.concatenate(kept)
        with single_thread(x[rows].size):
            probe = fit_ridge(x[rows], known[rows])
        right.append(probe.predict(features) == truth)
        if len(rows) > _DRAWS * 100:
            break
    return np.mean(right, axis=0)


def probe_report(
    features_by_name: Mapping[str, tuple[Any, Any]],
    labels: tuple[Any, Any],
    *,
    k: int = 20,
) -> dict[str, dict[str, Any]]:
    """kNN and ridge accuracy, effective rank and collapsed dimensions for each entry.

    "ridge" learns from all labels, "ridge_10" from ten a class (`few_labels_right`).

    `features_by_name` maps e.g. "trained", "untrained", "raw pixels" to (train [n, d],
    validation [m, d]); `labels` is (train [n], validation [m]), integers ≥ 0. Both
    probes are fitted on train and scored on validation; accuracies are {"value", "low",
    "high"} with a 95 % Wilson interval. Plain Python, JSON-ready.
    """
    report: dict[str, dict[str, Any]] = {}
    for name, (train, validation) in features_by_name.items():
        train, validation = np.asarray(train), np.asarray(validation)
        train_labels = check_labelled(f"{name}: train", train, labels[0])
        truth = check_labelled(f"{name}: validation", validation, labels[1])
        with single_thread(train.size):
            near = knn_predict(train, train_labels, validation, k=k)
            linear = fit_ridge(train, train_labels).predict(validation)
            few = few_labels_right(train, train_labels, validation, truth)
            rank = effective_rank(validation)
        report[name] = {
            "dimensions": int(train.shape[1]),
            "knn": wilson(int((near == truth).sum()), len(truth)),
            "ridge_10": {"value": float(few.mean())},
            "ridge": wilson(int((linear == truth).sum()), len(truth)),
            "effective_rank": rank,
            "collapsed": collapsed_dimensions(validation),
        }
    return report


def pixel_vectors(
    images: UInt8[np.ndarray, "n h w c"],
) -> Float[np.ndarray, "n d"]:
    """Images as vectors of pixels in [0, 1]; larger ones are reduced to 32 pixels."""
    if max(images.shape[1:3]) > _PIXEL_SIDE:
        small = (_PIXEL_SIDE, _PIXEL_SIDE)
        images = np.stack([cover_and_crop(image, small) for image in images])
    return images.reshape(len(images), -1).astype(np.float32) / 255
