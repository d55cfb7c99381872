"""Finished encoders and classifiers of volumes, for use in Python."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jaxtyping import Float, UInt8
from msgspec import Meta

from afterimage.checkpoints import schemas
from afterimage.checkpoints.weights import read_artefact
from afterimage.data.pixels import NotAnImage
from afterimage.errors import DataError
from afterimage.outputs.classes import Classes
from afterimage_volumes.files import Geometry, prepared, read_volume
from afterimage_volumes.network import Encoder, VolumeModel, network, vectors
from afterimage_volumes.network import scores as head_scores

ENCODER, CLASSIFIER = "volume-encoder", "volume-classifier"
"""The kind in the manifest, and also the folder's name in a run."""
_STAGES = {ENCODER: "volume-pretrain", CLASSIFIER: "volume-finetune"}


class EncoderManifest(msgspec.Struct, kw_only=True):
    """`manifest.json` of an encoder of volumes."""

    width: Annotated[int, Meta(ge=1, le=512)]
    size: Annotated[int, Meta(ge=16, le=512, multiple_of=8)]
    spacing: Annotated[float, Meta(gt=0, le=1000)]
    window: tuple[schemas.Number, schemas.Number] | None
    data: schemas.DataFields
    trained: schemas.Free


class ClassifierManifest(EncoderManifest, kw_only=True):
    """`manifest.json` of a classifier of volumes."""

    classes: Annotated[list[schemas.Name], Meta(min_length=2)]


class VolumeEncoder:
    """Volumes to vectors; from `load_volume_encoder`."""

    def __init__(self, place: str, kinds: Sequence[str]):
        found = read_artefact(place, {kind: _STAGES[kind] for kind in kinds})
        folder, kind, self.params, self.stats, self.manifest = found
        self.where = str(folder)
        self.model = VolumeModel(self.manifest["width"])
        window = self.manifest["window"]
        self.geometry = Geometry(
            self.manifest["size"],
            self.manifest["spacing"],
            window and (window[0], window[1]),
        )
        if kind == ENCODER:
            self.params = {"encoder": self.params}
        self.network = network(Encoder, self.model)

    def __call__(
        self, volumes: Sequence[Any], *, batch_size: int = 8
    ) -> Float[np.ndarray, "n f"]:
        """A vector for each volume: a path (a NIfTI file or a folder of DICOM slices)
        or a nibabel image.

        Mean and maximum of each map, 14 x width numbers. Raises DataError for volumes
        that cannot be used.
        """
        return self._over(self._vectors, self.read(volumes, batch_size))

    def read(
        self, volumes: Sequence[Any], batch_size: int
    ) -> Iterator[UInt8[np.ndarray, "b s s s"]]:
        """Batches of volumes in the encoder's geometry; the last may be smaller."""
        if isinstance(volumes, str | os.PathLike) or not len(volumes):
            raise DataError("volumes: give a list with at least one volume")
        for start in range(0, len(volumes), batch_size):
            batch = []
            for n, one in enumerate(volumes[start : start + batch_size], start):
                path = isinstance(one, str | os.PathLike)
                shown = str(one) if path else f"volume {n}"
                if not path and not hasattr(one, "affine"):
                    raise DataError(
                        f"{shown} is a {type(one).__name__}; expected a path, or "
                        "nibabel.Nifti1Image(array, affine)"
                    )
                read = read_volume if path else prepared
                try:
                    batch.append(
                        read(pathlib.Path(one) if path else one, self.geometry)
                    )
                except NotAnImage as error:
                    raise DataError(f"{shown} {error}") from error
            yield np.stack(batch)

    def _over(self, function: Callable[..., Any], batches: Any) -> np.ndarray:
        everything = (self.params, self.stats)
        return np.concatenate([np.asarray(function(everything, x)) for x in batches])

    @functools.cached_property
    def _vectors(self) -> Callable[..., Any]:
        def run(everything: Any, volumes: Any) -> Any:
            x = volumes.astype(jnp.float32) / 255
            return vectors(self.network.apply(everything[0]["encoder"], {}, x)[0])

        return jax.jit(run)


class VolumeClassifier(VolumeEncoder):
    """Volumes to classes; from `load_volume_classifier`."""

    def __init__(self, place: str):
        super().__init__(place, (CLASSIFIER,))
        self.outputs = Classes(names=tuple(self.manifest["classes"]))

    def predict_proba(
        self, volumes: Sequence[Any], *, batch_size: int = 8
    ) -> Float[np.ndarray, "n c"]:
        """The probability of each of `outputs.names`; rows sum to 1."""
        found = self._over(self._scores, self.read(volumes, batch_size))
        return self.outputs.values(found)

    def predict(self, volumes: Sequence[Any], *, batch_size: int = 8) -> np.ndarray:
        """The name of the most probable class of each volume."""
        found = self.predict_proba(volumes, batch_size=batch_size)
        return np.array(self.outputs.names)[found.argmax(1)]

    @functools.cached_property
    def _scores(self) -> Callable[..., Any]:
        def run(everything: Any, volumes: Any) -> Any:
            params, stats = everything
            return head_scores(
                params["head"], stats, self._vectors(everything, volumes)
            )

        return jax.jit(run)


def load_volume_encoder(run: str) -> VolumeEncoder:
    """The encoder of a finished run of volume-pretrain or volume-finetune.

    Raises UsageError where there is none, CheckpointError where it is damaged.
    """
    return VolumeEncoder(run, (ENCODER, CLASSIFIER))


def load_volume_classifier(run: str) -> VolumeClassifier:
    """The classifier of a finished run of volume-finetune; raises as above."""
    return VolumeClassifier(run)
