"""Rules that choose the step to keep, with and without labels of the target domain.

Alignment has no target labels to choose a step by. Each rule states what it uses; every
result of the oracle says that it used target labels.

validation  a measure on labelled source images (the default); with density ratios
            they are weighted as in training, which estimates the target's measure
            (Sugiyama, Krauledat & Müller 2007, "Covariate shift adaptation by
            importance weighted cross validation")
entropy     the lowest mean entropy of the target predictions (Morerio et al. 2018)
infomax     the highest H(mean p) − mean H(p) of the target predictions (Shi & Sha
            2012): entropy alone is best when everything falls into one class
snd         the highest soft neighbourhood density (Saito et al. 2021)
mixval      the highest agreement on mixed target images (Hu et al. 2023)
neighbours  the highest mutual information of the target predictions of neighbours in
            the pretrained features
oracle      the accuracy on labelled target images: an upper bound, not a method
last        the last step
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from afterimage.data import ImageSet, array_set
from afterimage.encoder import Encoder
from afterimage.errors import UserError
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.data import RunData
from afterimage.finetune.scoring import softmax

LABEL_FREE: dict[str, tuple[Literal["min", "max"], str]] = {
    "entropy": ("min", "lowest mean entropy"),
    "infomax": ("max", "highest mutual information"),
    "snd": ("max", "highest soft neighbourhood density"),
    "mixval": ("max", "highest agreement on mixed images"),
    "neighbours": ("max", "highest mutual information between neighbours"),
}
ORACLE = "oracle_accuracy"
WEIGHTED = "importance_weighted_"
"""Prefix of a measure on validation images that are weighted by density ratios."""
MIXVAL = "target_mixval"
NEIGHBOURS = "target_neighbours"
_SND_TEMPERATURE = 0.05
_HEAVIER = 0.55


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the step to keep is chosen: the measure, and a description."""

    metric: str | None
    """The evaluation metric that chooses the step; None keeps the last."""
    direction: Literal["min", "max"]
    text: str


def choose_rule(config: FinetuneConfig, data: RunData) -> Rule:
    """The rule of this run: from `config.select`, or from the available data."""
    labels, target = data.labels, data.target
    where = target.name if target is not None else ""
    if config.select in LABEL_FREE:
        if config.select == "neighbours":
            _check_neighbours(config, data)
        direction, text = LABEL_FREE[config.select]
        words = f"{config.select}: {text} of the predictions on {where}, without labels"
        return Rule(f"target_{config.select}", direction, words)
    if config.select == "oracle":
        words = (
            f"oracle: best accuracy on labelled training images of {where}. It uses "
            "target labels, so it is an upper bound"
        )
        if target is None or target.oracle is None:
            raise UserError(
                f"select='oracle' needs labels of {where or 'a target'}; without "
                f"them, use validation, {', '.join(LABEL_FREE)} or last"
            )
        return Rule(ORACLE, "max", words)
    if labels.validation is None:
        return Rule(None, "max", labels.rule)
    measure = config.task.measure(config)
    direction = "min" if measure == "loss" else "max"
    source = " (source domain)" if target is not None else ""
    words = labels.rule + source
    for method in config.methods:
        if method.weighs_validation is not None:
            words += f", {method.weighs_validation}"
            measure = WEIGHTED + measure
    if config.columns:
        words, measure = f"{words}, mean over tasks", f"mean_{measure}"
    return Rule(measure, direction, words)


def image_shape(encoder: Encoder) -> tuple[int, int, int]:
    """(height, width, channels) of the images that an encoder takes."""
    return (*encoder.preprocessing.image_size, encoder.preprocessing.channels)


def _check_neighbours(config: FinetuneConfig, data: RunData) -> None:
    """Raises UserError if the rule needs source features but the source takes images of
    another shape."""
    takes, given = image_shape(data.source.encoder), data.splits.train.shape
    if given != takes:
        raise UserError(
            f"select='neighbours' uses the features of {config.from_}, which needs "
            f"images {takes} (height, width, channels), not {given}: leave "
            "--image-size and --channels out, or use mixval or infomax"
        )


def label_free(logits: Float[np.ndarray, "n c"]) -> dict[str, float]:
    """The label-free measures of target predictions, nats."""
    p = softmax(logits)
    return {
        "target_entropy": float(_entropy(p).mean()),
        "target_infomax": infomax(logits),
        "target_snd": soft_neighbourhood_density(p),
    }


def infomax(logits: Float[np.ndarray, "n c"]) -> float:
    """H(mean p) − mean H(p), nats: high if confident, and spread over classes."""
    p = softmax(logits)
    return float(_entropy(p.mean(0)[None])[0] - _entropy(p).mean())


def ensemble_agreement(
    logits: Sequence[Float[np.ndarray, "n c"]],
) -> list[float]:
    """How often each of several models agrees with the mean of all, in [0, 1].

    The mean of their probabilities replaces the labels: if the models make different
    errors, it errs less often than most of them, and never more often than the worst.
    It can compare runs of any methods, where the other rules favour methods whose loss
    they resemble (Hu et al. 2024, "Towards reliable model selection for unsupervised
    domain adaptation", §4, EnsV).
    """
    vote = np.mean([softmax(one) for one in logits], axis=0).argmax(1)
    return [float((one.argmax(1) == vote).mean()) for one in logits]


def neighbour_information(
    logits: Float[np.ndarray, "n c"], neighbours: Int[np.ndarray, "n k"]
) -> float:
    """I(y; y') of the classes predicted for an image and its `neighbours`, nats.

    Σ_cd P_cd log(P_cd / P_c P_d), P the mean of p(x) p(x')ᵀ over images and neighbours,
    made symmetric. Neighbours mostly share a class: a model that separates them is
    wrong on one of them, and one that predicts the same class everywhere scores zero.
    Invariant information clustering (Ji et al. 2019, §3.1) trains with this quantity
    between an image and its distorted copy; here it chooses models, with neighbours
    from the pretrained features, which no method has changed.
    """
    p = softmax(logits)
    pairs = np.sum([p.T @ p[column] for column in neighbours.T], axis=0)
    pairs = (pairs + pairs.T) / (2 * pairs.sum())
    alone = pairs.sum(1)
    ratio = np.maximum(pairs, 1e-12) / np.maximum(np.outer(alone, alone), 1e-12)
    return float((pairs * np.log(ratio)).sum())


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, 1e-12))).sum(1)


def soft_neighbourhood_density(p: Float[np.ndarray, "n c"]) -> float:
    """The mean entropy of softmax(cosine similarity / 0.05) over all other rows.

    High where each prediction has many near neighbours (Saito et al. 2021, "Tune it the
    right way"), nats, at most log(n − 1).
    """
    unit = p / np.linalg.norm(p, axis=1, keepdims=True)
    similar = unit @ unit.T / _SND_TEMPERATURE
    np.fill_diagonal(similar, -np.inf)
    return float(_entropy(softmax(similar)).mean())


def mixed_agreement(
    images: ImageSet,
    logits: Float[np.ndarray, "n c"],
    predict: Callable[[ImageSet], Float[np.ndarray, "m c"]],
) -> float:
    """How often a mix of two images is predicted as the heavier one, in [0, 1].

    For x = 0.55 x_i + 0.45 x_j, is argmax p(x) = argmax p(x_i)? The result is the mean
    of two shares: of pairs with the same prediction, inside the classes, and of pairs
    with different predictions, which test the borders; a share is 0 without such pairs.
    No method here learns from mixes, while several lower the entropy that other rules
    use (Hu et al. 2023, "Mixed samples as probes for unsupervised model selection in
    domain adaptation", §3, who rank the models by each share and take the mean rank).
    `logits` are those of the images themselves.
    """
    pixels = images.gather(np.arange(len(images)))
    classes = logits.argmax(1)
    order = np.random.default_rng(0).permutation(len(images))
    # Adjacent images mostly share a class after a stable sort by class, not before it.
    alike = order[np.argsort(classes[order], kind="stable")]
    shares = []
    for first, wanted in ((alike, True), (order, False)):
        second = np.roll(first, 1)
        pairs = (classes[first] == classes[second]) == wanted
        pairs &= first != second
        if not pairs.any():
            shares.append(0.0)
            continue
        mixes = [
            (_HEAVIER * pixels[i] + (1 - _HEAVIER) * pixels[j]).round().astype(np.uint8)
            for i, j in zip(first[pairs], second[pairs])
        ]
        mixed = array_set(np.stack(mixes), None, None, images.name)
        shares.append((predict(mixed).argmax(1) == classes[first[pairs]]).mean())
    return float(np.mean(shares))
