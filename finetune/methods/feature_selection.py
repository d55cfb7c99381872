"""Feature selection: which of an encoder's features a head reads.

Features are scored on labelled training images only, before the first step. The best
are kept for the whole run: `stats/heads/NAME/kept` holds their positions, so that
checkpoints and the classifier artefact use the same ones.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Int32

from afterimage.fields import at_least_1
from afterimage.finetune.data import known_labels, of_head
from afterimage.finetune.method import METHODS, Method, Sections
from afterimage.models.classifier import HEAD
from afterimage.training.batches import subsample

_MOST = 5_000
Features = Float[np.ndarray, "n d"]
Labels = Int[np.ndarray, " n"]
Scores = Float[np.ndarray, " d"]


@METHODS.add("feature-selection")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSelection(Method):
    """The head reads only the features that score best on the labels."""

    score: Literal["fisher", "mutual-information", "l1"] = "mutual-information"
    """How features are scored. fisher: variance between classes divided by variance
    within them; mutual-information: between each feature and the label; l1: weights of
    a sparse linear classifier."""

    keep: int = 64
    """Number of features to keep."""

    def problems(self, config):
        found = at_least_1(self, "keep")
        if not config.mode.loads_source:
            found.append(
                f"mode {config.mode.name} has no features to score, as it starts from "
                "random weights"
            )
        return found

    def change_head(self, head):
        return dataclasses.replace(head, keep=self.keep)

    def fit_heads(self, setup, model, say):
        heads = dict(model[1]["heads"])
        for head, scorer in setup.scorers.items():
            images = of_head(setup.data.labels.train, head)
            assert images is not None
            some = subsample(images, _MOST)
            x = scorer.all_features(*model, some)
            seed = setup.config.seed
            kept = best_features(
                self.score, x, known_labels(some), self.keep, seed=seed
            )
            say(
                f"{head}: kept {len(kept)} of {x.shape[1]} features, chosen by "
                f"{self.score} on {len(some):,} labelled training images"
            )
            heads[head] = {**heads[head], "kept": jnp.asarray(kept)}
        return heads

    def results(self, setup, model):
        known = {head: model[1]["heads"][head] for head in setup.heads}
        kept = {h: np.asarray(part["kept"]).tolist() for h, part in known.items()}
        size = int(known[HEAD]["mean"].size)
        return {"features": {"method": self.score, "of": size, "kept": kept}}

    def report(self, results):
        found = results["features"]
        rows = {"method": found["method"], "of": str(found["of"])}
        for head, kept in found["kept"].items():
            rows[f"kept by {head} ({len(kept)})"] = ", ".join(map(str, kept))
        return Sections(tables={"Feature selection": rows})


def fisher_score(x: Features, labels: Labels) -> Scores:
    """F_j = Σ_c n_c (μ_cj − μ_j)² / Σ_c n_c σ²_cj, ≥ 0; infinite if only the numerator
    is not 0 (Gu et al. 2012, "Generalized Fisher score", §2)."""
    between, within = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    mean = x.mean(0, keepdims=True)
    for label in np.unique(labels):
        rows = x[labels == label]
        between += len(rows) * np.square(rows.mean(0) - mean[0])
        within += len(rows) * rows.var(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(between / within, nan=0.0, posinf=np.inf)


def mutual_information(x: Features, labels: Labels, *, seed: int) -> Scores:
    """I(x_j; y) of each single feature, nats, by three nearest neighbours (Ross 2014,
    as in scikit-learn's `mutual_info_classif`)."""
    from sklearn.feature_selection import mutual_info_classif

    found = mutual_info_classif(x, labels, n_neighbors=3, random_state=seed)
    return np.asarray(found, np.float64)


def l1_weights(x: Features, labels: Labels, keep: int, *, seed: int) -> Scores:
    """Σ_c |w_cj| of linear classifiers with an L1 penalty, one per class.

    The penalty is the strongest 1/C, C = 2^i from 2^−10 to 2^6, that leaves `keep`
    features a weight (scikit-learn's `LinearSVC`, its "L1-based feature selection").

    Redundant features share one weight; unlike scores of single features, this does
    not keep both.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    settings: dict[str, Any] = {"penalty": "l1", "dual": False, "max_iter": 5000}
    settings |= {"random_state": seed}
    weights = np.zeros(x.shape[1])
    for power in range(-10, 7):
        model = LinearSVC(C=2.0**power, **settings)
        with warnings.catch_warnings():
            # Scores are needed, not a classifier: near convergence is enough.
            warnings.simplefilter("ignore", ConvergenceWarning)
            weights = np.abs(model.fit(x, labels).coef_).sum(0)
        if np.count_nonzero(weights) >= keep:
            break
    return weights


def best_features(
    method: str, x: Features, labels: Labels, keep: int, *, seed: int
) -> Int32[np.ndarray, " k"]:
    """Sorted positions of the `keep` best features; ties go to the first.

    `method` is fisher, mutual-information or l1; `x` is standardised.
    """
    if method == "fisher":
        scores = fisher_score(x, labels)
    elif method == "mutual-information":
        scores = mutual_information(x, labels, seed=seed)
    else:
        scores = l1_weights(x, labels, keep, seed=seed)
    best = np.argsort(-scores, kind="stable")[:keep]
    return np.sort(best).astype(np.int32)
