"""`afterimage select`: compares finished classifiers on images without labels."""

import sys
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from afterimage.checkpoints.names import spelling
from afterimage.classifier import load_classifier
from afterimage.data import ImageSet
from afterimage.encoder import Encoder, load_encoder
from afterimage.errors import UserError
from afterimage.evaluation.configs import EvaluateConfig, is_classifier
from afterimage.finetune.evaluate import images_for, sweep_for
from afterimage.finetune.neighbours import nearest_images
from afterimage.finetune.scoring import Scorer
from afterimage.finetune.select_config import SelectConfig
from afterimage.finetune.selection import (
    ensemble_agreement,
    image_shape,
    infomax,
    neighbour_information,
)
from afterimage.models.classifier import HEAD
from afterimage.training.batches import subsample


class _Read(NamedTuple):
    """One run's predictions for the images."""

    run: str
    names: tuple[str, ...]
    """Names of its classes."""
    images: ImageSet
    logits: Float[np.ndarray, "n classes"]


def select(config: SelectConfig) -> dict[str, Any]:
    """The runs, best first, and "chosen", the first of them, by "rule".

    For each run: "neighbours" (with an encoder only), the mutual information between
    its predictions for neighbouring images, nats; "agreement" with the mean of all
    runs; "infomax", the mutual information of its predictions, nats. The order is by
    "neighbours" with an encoder, else by "agreement". Also "data", "split", "examples".

    Raises:
      UserError: too few runs, runs with different classes, or runs that take different
        images.
      CheckpointError: a classifier or the encoder is missing or damaged.
    """
    for run in config.from_:
        if not is_classifier(run):
            load_classifier(run)  # reports missing files before any work
    encoder = None if config.encoder is None else load_encoder(config.encoder)
    reads: list[_Read] = []
    for number, run in enumerate(config.from_, 1):
        print(f"{number}/{len(config.from_)}  {spelling(str(run))}", file=sys.stderr)
        reads.append(_read(config, run))
        _compare(reads[0], reads[-1])
    logits = [read.logits for read in reads]
    found = [
        {"run": read.run, "agreement": share, "infomax": infomax(read.logits)}
        for read, share in zip(reads, ensemble_agreement(logits))
    ]
    by, rule = "agreement", "highest agreement with the mean of all predictions (EnsV)"
    if encoder is not None:
        by = "neighbours"
        rule = f"predictions most alike among neighbours in {config.encoder}"
        near = _neighbours(config, encoder, reads[0].images)
        for one, told in zip(found, logits):
            one[by] = neighbour_information(told, near)
    found.sort(key=lambda one: -one[by])
    return {
        "chosen": found[0]["run"],
        "rule": rule,
        "runs": found,
        "data": reads[0].images.name,
        "split": config.split,
        "examples": len(reads[0].images),
    }


def _neighbours(
    config: SelectConfig, encoder: Encoder, images: ImageSet
) -> Int[np.ndarray, "n k"]:
    """Rows of each image's neighbours in the features of `encoder`."""
    if images.shape != image_shape(encoder):
        raise UserError(
            f"encoder={config.encoder} needs images {image_shape(encoder)}, but the "
            f"runs need {images.shape} (height, width, channels): give the encoder "
            "that they started from"
        )
    return nearest_images(encoder, images, sweep_for(config.batch_size))


def _read(config: SelectConfig, run: str) -> _Read:
    loaded = load_classifier(run)
    loaded.require_classes(HEAD, f"{run}: to choose between runs")
    own = EvaluateConfig(
        from_=run,
        data=config.data,
        split=config.split,
        batch_size=config.batch_size,
        on_bad_image=config.on_bad_image,
        cache=config.cache,
        **config.settings(),
    )
    _, images = images_for(loaded, own)
    images = subsample(images, config.most)
    scorer = Scorer(loaded.network, HEAD, sweep_for(config.batch_size))
    logits = scorer.logits(loaded.params, loaded.stats, images)
    return _Read(run, loaded.class_names[HEAD], images, logits)


def _compare(first: _Read, other: _Read) -> None:
    if other.names != first.names:
        raise UserError(
            f"{other.run} has the classes {', '.join(other.names)}, but {first.run} "
            f"has {', '.join(first.names)}: all runs must have the same classes"
        )
    if list(other.images.ids) != list(first.images.ids):
        raise UserError(
            f"{other.run} can read {len(other.images)} images, but {first.run} "
            f"{len(first.images)}: give data that every run can read completely"
        )


def text(found: dict[str, Any]) -> str:
    """The comparison for a terminal."""
    width = max(len(one["run"]) for one in found["runs"])
    columns = {"agreement": "agrees with the mean", "infomax": "infomax, nats"}
    if "neighbours" in found["runs"][0]:
        columns = {"neighbours": "neighbours, nats", **columns}
    lines = [
        f"{found['data']}, {found['examples']} images, without labels",
        "  ".join([f"{'run':{width}}", *columns.values()]),
    ]
    for one in found["runs"]:
        cells = {"agreement": f"{100 * one['agreement']:.1f} %"}
        cells |= {k: f"{one[k]:.3f}" for k in columns if k not in cells}
        row = [f"{cells[k]:>{len(head)}}" for k, head in columns.items()]
        lines.append("  ".join([f"{one['run']:{width}}", *row]))
    return "\n".join([*lines, f"best: {found['chosen']}, by {found['rule']}"])
