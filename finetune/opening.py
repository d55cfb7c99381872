"""What a run works on, opened and checked before anything is built or written."""

import dataclasses
import hashlib

from afterimage.data import ImageSet, Preprocessing, Splits
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.domains.pooling import pool
from afterimage.finetune.labels import Chosen, choose
from afterimage.finetune.source import (
    Source,
    adapt,
    check_scratch,
    chosen_model,
    open_for,
)
from afterimage.finetune.streams import Target, open_target, open_unlabelled
from afterimage.models import ModelConfig
from afterimage.runs import Run


@dataclasses.dataclass(frozen=True)
class Opened:
    """The source model, the labelled images, those without labels, the target's."""

    source: Source
    splits: Splits
    chosen: Chosen
    target: Target | None
    unlabelled: ImageSet | None
    model: ModelConfig
    """The architecture at the shape of these images."""
    preprocessing: Preprocessing

    def record(self, run: Run) -> None:
        """Names the images in the run folder; UserError where it knows others."""
        run.check_data(*_identity(self.splits.train, self.target, self.unlabelled))
        run.write_skipped(self.splits.skipped)


def open_all(config: FinetuneConfig) -> Opened:
    """Raises UserError, DataError or CheckpointError for what cannot be used."""
    source = Source.read(config.from_)
    architecture = chosen_model(config, source.model)
    check_scratch(config, architecture)
    splits = open_for(config, source.preprocessing, tasks=config.tasks)
    # What was measured on the data goes for all other images, too.
    stored = source.preprocessing
    value_range = splits.train.value_range or stored.value_range
    stored = dataclasses.replace(stored, value_range=value_range)
    if config.sources:
        others = [
            open_for(config, stored, spec, tasks=config.tasks)
            for spec in config.sources
        ]
        splits = pool([splits, *others], (config.data, *config.sources))
    chosen = choose(config, splits)
    target = open_target(config, stored, chosen.class_names)
    unlabelled = open_unlabelled(config, stored, splits, chosen)
    model, preprocessing = adapt(architecture, stored, splits)
    return Opened(source, splits, chosen, target, unlabelled, model, preprocessing)


def _identity(
    images: ImageSet, target: Target | None, unlabelled: ImageSet | None
) -> tuple[str, str]:
    """(name, fingerprint) of all images of a run."""
    more = [part for part in (target, unlabelled) if part is not None]
    name = " with ".join([images.name, *(part.name for part in more)])
    if not more:
        return name, images.fingerprint
    each = " ".join([images.fingerprint, *(part.fingerprint for part in more)])
    return name, hashlib.sha256(each.encode()).hexdigest()
