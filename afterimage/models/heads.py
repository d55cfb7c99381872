"""What follows the encoder: pooled vectors, views of an image, class logits."""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afterimage.errors import UserError
from afterimage.models import layers

POOLS = ("last", "pyramid", "grid", "grid-3", "pyramid-grid")
HEADS = ("linear", "mlp")


def pool_features(
    maps: list[Float[Array, "b _h _w _c"]], kind: str = "last"
) -> Float[Array, "b d"]:
    """One vector from the maps, which are given finest first.

    `last`: the mean over the pixels of the last map. `pyramid`: of every map. `grid`
    and `pyramid-grid`: the same with the means of a 2 x 2 grid, which keep some
    position (a linear probe on small images gains much from it); `grid-3`: of a 3 x 3
    grid, last map only.

    Raises:
        UserError: an unknown kind.
    """
    if kind not in POOLS:
        raise UserError(f"pool={kind!r} must be one of {', '.join(POOLS)}")
    chosen = maps if kind.startswith("pyramid") else maps[-1:]
    if "grid" not in kind:
        return jnp.concatenate([_mean(m) for m in chosen], -1)
    cells = 3 if kind == "grid-3" else 2
    return jnp.concatenate([_grid(m, cells) for m in chosen], -1)


def _mean(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    return x.mean((1, 2))


def _grid(x: Float[Array, "b h w c"], cells: int) -> Float[Array, "b d"]:
    """Means of a grid of cells that cover the map; cells overlap if a side is not a
    multiple of `cells`: halves of an odd side share its middle."""

    def spans(size: int) -> list[slice]:
        n = min(cells, size)
        return [slice(i * size // n, -(-(i + 1) * size // n)) for i in range(n)]

    _, h, w, _ = x.shape
    means = [_mean(x[:, rows, columns]) for rows in spans(h) for columns in spans(w)]
    return jnp.concatenate(means, -1)


class Head(nnx.Module):
    """Features to logits: `linear`, or `mlp` with one hidden layer.

    The hidden layer has `width` units, by default as many as there are features.

    The last layer starts near zero, so a fresh head's loss is log(classes).

    Raises:
        UserError: an unknown kind, or no outputs.
    """

    def __init__(
        self,
        in_features: int,
        classes: int,
        kind: str = "linear",
        width: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        if kind not in HEADS:
            raise UserError(f"head={kind!r} must be one of {', '.join(HEADS)}")
        if classes < 1:
            raise UserError(f"classes={classes}: must be at least 1")
        if kind == "mlp":
            width = width or in_features
            self.hidden = layers.Dense(in_features, width, rngs=rngs)
        else:
            width, self.hidden = in_features, None
        self.linear = layers.Dense(width, classes, init=layers.trunc_normal, rngs=rngs)

    def __call__(
        self, features: Float[Array, "b d"], *, train: bool = False
    ) -> Float[Array, "b k"]:
        """Logits."""
        del train  # heads have neither dropout nor batch statistics
        if self.hidden is not None:
            features = jax.nn.gelu(self.hidden(features))
        return self.linear(features)


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
"""[b, h, w, c] -> [v, b, h, w, c], by name: `--views` of evaluate and features."""


def mean_over_views(function: Callable[[Any, Array], Any], name: str) -> Callable:
    """`function` of (params, images [b, h, w, c]), with results averaged over views.

    Raises UserError for a name not in VIEWS.
    """
    if name == "none":
        return function
    if name not in VIEWS:
        raise UserError(f"views={name!r} must be one of none, {', '.join(VIEWS)}")

    def viewed(params: Any, images: Array) -> Any:
        # One view at a time, so that memory holds the maps of a single view.
        each = functools.partial(function, params)
        every = jax.lax.map(each, VIEWS[name](images))
        return jax.tree.map(lambda results: results.mean(0), every)

    return viewed
