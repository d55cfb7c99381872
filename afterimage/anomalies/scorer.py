"""How unlike normal images an image is: the base class of scorers.

A scorer is a small frozen dataclass, registered by name, whose fields are its settings:

    @SCORERS.add("my-scorer")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class MyScorer(Scorer): ...
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from afterimage.data.preprocessing import image_batches
from afterimage.encoder import Encoder
from afterimage.fields import at_least_1, field_problems
from afterimage.models import FeatureInfo
from afterimage.runtime import jit
from afterimage.training.options import check

_BATCH = 64
Fitted = dict[str, Any]
"""Nested dict of arrays: what a scorer knows of the normal images."""
HeatOf = Callable[[Mapping[str, Any], Fitted, Array], Float[Array, "b _h _w"]]
"""(the encoder's parameters, fitted, images [b, h, w, c]) -> how unlike the normal
images each place is, ≥ 0; at least one place an image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer(abc.ABC):
    """Base class of all scorers; its fields are settings.

    The score of an image is the mean over the share `top` of its places with the
    highest heat.
    """

    name: ClassVar[str]
    """Set by the registry."""

    top: float
    """Share of an image's places, those with the highest heat, whose mean is its score:
    near 0 the highest alone, for small defects; 1 all, for images that are different as
    a whole."""

    def __post_init__(self) -> None:
        check(field_problems(self))
        check(self.problems())

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        found = []
        if not 0 < self.top <= 1:
            found.append(f"top={self.top}: must be a share in (0, 1]")
        if hasattr(self, "level"):
            found += at_least_1(self, "level")
        return found

    @abc.abstractmethod
    def fit(self, run: str, encoder: Encoder, normal: np.ndarray, seed: int) -> Fitted:
        """What to know of the normal images, [n, h, w, c] of the encoder's size.

        `run` is where the encoder is from; `seed` is for random draws.

        Raises UserError where this scorer cannot work with the run.
        """

    @abc.abstractmethod
    def heat_of(self, encoder: Encoder) -> HeatOf:
        """The function that scores, pure and traceable.

        Raises UserError where this scorer cannot work with the encoder.
        """

    def scores(self, heat: Float[Array, "b h w"]) -> Float[Array, " b"]:
        """The mean of the highest heat of each image."""
        flat = heat.reshape(len(heat), -1)
        count = max(1, round(self.top * flat.shape[1]))
        if count == flat.shape[1]:
            return flat.mean(1)
        return lax.top_k(flat, count)[0].mean(1)


def each_batch(
    encoder: Encoder,
    images: np.ndarray,
    function: Callable[[Mapping[str, Any], Array], Array],
) -> Iterator[np.ndarray]:
    """`function` of the encoder's parameters and of the images, batch by batch."""
    batches, _ = image_batches(images, _BATCH)
    return encoder.stream(batches, batch_size=_BATCH, function=jit(function))


def local_mean(maps: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The mean over 3 x 3 neighbours, at borders over those inside."""

    def total(x: Array) -> Array:
        return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    ones = jnp.ones((1, *maps.shape[1:3], 1), maps.dtype)
    return total(maps) / total(ones)


def resized(
    heat: Float[Array, "b h w"], size: Sequence[int]
) -> Float[Array, "b hh ww"]:
    """Bilinear, to this height and width."""
    return jax.image.resize(heat, (len(heat), *size), "bilinear", antialias=False)


def middle(info: Sequence[FeatureInfo], image_size: Sequence[int]) -> int:
    """The number of the coarsest map with at least 6 places a side, else of the finest.

    Coarser ones do not say where a defect is, finer ones see only edges.
    """
    fits = [n for n, one in enumerate(info) if min(image_size) / one.stride >= 6]
    return fits[-1] if fits else 0
