"""What cells should say, the losses, and boxes from cells; all of fixed shapes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from afterimage.data.augmentations import resampling, spec_pieces
from afterimage.errors import UserError
from afterimage.runtime import jit
from afterimage_detection.data import PADDING

_SHARE = 0.54
"""The part of a box around its centre that learns its sides (TTFNet)."""
_VISIBLE = 0.3
"""The least part of an object that is left of it by a movement, or it is ignored."""
MOST = 100
"""Boxes found in an image."""
Boxes = Float[Array, "b m 4"]
"""x1, y1, x2, y2 in pixels."""


class Targets(NamedTuple):
    """What the cells of a batch should say."""

    heat: Float[Array, "b y x k"]
    """1 at the centre of an object, less around it."""
    counts: Float[Array, "b y x"]
    """0 in ignored regions."""
    boxes: Float[Array, "b y x 4"]
    """The box of the object that a cell belongs to."""
    weight: Float[Array, "b y x"]
    """How much a cell says of it; they sum to 1 for each object."""
    objects: Float[Array, ""]
    """Objects in the batch, at least 1."""


def make_targets(
    boxes: Boxes, classes: Int[Array, "b m"], cells: int, cell: int, k: int
) -> Targets:
    """The targets of a batch, of `cells` x `cells` cells of `cell` pixels.

    An object's heat is a Gaussian around its central cell, as wide as its box, and its
    cells are those within the middle 54 % (TTFNet, Liu et al. 2020). A cell of several
    objects belongs to the smallest.
    """
    one = functools.partial(_targets, cells=cells, k=k)
    found = jax.vmap(one)(boxes, boxes / cell, classes)
    return Targets(*found, jnp.maximum((classes >= 0).sum(), 1).astype(jnp.float32))


def _targets(
    boxes: Float[Array, "m 4"],
    scaled: Float[Array, "m 4"],
    classes: Int[Array, " m"],
    *,
    cells: int,
    k: int,
) -> tuple[Array, Array, Array, Array]:
    """The first four of an image, from its boxes in pixels and in cells."""
    x, y = jnp.arange(cells)[None, None], jnp.arange(cells)[None, :, None]
    x1, y1, x2, y2 = (side[:, None, None] for side in scaled.T)
    gauss, inside = jnp.ones(()), (classes >= 0)[:, None, None]
    ignored = (classes < PADDING)[:, None, None]
    for place, low, high in ((x, x1, x2), (y, y1, y2)):
        centre = jnp.clip(jnp.floor((low + high) / 2), 0, cells - 1)
        radius = jnp.floor(_SHARE / 2 * (high - low))
        gauss *= jnp.exp(-0.5 * ((place - centre) / ((2 * radius + 1) / 6)) ** 2)
        inside &= jnp.abs(place - centre) <= radius
        ignored &= (place + 0.5 > low) & (place + 0.5 < high)
    gauss = jnp.where(inside, gauss, 0)
    heat = jax.ops.segment_max(gauss, jnp.maximum(classes, 0), k)
    smallest = jnp.where(inside, (x2 - x1) * (y2 - y1), jnp.inf).argmin(0)[None]
    mine = (jnp.arange(len(boxes))[:, None, None] == smallest) & inside
    own = jnp.where(mine, gauss, 0)
    own /= jnp.maximum(own.sum((1, 2), keepdims=True), 1e-6)
    target = jnp.einsum("myx,mc->yxc", mine.astype(boxes.dtype), boxes)
    counts = 1 - ignored.any(0).astype(jnp.float32)
    return jnp.moveaxis(jnp.maximum(heat, 0), 0, -1), counts, target, own.sum(0)


def focal(logits: Float[Array, "b y x k"], wanted: Targets) -> Float[Array, ""]:
    """CenterNet's focal loss by object, from CornerNet (Law & Deng 2018).

    -(1 - p)² log p at centres; elsewhere -(1 - heat)⁴ p² log(1 - p).
    """
    p, heat = jax.nn.sigmoid(logits), wanted.heat
    here = -jnp.square(1 - p) * jax.nn.log_sigmoid(logits)
    away = -((1 - heat) ** 4) * jnp.square(p) * jax.nn.log_sigmoid(-logits)
    each = jnp.where(heat == 1, here, away * wanted.counts[..., None])
    return each.sum() / wanted.objects


def giou(one: Float[Array, "*b 4"], two: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """IoU - (hull - union) / hull of boxes, from -1 to 1 (Rezatofighi et al. 2019)."""

    def area(low: Array, high: Array) -> Array:
        return jnp.prod(jnp.maximum(high - low, 0), -1)

    (a, b), (c, d) = ((box[..., :2], box[..., 2:]) for box in (one, two))
    both = area(jnp.maximum(a, c), jnp.minimum(b, d))
    union = area(a, b) + area(c, d) - both
    hull = area(jnp.minimum(a, c), jnp.maximum(b, d))
    tiny = 1e-6
    return both / jnp.maximum(union, tiny) - (hull - union) / jnp.maximum(hull, tiny)


def sides(boxes: Float[Array, "b y x 4"], wanted: Targets) -> Float[Array, ""]:
    """1 - GIoU, the weighted mean over the cells of each object, by object."""
    each = wanted.weight * (1 - giou(boxes, wanted.boxes))
    return each.sum() / wanted.objects


def peaks(
    logits: Float[Array, "b y x k"], boxes: Float[Array, "b y x 4"]
) -> Float[Array, "b n 6"]:
    """(x1, y1, x2, y2, class, score) of the up to 100 highest peaks of each image.

    A peak is a cell with the highest score of its class among its 3 x 3 neighbours: no
    other suppression is needed (CenterNet).
    """
    p, sizes = jax.nn.sigmoid(logits), ((1, 3, 3, 1), (1, 1, 1, 1))
    highest = jax.lax.reduce_window(p, -jnp.inf, jax.lax.max, *sizes, "SAME")
    flat = jnp.where(p == highest, p, 0).reshape(len(p), -1)
    score, place = jax.lax.top_k(flat, min(MOST, flat.shape[1]))
    cell, kind = jnp.divmod(place, p.shape[-1])
    own = jnp.take_along_axis(boxes.reshape(len(p), -1, 4), cell[..., None], 1)
    return jnp.concatenate([own, kind[..., None], score[..., None]], -1)


Augment = Callable[[Array, Array, Boxes, Array], tuple[Array, Boxes, Array]]
"""(key, images [b, h, w, c] in [0, 1], boxes, classes) -> the same, moved."""
_COLOURS = "afterimage.data.augmentations.colours"


def boxed_augment(spec: str) -> Augment:
    """The augmentations of a spec, of images and boxes alike.

    Movements are joined. A box is cut at the border; one of which less than 30 % is
    left is ignored. Raises UserError for what does not move boxes to boxes.
    """
    pieces = [piece for piece in spec_pieces(spec) if piece.text != "none"]
    moving = [p for p in pieces if isinstance(p.thing, resampling.Movement)]
    moves = [(piece.thing, piece.values) for piece in moving]
    others = [piece for piece in pieces if piece not in moving]
    wrong = [p.text for p in others if p.thing.__module__ != _COLOURS]
    wrong += [p.text for p in moving if _turns(p.thing, p.values)]
    if wrong:
        raise UserError(
            f"augment={spec}: {', '.join(wrong)} would move images away from their "
            "boxes; use movements without rotation, such as crop, flip, zoom, "
            "translate, and changes of colour such as color, brightness, grey"
        )
    straight = all(move.straight for move, _ in moves)

    def augment(
        key: Array, images: Array, boxes: Boxes, classes: Array
    ) -> tuple[Array, Boxes, Array]:
        first, *keys = jax.random.split(key, 1 + len(others))
        if moves:
            count, height, width, _ = images.shape
            size = height, width
            whole, now = resampling.composed(first, moves, count, size, None)
            beyond: Any = {} if straight else {"continues": True}
            move = resampling.straightly if straight else resampling.resample
            images = move(images, whole, now, **beyond)
            boxes, classes = moved(boxes, classes, whole, size)
        for key, piece in zip(keys, others):
            images = piece(key, images)
        return images, boxes, classes

    return augment


def _turns(move: resampling.Movement, values: tuple[float, ...]) -> bool:
    """Whether a movement rotates or slants."""
    if move.straight:
        return False
    canvas = resampling.Canvas(4, (8, 8), (8, 8))
    linear = jit(lambda key: move.draw(key, canvas, *values).linear)(jax.random.key(0))
    return bool(np.any(np.asarray(linear) * (1 - np.eye(2))))


def moved(
    boxes: Boxes,
    classes: Int[Array, "b m"],
    move: resampling.Affine,
    size: tuple[int, int],
) -> tuple[Boxes, Int[Array, "b m"]]:
    """Boxes where a movement without rotation shows their images, of the same size."""
    sides = jnp.array(size[::-1], boxes.dtype)[None, None]
    scale = jnp.diagonal(move.linear, axis1=1, axis2=2)[:, None, None]
    places = boxes.reshape(*boxes.shape[:2], 2, 2) / sides[:, :, None] * 2 - 1
    places = (places - move.offset[:, None, None]) / scale
    places = (places + 1) / 2 * sides[:, :, None]
    low, high = places.min(2), places.max(2)
    cut = [jnp.clip(corner, 0, sides) for corner in (low, high)]
    whole, left = (jnp.prod(b - a, -1) for a, b in ((low, high), cut))
    seldom = jnp.where(left > 0, PADDING - 1, PADDING)
    kept = (left >= _VISIBLE * whole) & (left > 0)
    return jnp.concatenate(cut, -1), jnp.where(kept | (classes < 0), classes, seldom)
