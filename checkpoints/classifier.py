"""A classifier alone: an encoder with heads, in the form of an encoder artefact."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from afterimage.checkpoints import encoder
from afterimage.checkpoints.errors import CheckpointError, UsageError

FOLDER = "classifier"
KIND = "classifier"


def write_classifier(
    folder: str | os.PathLike[str],
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> None:
    """Write a classifier folder, atomically, as `write_encoder` does.

    `params` and `stats` have the keys `encoder` and `heads`.
    """
    encoder.write_encoder(folder, params, stats, manifest, kind=KIND)


def read_classifier(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(params, stats, manifest) of a fine-tuning run, or of its `classifier/` folder.

    Every byte is compared with its checksum. Raises UsageError where there is no
    classifier, CheckpointError where it is damaged.
    """
    place = pathlib.Path(path)
    if (place / FOLDER).is_dir():
        place = place / FOLDER
    try:
        if place != pathlib.Path(path):
            encoder.require_inside(place)
        return encoder.read_folder(place, KIND)
    except CheckpointError as error:
        if (place / encoder.WEIGHTS).is_file():
            raise
        raise UsageError(
            f"{path} holds no classifier. Expected a finished fine-tuning run; make "
            f"one with: afterimage finetune --from {path} --data ... --out ..."
        ) from error
