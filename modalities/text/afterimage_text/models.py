"""Finished encoders and classifiers of texts, for use in Python."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from afterimage.data.sets import Columns
from afterimage.errors import DataError
from afterimage.finetune.own_classifier import over
from afterimage.models.encoder import Network
from afterimage.outputs.classes import Classes
from afterimage.training.batches import EvaluationRunner, make_mesh
from afterimage_text.bert import abstract, text_vector
from afterimage_text.config import LENGTH
from afterimage_text.files import CLASSIFIER, Stored, read_run, read_start
from afterimage_text.texts import encode, read_tokenizer

_STEP = 16
"""Texts are padded to a multiple of this many tokens: fewer programs to compile."""


def cast(params: Any, precision: str) -> Any:
    """Parameters at the precision of the arithmetic."""
    return jax.tree.map(lambda leaf: leaf.astype(precision), params)


def features(
    network: Network, params: Mapping[str, Any], inputs: Mapping[str, Array]
) -> Float[Array, "b w"]:
    """The vectors of texts, at unit length, from `tokens` and `attention`."""
    states, _ = network.apply(params, {}, inputs["tokens"], inputs["attention"])
    return text_vector(states, inputs["attention"])


def scores(
    head: Mapping[str, Array], vectors: Float[Array, "b w"]
) -> Float[Array, "b c"]:
    """Logits of a linear head. The vectors are scaled to numbers of variance one."""
    scaled = vectors * jnp.sqrt(float(vectors.shape[-1]))
    return scaled @ head["kernel"] + head["bias"][None]


class TextEncoder:
    """Texts to vectors; from `load_text_encoder`."""

    def __init__(self, stored: Stored):
        self.config, self.where = stored.config, stored.where
        self.length = stored.manifest.get("length", min(LENGTH, self.config.positions))
        """Tokens of a text; the rest is cut off."""
        self.params = stored.params
        self.tokenizer = read_tokenizer(
            stored.tokenizer, self.config.vocabulary, stored.where
        )
        self.network, _ = abstract(self.config)

    def features(
        self, texts: Sequence[str], *, batch_size: int = 64
    ) -> Float[np.ndarray, "n w"]:
        """A vector of unit length for each text: the mean over its tokens.

        Raises DataError for texts that are empty.
        """
        return self._over(texts, self._vectors, batch_size)

    @functools.cached_property
    def _vectors(self) -> Callable[..., Array]:
        return jax.jit(
            lambda params, batch: features(self.network, params["encoder"], batch)
        )

    def _over(
        self, texts: Sequence[str], function: Callable[..., Array], batch_size: int
    ) -> np.ndarray:
        if isinstance(texts, str):
            raise DataError("texts: give a list of texts, not one")
        empty = [str(i) for i, text in enumerate(texts) if not text.strip()]
        if empty or not len(texts):
            raise DataError(f"texts: {', '.join(empty[:10]) or 'all'} are empty")
        arrays, _ = encode(self.tokenizer, texts, self.length)
        longest = arrays["tokens"].shape[1]
        width = min(-(-longest // _STEP) * _STEP, self.length)
        pad = ((0, 0), (0, width - longest))
        arrays = {name: np.pad(array, pad) for name, array in arrays.items()}
        rows = Columns("texts", arrays, [str(i) for i in range(len(texts))])
        runner = EvaluationRunner(make_mesh(1), min(batch_size, len(texts)))
        return over(runner, rows, functools.partial(function, self.params))


class TextClassifier(TextEncoder):
    """Texts to classes; from `load_text_classifier`."""

    def __init__(self, stored: Stored):
        super().__init__(stored)
        self.outputs = Classes(names=tuple(stored.manifest["classes"]))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""
        return self.outputs.names

    def predict_proba(
        self, texts: Sequence[str], *, batch_size: int = 64
    ) -> Float[np.ndarray, "n c"]:
        """The probability of each class, float64; rows sum to 1."""
        return self.outputs.values(self._over(texts, self._scores, batch_size))

    def predict(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """The name of the most probable class of each text."""
        found = self.predict_proba(texts, batch_size=batch_size)
        return np.array(self.class_names)[found.argmax(1)]

    @functools.cached_property
    def _scores(self) -> Callable[..., Array]:
        def run(params, batch):
            vectors = features(self.network, params["encoder"], batch)
            return scores(params["head"], vectors)

        return jax.jit(run)


def load_text_encoder(place: str) -> TextEncoder:
    """The encoder of a finished run, of a folder of Hugging Face's files, or minilm.

    Raises UsageError where there is none, CheckpointError where it is damaged.
    """
    return TextEncoder(read_start(place))


def load_text_classifier(run: str) -> TextClassifier:
    """The classifier of a finished run of text-finetune.

    Raises UsageError where there is none, CheckpointError where it is damaged.
    """
    return TextClassifier(read_run(run, (CLASSIFIER,)))
