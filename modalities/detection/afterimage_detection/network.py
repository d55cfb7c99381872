"""The network: an encoder, and a head without anchors on a merge of its maps."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afterimage.errors import UserError
from afterimage.models import (
    FeatureInfo,
    ModelConfig,
    abstract_encoder,
    build_encoder,
    layers,
    ops,
)
from afterimage.models.layers import DENSE, constant, he_normal, make_norm

_NARROWEST, _WIDEST = 32, 256
"""Channels of the head; between these as many as the map has."""
_RARE = -2.19
"""Logit of the chance that a cell is a centre, before training: 0.1 (RetinaNet)."""


def cell_of(side: int) -> int:
    """Pixels of a cell, for images of this side."""
    return 2 if side < 256 else 4


class Level(nnx.Module):
    """relu(norm(conv(.))), 3x3."""

    def __init__(self, i: int, o: int, *, rngs: nnx.Rngs):
        self.conv = layers.Conv(i, o, bias=False, rngs=rngs)
        self.norm = make_norm("group", o)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        return jax.nn.relu(self.norm(self.conv(x), DENSE))


class Head(nnx.Module):
    """From an image and its maps, finest first, to scores and distances at every cell.

    From coarse to fine, x_n = level(up(x_{n+1}), map_n); the image's own pixels join
    where the encoder has no map as fine as the cells. Two branches follow: the logits
    of a centre of each class (CenterNet, Zhou et al. 2019), and the logarithms of the
    distances to the four sides (FCOS, Tian et al. 2019).
    """

    def __init__(
        self,
        info: tuple[FeatureInfo, ...],
        channels: int,
        classes: int,
        cell: int,
        *,
        rngs: nnx.Rngs,
    ):
        own = [(each.channels, each.stride) for each in info if each.stride >= cell]
        self.used, self.cell = len(own), cell
        if own[0][1] != cell:
            own.insert(0, (channels * cell**2, cell))
        strides = [one for _, one in own]
        self.ratios = tuple(b // a for a, b in itertools.pairwise(strides))
        if any(b % a for a, b in itertools.pairwise(strides)):
            raise UserError(
                f"the maps of this encoder have the strides {strides}, which are no "
                "pyramid: each must be a multiple of the one before"
            )
        widths = [min(max(each, _NARROWEST), _WIDEST) for each, _ in own]
        self.levels = nnx.List(
            [
                Level(each + deeper, width, rngs=rngs)
                for (each, _), width, deeper in zip(own, widths, [*widths[1:], 0])
            ]
        )
        self.branches = nnx.List(
            [Level(widths[0], widths[0], rngs=rngs) for _ in range(2)]
        )

        def small(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
            return 0.1 * he_normal(rngs, shape, fan_in)

        # Near zero: all cells start alike, as rare centres of boxes of one size.
        self.centres = layers.Conv(widths[0], classes, 1, init=small, rngs=rngs)
        self.centres.bias = nnx.Param(constant(_RARE, classes))
        self.sides = layers.Conv(widths[0], 4, 1, init=small, rngs=rngs)

    def __call__(
        self, image: Float[Array, "b h w c"], maps: list[Float[Array, "b _h _w _c"]]
    ) -> tuple[Float[Array, "b y x k"], Float[Array, "b y x 4"]]:
        maps = maps[len(maps) - self.used :]
        if len(maps) < len(self.levels):
            maps = [ops.space_to_depth(image, self.cell), *maps]
        x = self.levels[-1](maps[-1])
        for level, beside, ratio in zip(
            self.levels[-2::-1], maps[-2::-1], self.ratios[::-1]
        ):
            x = level(jnp.concatenate([ops.upsample_nearest(x, ratio), beside], -1))
        one, two = self.branches
        return self.centres(one(x)), self.sides(two(x))


class DetectionModel(nnx.Module):
    """Normalised images -> (logits of centres, boxes (x1, y1, x2, y2) in pixels)."""

    def __init__(
        self, model: ModelConfig, side: int, classes: int, *, rngs: Any, fresh: bool
    ):
        """The encoder's leaves are shapes unless `fresh`.

        Raises UserError for a side and an encoder whose maps are no pyramid.
        """
        abstract = abstract_encoder(model)
        info, coarsest = abstract.feature_info, abstract.feature_info[-1].stride
        if side % coarsest:
            raise UserError(
                f"image_size={side}: must be a multiple of {coarsest}, the stride of "
                f"the encoder's last map, e.g. {-(-side // coarsest) * coarsest}"
            )
        if any(each.sites(side) * each.stride != side for each in info):
            raise UserError(
                "this encoder drops the pixels at the borders of its maps, so they do "
                "not lie on each other; detection needs another one"
            )
        self.encoder = build_encoder(model, rngs=rngs) if fresh else abstract
        self.head = Head(info, model.channels, classes, cell_of(side), rngs=rngs)

    def __call__(
        self, x: Float[Array, "b s s c"], *, train: bool = False
    ) -> tuple[Float[Array, "b y x k"], Float[Array, "b y x 4"]]:
        centres, sides = self.head(x, self.encoder(x, train=train))
        # An eighth of the side at first; the clip keeps the exponential finite.
        reach = jnp.exp(jnp.clip(sides.astype(jnp.float32), -6, 3)) * x.shape[1] / 8
        place = (jnp.arange(centres.shape[1]) + 0.5) * self.head.cell
        across, down = place[None, None, :, None], place[None, :, None, None]
        left, top, right, bottom = jnp.split(reach, 4, -1)
        boxes = [across - left, down - top, across + right, down + bottom]
        return centres, jnp.concatenate(boxes, -1)
