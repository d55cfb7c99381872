"""The network: an encoder, and a U-Net decoder on the pyramid of its maps."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afterimage.data import Preprocessing
from afterimage.errors import UserError
from afterimage.models import (
    FeatureInfo,
    ModelConfig,
    Network,
    abstract_encoder,
    build_encoder,
    layers,
    ops,
)
from afterimage.models.layers import DENSE, make_norm

_NARROWEST, _WIDEST = 16, 256
"""Channels of the decoder; between these as many as the map has."""
Tree = dict[str, Any]


class Level(nnx.Module):
    """relu(norm(conv(.))) twice, 3x3, on what comes from below and the map beside it.

    GroupNorm: its result does not depend on the batch, which is small here.
    """

    def __init__(self, i: int, o: int, *, rngs: nnx.Rngs):
        self.conv1 = layers.Conv(i, o, bias=False, rngs=rngs)
        self.norm1 = make_norm("group", o)
        self.conv2 = layers.Conv(o, o, bias=False, rngs=rngs)
        self.norm2 = make_norm("group", o)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        x = jax.nn.relu(self.norm1(self.conv1(x), DENSE))
        return jax.nn.relu(self.norm2(self.conv2(x), DENSE))


class UNetDecoder(nnx.Module):
    """From the maps, finest first, to scores of the classes at every pixel.

    From coarse to fine: x_n = level(up(x_{n+1}), map_n), with the image itself as the
    finest map (Ronneberger et al. 2015). `up` repeats pixels, as a convolution follows
    (Odena et al. 2016).
    """

    def __init__(
        self,
        info: tuple[FeatureInfo, ...],
        channels: int,
        classes: int,
        *,
        rngs: nnx.Rngs,
    ):
        maps = (FeatureInfo("image", channels, 1), *info)
        strides = [each.stride for each in maps]
        self.ratios = tuple(b // a for a, b in itertools.pairwise(strides))
        if any(b % a for a, b in itertools.pairwise(strides)):
            raise UserError(
                f"the maps of this encoder have the strides {strides[1:]}, which are "
                "no pyramid: each must be a multiple of the one before"
            )
        widths = [min(max(each.channels, _NARROWEST), _WIDEST) for each in maps]
        below = [*widths[1:], 0]
        self.levels = nnx.List(
            [
                Level(each.channels + deeper, width, rngs=rngs)
                for each, width, deeper in zip(maps, widths, below)
            ]
        )
        # Not near zero: classes that start with equal scores take long to separate.
        self.scores = layers.Conv(widths[0], classes, 1, rngs=rngs)

    def __call__(
        self,
        image: Float[Array, "b h w c"],
        maps: list[Float[Array, "b _h _w _c"]],
        *,
        train: bool = False,
    ) -> Float[Array, "b h w k"]:
        del train  # there are no batch statistics
        x = self.levels[-1](maps[-1])
        beside = [image, *maps[:-1]]
        for level, beside_it, ratio in zip(
            self.levels[-2::-1], beside[::-1], self.ratios[::-1]
        ):
            x = level(jnp.concatenate([ops.upsample_nearest(x, ratio), beside_it], -1))
        return self.scores(x)


@dataclasses.dataclass(frozen=True)
class SegmentationNetwork:
    """Encoder and decoder as pure functions of (params, stats, uint8 images).

    Trees have the parts `encoder` and `decoder`; only the encoder may have statistics.
    """

    encoder: Network
    decoder: Network
    preprocessing: Preprocessing
    stride: int
    """Of the last map; images are continued at the bottom and right to a multiple."""

    @classmethod
    def create(
        cls,
        model: ModelConfig,
        preprocessing: Preprocessing,
        classes: int,
        *,
        seed: int = 0,
        dtype: str = "float32",
        fresh: bool = True,
    ) -> tuple["SegmentationNetwork", Tree, Tree]:
        """(network, params, stats); the encoder's leaves are shapes unless `fresh`."""
        rngs = nnx.Rngs(seed)
        abstract = abstract_encoder(model)
        info = abstract.feature_info
        made = build_encoder(model, rngs=rngs) if fresh else abstract
        decoder = UNetDecoder(info, model.channels, classes, rngs=rngs)
        first, params, stats = Network.create(made, dtype=dtype)
        second, own, _ = Network.create(decoder, dtype=dtype)
        network = cls(first, second, preprocessing, info[-1].stride)
        return network, {"encoder": params, "decoder": own}, {"encoder": stats}

    def logits(
        self,
        params: Mapping[str, Any],
        stats: Mapping[str, Any],
        images: Any,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "b h w k"], Tree]:
        """(scores of the classes, statistics); `train` updates the encoder's."""
        x = self.preprocessing.normalise(images)
        height, width = x.shape[1:3]
        more = [(0, 0), (0, -height % self.stride), (0, -width % self.stride), (0, 0)]
        x = jnp.pad(x, more, mode="edge")
        maps, after = self.encoder.apply(
            params["encoder"], stats["encoder"], x, train=train
        )
        if maps[-1].shape[1] * self.stride != x.shape[1]:
            raise UserError(
                "this encoder drops the pixels at the borders of its maps, so they do "
                "not lie on each other; segmentation needs another one"
            )
        scores, _ = self.decoder.apply(params["decoder"], {}, x, maps)
        return scores[:, :height, :width], {**stats, "encoder": after}
