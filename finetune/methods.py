"""From settings to a stage: which terms a run minimises, and what they need."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int32

from afterimage.checkpoints.trees import flatten
from afterimage.data.augmentations import make_augment
from afterimage.errors import UserError
from afterimage.finetune import streams
from afterimage.finetune.classifier import Classifier, HeadConfig
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.labels import HEAD, Chosen, labelled
from afterimage.finetune.modes import Recipe, make_phases
from afterimage.finetune.teacher import Teacher
from afterimage.finetune.terms.adversarial import cdan, dann
from afterimage.finetune.terms.anchored import delta, kl_to_source, l2, l2_sp
from afterimage.finetune.terms.classification import balanced_weights, cross_entropy
from afterimage.finetune.terms.consistency import pseudo_labels
from afterimage.finetune.terms.discrepancy import coral_term, jmmd_term, mmd_term
from afterimage.finetune.terms.distillation import (
    distil_features,
    distil_logits,
    distil_relations,
)
from afterimage.finetune.terms.multisource import MDAN_WEIGHT, mdan
from afterimage.finetune.terms.tasks import pcgrad, uncertain
from afterimage.finetune.terms.transport import jdot_term
from afterimage.training.stage import Stage
from afterimage.training.terms import Term

_ALIGN_WEIGHTS = {"coral": 10.0, "mdan": MDAN_WEIGHT}
_DISTIL_WEIGHTS = {"relational": 25.0}


def make_terms(
    config: FinetuneConfig, chosen: Chosen, head: HeadConfig, width: int
) -> tuple[Term, ...]:
    """Cross-entropy and everything else that `config` asks for.

    `width` is the number of features the head reads.
    """
    terms = _labelled(config, chosen, head.classes)
    main = terms[0]
    if config.l2_sp:
        terms.append(l2_sp(config.l2_sp, fisher=config.l2_sp_fisher))
    if config.l2_head:
        terms.append(l2(config.l2_head))
    if config.kl:
        terms.append(kl_to_source(config.kl, temperature=config.kl_temperature))
    if config.delta:
        terms.append(delta(config.delta))
    if config.unlabelled is not None:
        term = pseudo_labels(
            config.unlabelled_weight,
            config.confidence,
            head=HEAD,
            frequencies=class_frequencies(chosen)
            if config.distribution_alignment
            else None,
            running=config.alignment_momentum > 0,
            counted=config.alignment_frequencies == "predicted",
            propagation=config.propagation,
        )
        terms.append(term)
    default = tuple(_ALIGN_WEIGHTS.get(name, 1.0) for name in config.align)
    for name, weight in zip(config.align, config.align_weight or default):
        if name == "mdan":
            count, gamma = len(config.sources) + 1, config.mdan_gamma
            settings: dict[str, Any] = {"head": HEAD, "seed": config.seed}
            terms.append(mdan(main, width, count, weight, gamma=gamma, **settings))
        else:
            terms.append(_alignment(config, name, weight, head.classes, width))
    return tuple(terms)


def distillation(
    config: FinetuneConfig, width: int, teacher_width: int, head: str
) -> tuple[Term, ...]:
    """The terms of `config.distilled`, between features of these two lengths."""
    default = tuple(_DISTIL_WEIGHTS.get(name, 1.0) for name in config.distilled)
    terms = []
    for name, weight in zip(config.distilled, config.distil_weight or default):
        if name == "logits":
            terms.append(distil_logits(weight, config.distil_temperature, head=head))
        elif name == "relational":
            terms.append(distil_relations(weight, head=head))
        else:
            widths = (width, teacher_width)
            terms.append(distil_features(*widths, weight, head=head, seed=config.seed))
    return tuple(terms)


def _labelled(config: FinetuneConfig, chosen: Chosen, classes: int) -> list[Term]:
    """The cross-entropy of every task, the labels' own first, as they are weighed."""
    weights = config.task_weights or (1.0,) * (1 + len(config.tasks))
    common: dict[str, Any] = {
        "label_smoothing": config.label_smoothing,
        "examples": "train/weight" if config.weighs_examples else None,
    }
    terms = [
        cross_entropy(
            classes,
            class_weights=_class_weights(config, chosen),
            head=HEAD,
            weight=weights[0] * config.label_weight,
            **common,
        )
    ]
    for task, weight in zip(config.tasks, weights[1:], strict=True):
        count = len(chosen.train.tasks[task].class_names)
        terms.append(
            cross_entropy(count, head=task, task=task, weight=weight, **common)
        )
    if config.task_weighting == "uncertainty":
        return [uncertain(term) for term in terms]
    return terms


def _alignment(
    config: FinetuneConfig, name: str, weight: float, classes: int, width: int
) -> Term:
    plain = {"mmd": mmd_term, "jmmd": jmmd_term, "coral": coral_term}
    if name in plain:
        return plain[name](weight, head=HEAD)
    if name == "jdot":
        return jdot_term(weight, config.jdot_mass, head=HEAD)
    if name == "dann":
        return dann(width, weight, head=HEAD, seed=config.seed)
    settings: dict[str, Any] = {"head": HEAD, "seed": config.seed}
    return cdan(width, classes, weight, by_entropy=name == "cdan-e", **settings)


def own_params(terms: tuple[Term, ...]) -> dict[str, Any]:
    """`{"terms": {NAME: parameters}}` of the terms that have some, else empty."""
    own = {term.name: dict(term.params) for term in terms if term.params}
    return {"terms": own} if own else {}


def make_stage(
    config: FinetuneConfig,
    classifier: Classifier,
    params: Mapping[str, Any],
    terms: tuple[Term, ...],
    steps: int,
    *,
    teacher: Teacher | None = None,
) -> Stage:
    """The phases of the mode over these parameters, and the supply of the terms."""
    recipe = Recipe(
        encoder_lr=config.encoder_lr,
        layer_decay=config.layer_decay,
        unfreeze_stages=config.unfreeze_stages,
        unfreeze=config.unfreeze,
        head_steps=config.head_steps,
        head_lr=config.head_lr,
    )
    paths = list(flatten(params))
    phases = make_phases(config.mode, paths, terms, steps, config, recipe)
    supply = streams.supply(
        classifier,
        make_augment(config.augment),
        weak=make_augment(config.weak_augment or config.augment),
        strong=make_augment(config.strong_augment),
        momentum=config.alignment_momentum,
        streams=stream_names(config),
        statistics=config.domain_statistics,
        teacher=teacher,
        composing=config.compose,
    )
    combine = pcgrad if config.task_weighting == "pcgrad" else None
    return Stage(phases=phases, supply=supply, combine=combine)


def stream_names(config: FinetuneConfig) -> tuple[str, ...]:
    """The streams of images: the target is one where it is aligned or composed with."""
    named = {
        streams.TRAIN: True,
        streams.TARGET: bool(config.align) or config.compose != "none",
        streams.UNLABELLED: config.unlabelled is not None,
    }
    return tuple(name for name, used in named.items() if used)


def _class_weights(config: FinetuneConfig, chosen: Chosen) -> tuple[float, ...] | None:
    if config.class_weights == "none":
        return None
    names = chosen.class_names
    if config.class_weights == "balanced":
        return balanced_weights(_class_indices(chosen), len(names))
    weights = tuple(float(w) for w in config.class_weights.split(","))
    if len(weights) != len(names):
        raise UserError(
            f"class_weights has {len(weights)} numbers for {len(names)} classes: give "
            f"one each, in the order {', '.join(names)}"
        )
    return weights


def class_frequencies(chosen: Chosen) -> tuple[float, ...]:
    """The share of each class among the labelled training images."""
    labels = _class_indices(chosen)
    counts = np.bincount(labels, minlength=len(chosen.class_names))
    return tuple((counts / len(labels)).tolist())


def _class_indices(chosen: Chosen) -> Int32[np.ndarray, " n"]:
    """The classes of the training images that have one."""
    images = labelled(chosen.train)
    assert images is not None
    assert images.labels is not None
    return images.labels
