"""Several finished classifiers compared on images without labels."""

import sys
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from afterimage.data import ImageSet
from afterimage.errors import UserError
from afterimage.evaluate_command import EvaluateConfig, is_classifier
from finetune.artefact import load_classifier
from finetune.domains.selection import ensemble_agreement, infomax
from finetune.evaluate import images_for, sweep_for
from finetune.labels import HEAD
from finetune.scoring import Scorer
from finetune.select_command import SelectConfig


class _Read(NamedTuple):
    """What one run says of the images."""

    run: str
    names: tuple[str, ...]
    """Of its classes."""
    images: ImageSet
    logits: Float[np.ndarray, "n classes"]


def select(config: SelectConfig) -> dict[str, Any]:
    """The runs with their `ensemble_agreement`, best first, and "chosen", the first.

    Also of each: "infomax", the mutual information of its predictions, nats; and
    "data", "split", "examples".

    Raises:
      UserError: fewer than three runs; runs of different classes, or that cannot read
        the same images.
      CheckpointError: there is no classifier, or it is damaged.
    """
    for run in config.from_:
        if not is_classifier(run):
            load_classifier(run)  # says what is missing, before any work
    reads: list[_Read] = []
    for number, run in enumerate(config.from_, 1):
        print(f"{number}/{len(config.from_)}  {run}", file=sys.stderr)
        reads.append(_read(config, run))
        _compare(reads[0], reads[-1])
    logits = [read.logits for read in reads]
    found = [
        {"run": read.run, "agreement": share, "infomax": infomax(read.logits)}
        for read, share in zip(reads, ensemble_agreement(logits))
    ]
    found.sort(key=lambda one: -one["agreement"])
    return {
        "chosen": found[0]["run"],
        "rule": "highest agreement with the mean of all predictions (EnsV)",
        "runs": found,
        "data": reads[0].images.name,
        "split": config.split,
        "examples": len(reads[0].images),
    }


def _read(config: SelectConfig, run: str) -> _Read:
    loaded = load_classifier(run)
    own = EvaluateConfig(
        from_=run,
        data=config.data,
        split=config.split,
        batch_size=config.batch_size,
        on_bad_image=config.on_bad_image,
        cache=config.cache,
    )
    _, images = images_for(loaded, own)
    scorer = Scorer(loaded.classifier, HEAD, sweep_for(own))
    logits = scorer.logits(loaded.params, loaded.stats, images)
    return _Read(run, loaded.class_names[HEAD], images, logits)


def _compare(first: _Read, other: _Read) -> None:
    if other.names != first.names:
        raise UserError(
            f"{other.run} tells {', '.join(other.names)} apart, {first.run} "
            f"{', '.join(first.names)}: select compares runs of the same classes"
        )
    if list(other.images.ids) != list(first.images.ids):
        raise UserError(
            f"{other.run} read {len(other.images)} images, {first.run} others "
            f"({len(first.images)}): give data of which each run can read every image"
        )
