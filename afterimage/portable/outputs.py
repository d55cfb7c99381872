"""A network as one function with everything inside, and how a file of it is checked."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from afterimage.classifier import Classifier
from afterimage.data import Preprocessing
from afterimage.encoder import Encoder
from afterimage.errors import UserError
from afterimage.models.classifier import HEAD

Outputs = dict[str, Any]
TOLERANCE = 1e-5
"""Largest difference, as a share of an output's largest value (at least 1)."""


@dataclasses.dataclass(frozen=True)
class Portable:
    """A network: uint8 images of the trained size in, named arrays out."""

    source: Encoder | Classifier
    function: Callable[[UInt8[Array, "n h w c"]], Outputs]
    """Traceable, for any n; the weights are inside."""
    names: tuple[str, ...]
    """The names of its outputs."""
    figures: tuple[str, ...] = ()
    """How good it is, a line each: probes of an encoder, accuracy of a classifier."""

    @classmethod
    def of(
        cls, source: Encoder | Classifier, figures: tuple[str, ...] = ()
    ) -> "Portable":
        """The function of an encoder or a classifier in float32."""

        def function(images: Array) -> Outputs:
            with jax.default_matmul_precision("highest"):
                if isinstance(source, Encoder):
                    return _encoder(source, images)
                return _classifier(source, images)

        names: list[str] = []  # in this order: JAX sorts a dictionary's
        shape = (1, *_shape(source.preprocessing))
        jax.eval_shape(
            lambda images: names.extend(function(images)),
            jax.ShapeDtypeStruct(shape, jnp.uint8),
        )
        return cls(source, function, tuple(names), figures)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return _shape(self.source.preprocessing)

    @property
    def kind(self) -> str:
        """encoder or classifier."""
        return "encoder" if isinstance(self.source, Encoder) else "classifier"

    def __str__(self) -> str:
        h, w, c = self.image_shape
        name = self.source.manifest["model"]["name"]
        return (
            f"{self.kind} {name}, uint8 [n, {h}, {w}, {c}] to {', '.join(self.names)}"
        )

    def compare(
        self,
        run: Callable[[np.ndarray], Mapping[str, Any]],
        what: str,
        tolerance: float = TOLERANCE,
    ) -> str:
        """Compare `run`, a program loaded again, with the package; the difference.

        Raises UserError if an output is missing, has another shape or differs by more
        than `tolerance`.
        """
        worst = 0.0
        for images in _examples(self.image_shape):
            want, got = ours(self.source, images), run(images)
            for name, array in want.items():
                found = np.asarray(got[name]) if name in got else np.empty(0)
                if found.shape != array.shape:
                    raise UserError(
                        f"{what} gives {name} {found.shape}, not {array.shape}; it was "
                        "removed"
                    )
                scale = max(1.0, float(np.abs(array).max()))
                error = float(np.abs(found - array).max()) / scale
                if not error <= tolerance:
                    raise UserError(
                        f"{what} differs from this encoder by {error:.1e} in {name}, "
                        f"more than {tolerance:.0e}; it was removed"
                    )
                worst = max(worst, error)
        return f"largest difference {worst:.0e}"


def _shape(preprocessing: Preprocessing) -> tuple[int, int, int]:
    return (*preprocessing.image_size, preprocessing.channels)


def _encoder(encoder: Encoder, images: Array) -> Outputs:
    maps = encoder.apply_maps(encoder.params, images)
    if encoder.vector is None:
        vector, _ = encoder.network.apply(
            encoder.params, encoder.stats, maps[-1], method="vector"
        )
    else:
        vector = encoder.vector(maps, encoder.preprocessing.normalise(images))
    return {"features": vector} | _numbered(maps)


def _numbered(maps: list[Any]) -> Outputs:
    return {f"map_{n}": level for n, level in enumerate(maps)}


def _classifier(classifier: Classifier, images: Array) -> Outputs:
    network, params, stats = classifier.network, classifier.params, classifier.stats
    maps, _ = network.maps(params, stats, classifier.preprocessing.normalise(images))
    outputs = _numbered(maps)
    for task in classifier.tasks:
        logits = network.logits(params, stats, maps, task)
        meaning = classifier.outputs[task]
        before = prefix(classifier, task)
        outputs |= {
            f"{before}features": network.head_features(params, stats, maps, task),
            f"{before}logits": logits,
            f"{before}{meaning.values_name}": meaning.traced(logits),
        }
    return outputs


def prefix(classifier: Classifier, task: str) -> str:
    """What the names of a task's outputs start with; nothing for the main one."""
    return "" if task == HEAD or len(classifier.tasks) == 1 else f"{task}_"


def ours(source: Encoder | Classifier, images: np.ndarray) -> Outputs:
    """The same outputs, by the methods that a user of the package calls."""
    if isinstance(source, Encoder):
        return {"features": source.features(images)} | _numbered(
            source.feature_maps(images)
        )
    outputs = {}
    for task in source.tasks:
        before = prefix(source, task)
        outputs |= {
            f"{before}features": source.features(images, task=task),
            f"{before}logits": source.logits(images, task=task),
            f"{before}{source.outputs[task].values_name}": source.values(
                images, task=task
            ),
        }
    return outputs


def _examples(shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Batches of 1, 2 and 3 images: a smooth one, noise, and one of little contrast."""
    rng, (h, w, c) = np.random.default_rng(0), shape
    slope = np.linspace(0, 1, h)[:, None, None] + np.linspace(0, 1, w)[None, :, None]
    smooth = (slope * rng.uniform(60, 127, c)[None, None]).astype(np.uint8)
    noise = rng.integers(0, 256, shape, np.uint8)
    every = np.stack([smooth, noise, 90 + noise // 32])
    return [every[:n] for n in (1, 2, 3)]
