"""Augmentations on the device, inside jit: (key, images in [0, 1]) -> images.

Each image draws its own random numbers from the key. To add an augmentation, register
a function: `@AUGMENTATIONS.add("my-augmentation")`. Several are joined by commas and
applied in order, with numbers after colons: `crop:0.3,flip,color`.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float

from afterimage.data.augmentations.resampling import Movement, moved
from afterimage.data.augmentations.resampling import takes as takes
from afterimage.errors import UserError
from afterimage.plugins import AUGMENTATIONS

Augment = Callable[..., Float[Array, "b _h _w c"]]
"""(key, images) -> images; only those that cut return another size. What `make_augment`
returns also takes `aspect` [b], of `WholePhotos`."""


class AugmentationSet:
    """Base class of a set: a registered name for a spec that suits some images."""

    spec: ClassVar[str]
    """The spec that it is short for, such as `crop:0.3,flip,color`."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """One augmentation of a spec."""

    text: str
    """As in the spec: `crop:0.3`."""
    thing: Any
    """A function, or a `Movement`."""
    values: tuple[float, ...]
    """The numbers given for its parameters, first to last."""

    def __call__(
        self, key: Array, images: Float[Array, "b h w c"]
    ) -> Float[Array, "b _h _w c"]:
        return self.thing(key, images, *self.values)


def make_augment(spec: str, size: int | None = None) -> Augment:
    """The augmentations of a spec as one function.

    Neighbours that only move pixels (crop, flip, rotate, …) become one resampling.
    Those that cut (`cuts`) return views of `size` x `size` pixels, or with None of the
    images' own size. A single augmentation draws from the key itself, the i-th of
    several from `fold_in(key, i)`.

    Photos that were stretched to a square come with their `aspect`, width / height; the
    first movements then cut views of the photos' own proportions (`cuts_first`).

    Raises UserError for an unknown name, and for values that cannot be.
    """
    pieces = list(spec_pieces(spec))
    steps: list[Augment] = []
    for moves, group in itertools.groupby(
        pieces, lambda piece: isinstance(piece.thing, Movement)
    ):
        together = list(group)
        if moves:
            steps.append(moved([(p.thing, p.values) for p in together], size))
        else:
            steps += together

    def augment(
        key: Array,
        images: Float[Array, "b h w c"],
        aspect: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b _h _w c"]:
        for number, step in enumerate(steps):
            own = key if len(pieces) == 1 else jax.random.fold_in(key, number)
            given = () if number or aspect is None else (aspect,)
            images = step(own, images, *given)
            if len(pieces) > 1:
                # Computed once: XLA would repeat the resampling for each use on CPU.
                images = jax.lax.optimization_barrier(images)
        return images

    return augment


def cuts_first(spec: str) -> bool:
    """Whether a spec cuts its views before it does anything but move pixels."""
    pieces = (piece.thing for piece in spec_pieces(spec))
    moves = itertools.takewhile(lambda thing: isinstance(thing, Movement), pieces)
    return any(move.cuts for move in moves)


def cuts(spec: str) -> bool:
    """Whether a spec cuts views out of larger images, of any size asked for."""
    return any(getattr(piece.thing, "cuts", False) for piece in spec_pieces(spec))


def spec_pieces(spec: str) -> Iterator[Piece]:
    """The pieces of a spec in order, those of sets in place of the sets."""
    for text in spec.split(","):
        name, *given = text.split(":")
        thing = AUGMENTATIONS.get(name)
        if isinstance(thing, type) and issubclass(thing, AugmentationSet):
            if given:
                raise UserError(f"{text}: {name} is a set and takes no number")
            yield from spec_pieces(thing.spec)
        else:
            yield Piece(text, thing, _values(text, parameters(thing), given))


def spec_problem(spec: str) -> str | None:
    """What is wrong with a spec; None if nothing is."""
    try:
        list(spec_pieces(spec))
    except UserError as error:
        return str(error)
    return None


def parameters(thing: Any) -> dict[str, tuple[float, float, float]]:
    """{parameter: (default, least, most)} of an augmentation, in order."""
    ranges = getattr(thing, "ranges", {})
    if not ranges:
        return {}
    function = thing.draw if isinstance(thing, Movement) else thing
    defaults = inspect.signature(function).parameters
    return {name: (defaults[name].default, *ranges[name]) for name in ranges}


def _values(
    text: str, known: dict[str, tuple[float, float, float]], given: list[str]
) -> tuple[float, ...]:
    if len(given) > len(known):
        takes = ", ".join(
            f"{name} ({low:g} to {high:g}; {default:.3g} if left out)"
            for name, (default, low, high) in known.items()
        )
        raise UserError(f"{text}: it takes {takes or 'no number'}")
    found = []
    for one, (name, (_, low, high)) in zip(given, known.items(), strict=False):
        try:
            value = float(one)
        except ValueError:
            raise UserError(f"{text}: {name}={one!r} is not a number") from None
        if not low <= value <= high:
            raise UserError(f"{text}: {name}={one}: from {low:g} to {high:g}")
        found.append(value)
    return tuple(found)
