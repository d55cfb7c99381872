"""Density ratio: weights labelled images by their likelihood in the target domain.

    w(x) = p_target(x) / p_source(x)

so that E_source[w ℓ] = E_target[ℓ] (covariate shift, Shimodaira 2000). One of three
estimators runs on the host, once before the first step, on the features that the head
reads. A single estimate covers training and validation images, so that training and the
choice of a step use the same weights.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float

from afterimage.errors import DataError
from afterimage.evaluation.spectrum import thin_svd
from afterimage.fields import at_least_1
from afterimage.finetune.method import METHODS, Method, Sections
from afterimage.training.batches import subsample

Features = Float[np.ndarray, "_n d"]
Weights = Float[np.ndarray, " _n"]
_COMPONENTS = 16
_CHUNK = 1000
_CENTRES = 100
_MOST_TARGET = 20_000


@METHODS.add("density-ratio", group="target")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DensityRatio(Method):
    """Weights labelled images by p_target / p_source (covariate shift)."""

    estimator: Literal["classifier", "kmm", "ulsif"] = "classifier"
    """How the ratio is estimated: by a logistic regression between the domains, kernel
    mean matching, or unconstrained least-squares importance fitting."""

    cap: float = 10.0
    """Maximum weight, as a multiple of the mean."""

    @property
    def weighs_examples(self) -> bool:
        return True

    @property
    def weighs_validation(self) -> str | None:
        return f"importance-weighted by the density ratio ({self.estimator})"

    def problems(self, config):
        return at_least_1(self, "cap")

    def example_weights(self, setup, model, say):
        """From the source's encoder, before the first step, on at most 20,000 target
        images."""
        labels = setup.data.labels
        sets = {"train": labels.train}
        if labels.validation is not None:
            sets["validation"] = labels.validation
        scorer = setup.scorer
        features = [scorer.features(*model, images) for images in sets.values()]
        some = subsample(setup.data.target_images, _MOST_TARGET)
        ratios = density_ratio(
            self.estimator,
            np.concatenate(features),
            scorer.features(*model, some),
            cap=self.cap,
            seed=setup.config.seed,
        )
        ends = np.cumsum([len(rows) for rows in features])[:-1]
        found = dict(zip(sets, np.split(ratios, ends)))
        weights = found["train"]
        say(
            f"density ratio by {self.estimator}: the effective sample size of "
            f"{len(weights):,} images is {effective_size(weights):,.0f}; the largest "
            f"weight is {weights.max():.1f} times the mean"
        )
        return found

    def report(self, results):
        value = results.get("importance_weighted_accuracy")
        if value is None:
            return Sections()
        label = "validation accuracy, importance-weighted by the density ratio"
        return Sections(headline={label: f"{100 * value:.1f} %"})


def density_ratio(
    method: str,
    source: Features,
    target: Features,
    *,
    cap: float = 10.0,
    seed: int = 0,
) -> Weights:
    """Weights [n] of the source examples, mean one, none above `cap` times it.

    Features are projected on the whitened principal components (at most 16) of both
    samples together, because distances mean little in many dimensions. Raises DataError
    if no source example resembles the target.
    """
    estimators = {"classifier": by_classifier, "kmm": kmm, "ulsif": ulsif}
    projected = _principal(source, target)
    weights = estimators[method](*projected, seed=seed).astype(np.float64)
    if not np.isfinite(weights).all() or weights.sum() <= 0:
        raise DataError(
            f"density_ratio={method}: no source image resembles the target, as the "
            "features of the two domains do not overlap. Use a method that aligns "
            "them, e.g. dann or mmd"
        )
    # Clipping lowers the mean, and dividing by it raises the clipped weights again: a
    # few rounds reach the fixed point.
    for _ in range(50):
        weights = np.minimum(weights / weights.mean(), cap)
    return weights / weights.mean()


def effective_size(weights: Weights) -> float:
    """(Σw)² / Σw²: the equivalent number of equally weighted examples (Kish)."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def _principal(
    source: Features, target: Features
) -> tuple[Float[np.ndarray, "_n k"], Float[np.ndarray, "_m k"]]:
    both = np.concatenate([source, target]).astype(np.float64)
    mean = both.mean(0)
    _, scale, basis = thin_svd(np.asarray(np.linalg.qr(both - mean, mode="r")))
    kept = min(_COMPONENTS, int((scale > 1e-6 * scale[0]).sum()))
    change = basis[:kept].T * (np.sqrt(len(both)) / scale[:kept])
    return (source - mean) @ change, (target - mean) @ change


def by_classifier(source: Features, target: Features, *, seed: int = 0) -> Weights:
    """w = (n_s / n_t) · p(target | x) / p(source | x) of a logistic regression.

    Bickel et al. 2007. It is fitted on the features and their squares, the exact form
    for Gaussians with diagonal covariances. The ridge is chosen on a held-out third.
    """
    from sklearn.linear_model import LogisticRegression

    def design(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, x**2], 1)

    x = design(np.concatenate([source, target]))
    scale = x.std(0) + 1e-12
    x, y = x / scale, np.repeat([0, 1], [len(source), len(target)])
    held = np.random.default_rng(seed).permutation(len(x))[: len(x) // 3]
    fit = np.setdiff1d(np.arange(len(x)), held)

    def loss(strength: float) -> float:
        model = LogisticRegression(C=strength, max_iter=2000).fit(x[fit], y[fit])
        margin = model.decision_function(x[held]) * (2 * y[held] - 1)
        return float(np.logaddexp(0, -margin).mean())

    best = min((1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0), key=loss)
    model = LogisticRegression(C=best, max_iter=2000).fit(x, y)
    odds = np.exp(np.clip(model.decision_function(design(source) / scale), -30, 30))
    return odds * len(source) / len(target)


def kmm(source: Features, target: Features, *, seed: int = 0) -> Weights:
    """Kernel mean matching (Huang et al. 2007).

    The w that makes the weighted source mean equal the target mean in kernel space:

    min_w ½ wᵀK w − κᵀw,  0 ≤ w ≤ 1000,  |mean w − 1| ≤ (√n − 1)/√n,

    K_ij = k(s_i, s_j), κ_i = (n / m) Σ_j k(s_i, t_j), k Gaussian with the median
    distance for σ. Solved by projected gradient, in random chunks of about 1000 source
    examples against at most as many target examples (only examples in the fit get
    weights).
    """
    rng = np.random.default_rng(seed)
    width = _median_distance(source, target, rng)
    weights = np.zeros(len(source))
    count = -(-len(source) // _CHUNK)
    for rows in np.array_split(rng.permutation(len(source)), count):
        other = target[rng.permutation(len(target))[:_CHUNK]]
        kernel = _gaussian(source[rows], source[rows], width)
        pull = _gaussian(source[rows], other, width).sum(1) * len(rows) / len(other)
        weights[rows] = _matched(kernel, pull)
    return weights


def _matched(kernel: np.ndarray, pull: Weights, rounds: int = 500) -> Weights:
    """Nesterov's projected gradient method on KMM's quadratic programme."""
    n = len(pull)
    slack = (np.sqrt(n) - 1) / np.sqrt(n)
    rate = 1.0 / np.linalg.norm(kernel, 2)
    now = before = np.ones(n)
    momentum = 1.0
    for _ in range(rounds):
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = now + (momentum - 1) / following * (now - before)
        step = ahead - rate * (kernel @ ahead - pull)
        before, now = now, _project(step, n * (1 - slack), n * (1 + slack))
        momentum = following
    return now


def _project(w: Weights, low: float, high: float, most: float = 1000.0) -> Weights:
    """The nearest point with 0 ≤ w ≤ most and low ≤ Σw ≤ high."""
    inside = np.clip(w, 0.0, most)
    total = inside.sum()
    if low <= total <= high:
        return inside
    goal = low if total < low else high
    left, right = w.min() - most, w.max()
    for _ in range(60):
        middle = (left + right) / 2
        if np.clip(w - middle, 0.0, most).sum() > goal:
            left = middle
        else:
            right = middle
    return np.clip(w - (left + right) / 2, 0.0, most)


def ulsif(source: Features, target: Features, *, seed: int = 0) -> Weights:
    """Unconstrained least-squares importance fitting (Kanamori et al. 2009).

    w(x) = max(0, Σ_l α_l k(x, c_l)), α = (H + λI)⁻¹ h, H = mean_s φφᵀ, h = mean_t φ:
    the least-squares fit of the ratio itself. Centres c are at most 100 target
    examples; kernel width and λ by 5-fold cross-validation of ½ mean_s w² − mean_t w.
    """
    rng = np.random.default_rng(seed)
    centres = target[rng.permutation(len(target))[:_CENTRES]]
    scale = _median_distance(source, target, rng)
    folds_s = np.array_split(rng.permutation(len(source)), 5)
    folds_t = np.array_split(rng.permutation(len(target)), 5)
    best = (np.inf, scale, 1.0)
    for width in scale * np.array([0.3, 0.5, 0.7, 1.0, 1.5]):
        phi_s, phi_t = (_gaussian(x, centres, width) for x in (source, target))
        for ridge in 10.0 ** np.arange(-3, 2):
            scores = []
            for held_s, held_t in zip(folds_s, folds_t):
                alpha = _least_squares(
                    np.delete(phi_s, held_s, 0), np.delete(phi_t, held_t, 0), ridge
                )
                inside = np.maximum(phi_s[held_s] @ alpha, 0.0)
                outside = np.maximum(phi_t[held_t] @ alpha, 0.0)
                scores.append((inside**2).mean() / 2 - outside.mean())
            best = min(best, (float(np.mean(scores)), float(width), float(ridge)))
    _, width, ridge = best
    phi_s, phi_t = (_gaussian(x, centres, width) for x in (source, target))
    return np.maximum(phi_s @ _least_squares(phi_s, phi_t, ridge), 0.0)


def _least_squares(phi_s: Features, phi_t: Features, ridge: float) -> np.ndarray:
    square = phi_s.T @ phi_s / len(phi_s)
    return np.linalg.solve(square + ridge * np.eye(len(square)), phi_t.mean(0))


def _gaussian(x: Features, y: Features, width: float) -> np.ndarray:
    square = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.exp(-np.maximum(square, 0.0) / (2 * width**2))


def _median_distance(source: Features, target: Features, rng) -> float:
    """The median pairwise distance in both samples together (at most 1000 of them)."""
    both = np.concatenate([source, target])
    some = both[rng.permutation(len(both))[:1000]]
    square = (some**2).sum(1)[:, None] + (some**2).sum(1)[None] - 2 * some @ some.T
    pairs = square[np.triu_indices(len(some), 1)]
    return float(max(np.sqrt(np.median(np.maximum(pairs, 0.0))), 1e-6))
