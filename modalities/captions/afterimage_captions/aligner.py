"""A trained aligner: images and texts to vectors of one space."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from msgspec import Meta
from scipy.special import softmax

from afterimage.checkpoints import schemas
from afterimage.checkpoints.names import printable
from afterimage.checkpoints.weights import read_artefact
from afterimage.data import Preprocessing
from afterimage.data.preprocessing import image_batches
from afterimage.encoder import (
    joined,
    placed,
    stored_model,
    stored_preprocessing,
    stream,
)
from afterimage.errors import UserError
from afterimage.evaluation.nearest import nearest
from afterimage.evaluation.probes import unit_rows
from afterimage.models import ModelConfig
from afterimage.models.classifier import ClassifierNetwork, HeadConfig
from afterimage.runtime import jit
from afterimage_captions.data import is_file, text_vectors
from afterimage_captions.scores import LARGEST_SCALE, unit

ALIGNER = "aligner"
"""The kind in the manifest, and the folder's name in a run."""
HEAD = "text"
_ALIKE = 0.999
_Text = Annotated[str, Meta(max_length=2**16)]


class AlignerManifest(schemas.EncoderManifest, kw_only=True):
    """`manifest.json` of an aligner folder."""

    text: _Text
    """The setting `text` of the run."""
    width: Annotated[int, Meta(ge=1, le=schemas.WIDEST)]
    """Numbers of a vector."""
    seen: Annotated[list[_Text], Meta(max_length=20_000)]
    """The classes or texts in training; empty if they were more."""
    example: tuple[_Text, Annotated[list[schemas.Number], Meta(max_length=2**20)]]
    """A text of the training and its vector, which the text encoder must still give."""


def make_network(
    model: ModelConfig, preprocessing: Preprocessing, width: int, **how: Any
) -> tuple[ClassifierNetwork, dict[str, Any], dict[str, Any]]:
    """(encoder with its projection to `width` numbers, params, stats)."""
    head = HeadConfig(width, kind="linear", features="pyramid-grid")
    made = ClassifierNetwork.create(model, {HEAD: head}, preprocessing, **how)
    network, params, stats = made
    return network, params | {"temperature": {"log": jnp.zeros(())}}, stats


def scale_of(params: Mapping[str, Any]) -> Any:
    """What cosines are multiplied by before the softmax, at most 100 as in CLIP."""
    return jnp.minimum(jnp.exp(params["temperature"]["log"]), LARGEST_SCALE)


class Aligner:
    """An image encoder aligned with a text encoder; `load_aligner` returns one.

    Images are uint8, or float in [0, 1]: NHWC, one HWC image, or a list of HWC images
    of any sizes, which are scaled and cropped to the trained one.
    """

    manifest: Mapping[str, Any]
    seen: tuple[str, ...]
    """The classes of the training images, or their texts if they had no classes; empty
    if they were more than 20,000."""
    scale: float
    """What cosines are multiplied by before the softmax."""

    def __init__(
        self,
        params: Mapping[str, Any],
        stats: Mapping[str, Any],
        manifest: Mapping[str, Any],
    ):
        """Raises CheckpointError if the arrays do not fit the manifest."""
        self.manifest, self.seen = manifest, tuple(map(printable, manifest["seen"]))
        self.preprocessing = stored_preprocessing(manifest)
        network, self.params, self.stats = placed(
            lambda: make_network(
                stored_model(manifest),
                self.preprocessing,
                manifest["width"],
                fresh=False,
            ),
            params,
            stats,
        )
        self.scale = float(scale_of(self.params))
        self._embed = jit(lambda p, s, x: unit(network.predict(p, s, x, HEAD)))

    def __repr__(self) -> str:
        height, width = self.preprocessing.image_size
        return printable(
            f"Aligner {self.manifest['model']['name']}, {height} x {width} px, with "
            f"{self.manifest['text']}: {self.manifest['width']} numbers, "
            f"{len(self.seen):,} classes or texts seen"
        )

    def embed_images(
        self, images: Any, *, batch_size: int = 256
    ) -> Float[np.ndarray, "n d"]:
        """A vector of unit length for each image.

        Raises UserError for input that is no image.
        """
        batches, total = image_batches(images, batch_size)
        run = functools.partial(self._embed, self.params, self.stats)
        return joined(stream(run, self.preprocessing, batches, batch_size), total)

    def embed_texts(
        self, texts: Sequence[str], *, text: str | None = None
    ) -> Float[np.ndarray, "n d"]:
        """A vector of unit length for each text.

        `text` is the setting of `afterimage align`, where it is not the one of the
        training: a text encoder that was moved, or a file with vectors of these texts.

        Raises UserError for texts without a vector, or an encoder that is not the one
        of the training.
        """
        if isinstance(texts, str):
            raise UserError(f"texts={texts!r}: give a list of texts, not one")
        place = self.manifest["text"] if text is None else text
        sample, wanted = self.manifest["example"]
        checked = not is_file(place)
        vectors = text_vectors(place, [*texts, sample] if checked else list(texts))
        if vectors.shape[1] != self.manifest["width"]:
            raise UserError(
                f"text={place}: vectors of {vectors.shape[1]} numbers, but this "
                f"aligner was trained with {self.manifest['width']}"
            )
        if not checked:
            return vectors
        if float(unit_rows(np.array([wanted]))[0] @ vectors[-1]) < _ALIKE:
            raise UserError(
                f"text={place} gives other vectors than the text encoder that this "
                "aligner was trained with; name that one with --text"
            )
        return vectors[:-1]

    def classify(
        self, images: Any, classes: Sequence[str], *, prompt: str = "{}"
    ) -> Float[np.ndarray, "n k"]:
        """The probabilities of classes that are given as words; rows sum to 1.

        The name of the class replaces {} in the prompt.
        """
        if isinstance(classes, str):
            raise UserError(f"classes={classes!r}: give a list of names, not one")
        texts = self.embed_texts([prompt.replace("{}", name) for name in classes])
        return self.probabilities(self.embed_images(images), texts)

    def probabilities(
        self, images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "k d"]
    ) -> Float[np.ndarray, "n k"]:
        """The softmax over the texts of the scaled cosines with each image."""
        logits = self.scale * (images @ texts.T)
        return softmax(logits.astype(np.float64), axis=1)

    def search(
        self,
        queries: Float[np.ndarray, "q d"],
        among: Float[np.ndarray, "n d"],
        top: int = 10,
    ) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
        """(rows of `among`, cosines) of the nearest vectors to each query, best first.

        Both may be vectors of images or of texts.
        """
        return nearest(unit_rows(queries), unit_rows(among), top)


def load_aligner(path: str | os.PathLike[str]) -> Aligner:
    """Load an aligner from a finished run, or from its `aligner/` folder.

    Every file is compared with its checksum. Raises UserError if there is none,
    CheckpointError if it is damaged.
    """
    found = read_artefact(path, {ALIGNER: "afterimage align"})
    return Aligner(found.params, found.stats, found.manifest)
