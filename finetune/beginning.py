"""Before the first step: weights from the source, and what terms need of whole sets."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from afterimage.checkpoints.transfer import Report
from afterimage.finetune import anchors
from afterimage.finetune.classifier import standardise
from afterimage.finetune.domains import shift
from afterimage.finetune.features import best_features
from afterimage.finetune.labels import labelled, of_head
from afterimage.finetune.neighbours import Projector
from afterimage.finetune.parts import Parts
from afterimage.finetune.propagation import propagated
from afterimage.finetune.source import load_weights
from afterimage.runs import Run, write_json
from afterimage.training.batches import eval_batches
from afterimage.training.state import State
from afterimage.training.sweep import spaced

_MOST_TO_STANDARDISE, _MOST_TO_SELECT = 20_000, 5_000
Tree = dict[str, Any]


def begin(parts: Parts, run: Run, say: Callable[[str], None]) -> State:
    """The state before the first step of a fresh run.

    Weights from the source, with the report in transfer.json; then the statistics of
    the features; then what terms need.
    """
    config, chosen = parts.config, parts.chosen
    params, stats = parts.params, parts.stats
    if run.is_main_process:
        write_json(run.path / "labels.json", chosen.record(config))
    if config.mode != "scratch":
        params, stats, reports = load_weights(
            parts.opened.source, params, stats, config.may_differ
        )
        say(_transferred(reports["params"]))
        if run.is_main_process:
            found = {name: report.to_dict() for name, report in reports.items()}
            write_json(run.path / "transfer.json", {"from": config.from_, **found})
    some = spaced(parts.known, _MOST_TO_STANDARDISE)
    batches = eval_batches(some, config.batch_size)
    stats = standardise(parts.classifier, params, stats, batches, list(parts.heads))
    if config.keep_features is not None:
        stats = _selected(parts, params, stats, say)
    return parts.fresh(params, _prepared(parts, params, stats, say))


def _selected(
    parts: Parts, params: Tree, stats: Tree, say: Callable[[str], None]
) -> Tree:
    """`stats` with the features that each head is to read."""
    config, heads = parts.config, dict(stats["heads"])
    assert config.keep_features is not None
    for head, scorer in parts.scorers.items():
        images = of_head(parts.chosen.train, head)
        assert images is not None
        some = spaced(images, _MOST_TO_SELECT)
        assert some.labels is not None
        x = scorer.all_features(params, stats, some)
        kept = best_features(
            config.feature_selection,
            x,
            some.labels,
            config.keep_features,
            seed=config.seed,
        )
        say(
            f"{head}: {len(kept)} of {x.shape[1]} features kept by "
            f"{config.feature_selection} on {len(some):,} labelled training images"
        )
        heads[head] = {**heads[head], "kept": jnp.asarray(kept)}
    return {**stats, "heads": heads}


def _prepared(
    parts: Parts, params: Tree, stats: Tree, say: Callable[[str], None]
) -> Tree:
    """`stats` with Fisher information, propagated classes, weights of examples."""
    config, kept = parts.config, stats.get("anchors")
    if config.l2_sp_fisher:
        assert kept is not None
        kept["fisher"] = anchors.measure_fisher(
            parts.classifier, kept, parts.chosen.train
        )
    weights, held = shift.source_weights(config, parts.chosen.train), []
    if config.density_ratio != "none":
        assert parts.target is not None
        validation = parts.chosen.validation
        sets = [parts.chosen.train, *([] if validation is None else [validation])]
        ratios, *held = shift.example_weights(
            config, parts.scorer, (params, stats), sets, parts.target.images
        )
        say(shift.describe_weights(config, ratios))
        weights = weights * ratios
    if config.propagation:
        stats["propagated"] = {"class": _propagated(parts, params, stats, say)}
    if config.weighs_examples:
        weights = weights / weights.mean()
        stats["examples"] = {"weight": jnp.asarray(weights, jnp.float32)}
        if held:
            stats["examples"]["validation"] = jnp.asarray(held[0], jnp.float32)
    return stats


def _propagated(
    parts: Parts, params: Tree, stats: Tree, say: Callable[[str], None]
) -> Array:
    """The class of every image without a label, by propagation of the labels."""
    config, images = parts.config, parts.opened.unlabelled
    known = labelled(parts.chosen.train)
    assert images is not None
    assert known is not None
    say(f"Propagating the labels over the neighbours of {len(images):,} images ...")

    def maps(model: tuple[Tree, Tree], images: Array) -> list[Array]:
        pixels = parts.classifier.preprocessing.normalise(images)
        return parts.classifier.maps(*model, pixels)[0]

    project = Projector(maps, (params, stats), parts.sweep, config.seed)
    classes = propagated(project, known, images, len(parts.chosen.class_names))
    reached = (classes >= 0).sum()
    say(f"{len(known):,} labels propagated to {reached:,} of {len(images):,} images")
    return jnp.asarray(classes, jnp.int32)


def _transferred(report: Report) -> str:
    """The totals and every leaf that was not loaded; transfer.json has all of them."""
    lines = str(report).splitlines()
    return "\n".join(line for line in lines if not line.startswith("loaded "))
