"""Several views of each image at test time: a fixed set, small and symmetrical."""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from afterimage.errors import UserError


def _flipped(images: Array) -> Array:
    return jnp.stack([images, images[:, :, ::-1]])


def _shifted(images: Array) -> Array:
    _, h, w, _ = images.shape
    y, x = (max(1, round(side / 28)) for side in (h, w))
    padded = jnp.pad(images, ((0, 0), (y, y), (x, x), (0, 0)), "reflect")
    corners = itertools.product((0, y, 2 * y), (0, x, 2 * x))
    return jnp.stack([padded[:, a : a + h, b : b + w] for a, b in corners])


def _shifted_and_flipped(images: Array) -> Array:
    return jnp.concatenate([_shifted(part) for part in _flipped(images)])


VIEWS: Mapping[str, Callable[[Array], Array]] = {
    "flip": _flipped,
    "shift": _shifted,
    "shift-flip": _shifted_and_flipped,
}
"""[b, h, w, c] -> [v, b, h, w, c], beside none: `--views` of evaluate and features."""


def mean_over_views(function: Callable[[Any, Array], Any], name: str) -> Callable:
    """`function` of (params, images) [b, h, w, c], its results averaged over views.

    Raises UserError for a name that VIEWS does not have.
    """
    if name == "none":
        return function
    if name not in VIEWS:
        raise UserError(f"views={name!r} must be one of none, {', '.join(VIEWS)}")

    def viewed(params: Any, images: Array) -> Any:
        # One after the other: of the network's maps there are as many as of one view.
        each = functools.partial(function, params)
        every = jax.lax.map(each, VIEWS[name](images))
        return jax.tree.map(lambda results: results.mean(0), every)

    return viewed
