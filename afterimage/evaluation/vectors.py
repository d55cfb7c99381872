"""Vectors of every layer, streamed: sums over all images, and a sample of vectors."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Num, UInt8

from afterimage.console import ProgressBar
from afterimage.data import ImageSet
from afterimage.encoder import Encoder
from afterimage.errors import UserError
from afterimage.evaluation.probes import pixel_vectors
from afterimage.evaluation.spectrum import Moments
from afterimage.models.heads import mean_over_views, pool_features
from afterimage.models.hog import hog_vectors
from afterimage.models.vector import WIDEST
from afterimage.runtime import jit

Images = UInt8[np.ndarray, "n h w c"]
Batches = Callable[[Iterable[Images]], Iterator[Mapping[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Representation:
    """What turns images into vectors, in one or more layers."""

    name: str
    """Its name in tables."""
    stream: Batches
    """Maps batches of images to {layer: [b, d]}, batch by batch."""
    vector: str
    """The layer that serves as the feature vector."""
    levels: tuple[str, ...] = ()
    """Layers whose alignment is computed, finest first."""


@dataclasses.dataclass
class Layer:
    """Statistics of one layer: sums over all images, and vectors of some."""

    fit: Moments
    """Moments of [vector, one-hot label] over the images that fit the probes, …"""
    held: Moments
    """… and over the held-out images, used for selection."""
    sample: Float[np.ndarray, "n d"]
    """Vectors of the sampled training images, both fitted and held out."""
    test: Float[np.ndarray, "m d"]
    """Vectors of the images to score."""


def encoder_representation(
    name: str,
    encoder: Encoder,
    *,
    batch_size: int = 256,
    views: str = "none",
    grid_3: bool = False,
) -> Representation:
    """Each level of an encoder, pooled by its mean and by the means of a 2x2 grid.

    Layers `stages/0`, `stages/0 grid`, …, and `pyramid-grid`, all the grids side by
    side (fine-tuning's pool of this name). The encoder's feature vector is the layer
    `features`, unless it is one of these. Grids with more than `WIDEST` numbers are
    left out. With `grid_3` the last level, if larger than 2x2 sites, also gets
    `stages/N grid-3`: 9 numbers per channel, whatever its width.

    With `views` (one of VIEWS) vectors are averaged over several views of each image;
    the time grows with their number.
    """
    info, levels = encoder.feature_info, tuple(i.name for i in encoder.feature_info)
    vector, aligned = _own_layer(encoder), levels
    if encoder.vector is None:
        aligned = (*levels, vector)

    def layers(params: Mapping, images: Num[Array, "n h w c"]) -> dict[str, Array]:
        maps = encoder.apply_maps(params, images)
        pooled = {}
        for level, map_ in zip(info, maps, strict=True):
            pooled[level.name] = pool_features([map_])
            wide = 4 * level.channels > WIDEST
            if not wide and max(map_.shape[1:3]) > 1:
                pooled[f"{level.name} grid"] = pool_features([map_], "grid")
        if len(info) > 1 and 4 * sum(level.channels for level in info) <= WIDEST:
            pooled["pyramid-grid"] = pool_features(maps, "pyramid-grid")
        if grid_3 and max(maps[-1].shape[1:3]) > 2:
            pooled[f"{levels[-1]} grid-3"] = pool_features(maps, "grid-3")
        if vector not in pooled:
            pooled[vector] = encoder.apply(params, images)
        return pooled

    function = jit(mean_over_views(layers, views))
    stream = functools.partial(encoder.stream, function=function, batch_size=batch_size)
    return Representation(name, stream, vector, aligned)


def _own_layer(encoder: Encoder) -> str:
    """The name of the layer that is the encoder's feature vector."""
    info, recipe = encoder.feature_info, encoder.vector
    if recipe is None or recipe.arrays:
        return "features"
    names = {"last": info[-1].name}
    if 4 * info[-1].channels <= WIDEST:
        names["grid"] = f"{info[-1].name} grid"
    if len(info) > 1 and 4 * sum(level.channels for level in info) <= WIDEST:
        names["pyramid-grid"] = "pyramid-grid"
    return names.get(recipe.pool, "features")


def pixel_representation() -> Representation:
    """The images themselves, as `pixel_vectors`."""

    def stream(batches: Iterable[Images]) -> Iterator[Mapping[str, np.ndarray]]:
        return ({"pixels": pixel_vectors(batch)} for batch in batches)

    return Representation("raw pixels", stream, "pixels")


def hog_representation() -> Representation:
    """Histograms of oriented gradients, as `hog_vectors`: no network, no training."""

    def stream(batches: Iterable[Images]) -> Iterator[Mapping[str, np.ndarray]]:
        return ({"HOG": hog_vectors(batch)} for batch in batches)

    return Representation("HOG", stream, "HOG")


@dataclasses.dataclass(frozen=True)
class Sets:
    """The role of each image: all are labelled, each in one split."""

    train: ImageSet
    test: ImageSet
    held: Bool[np.ndarray, " n"]
    """Training images held out to select a layer or penalty."""
    sampled: Bool[np.ndarray, " n"]
    """Training images whose vectors are kept."""

    @property
    def classes(self) -> int:
        """Number of classes of the training images."""
        return len(self.train.class_names or ())

    @property
    def labels(self) -> Int32[np.ndarray, " n"]:
        """Labels of the training images."""
        return np.asarray(self.train.labels)

    @property
    def truth(self) -> Int32[np.ndarray, " m"]:
        """Labels of the test images."""
        return np.asarray(self.test.labels)


def collect(
    representation: Representation, sets: Sets, *, batch_size: int
) -> tuple[dict[str, Layer], Moments]:
    """({layer: its statistics}, moments of the levels side by side), in one pass.

    Memory holds at most a batch of images and the sampled vectors.

    Raises UserError for vectors that are not finite.
    """
    parts: dict[str, list[np.ndarray]] = {}
    sums: dict[str, tuple[Moments, Moments]] = {}
    levels: Moments | None = None
    targets = np.eye(sets.classes, dtype=np.float32)
    for rows, found in _sweep(representation, sets.train, batch_size):
        held, kept = sets.held[rows], sets.sampled[rows]
        y = targets[sets.labels[rows]]
        for name, vectors in found.items():
            width = vectors.shape[1] + sets.classes
            fit, out = sums.setdefault(name, (Moments(width), Moments(width)))
            both = np.concatenate([vectors, y], axis=1)
            fit.add(both[~held])
            out.add(both[held])
            parts.setdefault(name, []).append(vectors[kept])
        if representation.levels:
            side = np.concatenate([found[n] for n in representation.levels], axis=1)
            levels = levels or Moments(side.shape[1])
            levels.add(side)
    tests: dict[str, list[np.ndarray]] = {}
    for _, found in _sweep(representation, sets.test, batch_size):
        for name, vectors in found.items():
            tests.setdefault(name, []).append(vectors)
    layers = {
        name: Layer(
            *sums[name], *map(np.concatenate, (parts.pop(name), tests.pop(name)))
        )
        for name in sums
    }
    return layers, levels or Moments(0)


def _sweep(
    representation: Representation, images: ImageSet, batch_size: int
) -> Iterator[tuple[slice, Mapping[str, np.ndarray]]]:
    starts = range(0, len(images), batch_size)
    rows = [np.arange(s, min(s + batch_size, len(images))) for s in starts]
    batches = map(images.gather, rows)
    with ProgressBar(len(images), representation.name) as progress:
        for part, found in zip(rows, representation.stream(batches), strict=True):
            bad = [n for n, v in found.items() if not np.isfinite(v).all()]
            if bad:
                raise UserError(
                    f"{representation.name}: vectors of {', '.join(bad)} are not "
                    f"finite, first among images {part[0]}-{part[-1]} of "
                    f"{images.name}. The encoder has probably diverged; use an "
                    "earlier checkpoint."
                )
            yield slice(int(part[0]), int(part[-1]) + 1), found
            progress.add(len(part))
