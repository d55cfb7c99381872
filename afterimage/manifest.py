"""What an encoder artefact says of itself, whichever stage wrote it."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import afterimage
from afterimage.checkpoints.errors import CheckpointError
from afterimage.data import ImageSet, Preprocessing
from afterimage.errors import UserError
from afterimage.models import FeatureInfo, ModelConfig


def encoder_manifest(
    model: ModelConfig,
    feature_info: Sequence[FeatureInfo],
    preprocessing: Preprocessing,
    data: ImageSet,
    trained: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest of an encoder artefact, JSON-ready; `trained` is the stage's own."""
    return {
        "model": model.to_dict(),
        "preprocessing": preprocessing.to_dict(),
        "feature_info": [dataclasses.asdict(info) for info in feature_info],
        "data": {"name": data.name, "fingerprint": data.fingerprint},
        "trained": {**trained, "afterimage": afterimage.__version__},
    }


def stored_model(
    manifest: Mapping[str, Any], path: str | os.PathLike[str] = "the artefact"
) -> ModelConfig:
    """The model that the manifest of the artefact in `path` describes.

    Raises CheckpointError if this version cannot build it.
    """
    try:
        return ModelConfig.from_dict(manifest["model"])
    except UserError as error:
        raise CheckpointError(f"{path}: its manifest: {error}") from error


def stored_preprocessing(
    manifest: Mapping[str, Any], path: str | os.PathLike[str] = "the artefact"
) -> Preprocessing:
    """How the images of the artefact in `path` were prepared.

    Raises CheckpointError if it is not valid.
    """
    try:
        return Preprocessing.from_dict(manifest["preprocessing"])
    except UserError as error:
        raise CheckpointError(f"{path}: its manifest: {error}") from error
