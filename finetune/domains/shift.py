"""Covariate and label shift as a run uses them: over image sets, through a model."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from afterimage.data import ImageSet
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.domains.density import density_ratio, effective_size
from afterimage.finetune.domains.pooling import SOURCE
from afterimage.finetune.domains.priors import (
    bbse,
    em,
    frequencies,
    logit_shift,
    softmax,
)
from afterimage.finetune.labels import HEAD, Chosen, labelled
from afterimage.finetune.scoring import Scorer
from afterimage.finetune.streams import Target
from afterimage.training.sweep import spaced

_MOST_TARGET = 20_000
Model = tuple[Any, Any]
"""(params, stats)"""


def example_weights(
    config: FinetuneConfig,
    scorer: Scorer,
    model: Model,
    sources: Sequence[ImageSet],
    target: ImageSet,
) -> list[Float[np.ndarray, " _n"]]:
    """p_target / p_source of each image of each source set, by the features the head
    reads: one estimate for all of them, so that what is learned from and what a step
    is chosen by are weighed alike.

    The encoder is the source's, before the first step; at most 20,000 target images.
    """
    features = [scorer.features(*model, images) for images in sources]
    ratios = density_ratio(
        config.density_ratio,
        np.concatenate(features),
        scorer.features(*model, spaced(target, _MOST_TARGET)),
        cap=config.density_cap,
        seed=config.seed,
    )
    return np.split(ratios, np.cumsum([len(rows) for rows in features])[:-1])


def source_weights(config: FinetuneConfig, images: ImageSet) -> Float[np.ndarray, " n"]:
    """The weight of each image by the source it comes from; 1 where none are given."""
    if not config.source_weights:
        return np.ones(len(images))
    return np.asarray(config.source_weights)[images.tasks[SOURCE].values]


def describe_weights(config: FinetuneConfig, weights: np.ndarray) -> str:
    """One line: how many examples the weighted ones are worth, and the largest."""
    return (
        f"density ratio by {config.density_ratio}: {len(weights):,} images weigh as "
        f"much as {effective_size(weights):,.0f}, the largest weight is "
        f"{weights.max():.1f} times the mean"
    )


def source_frequencies(chosen: Chosen) -> Float[np.ndarray, " c"]:
    """The training images' class frequencies; DataError where one has none."""
    images = labelled(chosen.train)
    assert images is not None
    assert images.labels is not None
    return frequencies(images.labels, len(chosen.class_names))


def correct_labels(
    config: FinetuneConfig,
    scorer: Scorer,
    model: Model,
    chosen: Chosen,
    target: Target,
) -> tuple[Any, dict[str, Any]]:
    """(params, record): the head's bias moved by log(q / p), and both frequencies.

    BBSE's confusions are measured on validation images where there are any, else on
    the training images, which flatters the classifier: the record says which.
    """
    params, stats = model
    known = source_frequencies(chosen)
    some = spaced(target.images, _MOST_TARGET)
    of_target = softmax(scorer.logits(params, stats, some))
    held = labelled(chosen.validation) or labelled(chosen.train)
    assert held is not None
    if config.label_shift == "bbse":
        assert held.labels is not None
        of_source = softmax(scorer.logits(params, stats, held))
        estimate = bbse(of_source, held.labels, of_target)
    else:
        estimate = em(of_target, known)
    moved = jnp.asarray(logit_shift(estimate, known), jnp.float32)
    head = params["heads"][HEAD]
    linear = {**head["linear"], "bias": head["linear"]["bias"] + moved}
    heads = {**params["heads"], HEAD: {**head, "linear": linear}}
    record = {
        "method": config.label_shift,
        "source_frequencies": known.tolist(),
        "target_frequencies": estimate.tolist(),
        "confusions_on": None if config.label_shift == "em" else held.name,
    }
    return {**params, "heads": heads}, record
