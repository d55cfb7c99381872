"""Decoders for masked images: masked sites are filled by a token, then mixed.

The token is learned and stands for "nothing was seen here". Filled maps are dense: from
there on nothing is masked.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afterimage.models import layers, ops
from afterimage.models.blocks import run_blocks
from afterimage.models.decoders import Decoder, Encoded, make_block
from afterimage.models.encoder import FeatureInfo, ModelConfig
from afterimage.models.layers import Context, make_norm


class Fill(nnx.Module):
    """Norm, the token where a site is masked, and a projection to the decoder's width.

    Tian et al. 2023 (SparK), section 3.3, "densifying".
    """

    def __init__(self, i: int, o: int, norm: str, *, rngs: nnx.Rngs):
        self.norm = make_norm(norm, i)
        self.token = nnx.Param(layers.trunc_normal(rngs, (i,), i))
        self.project = layers.Conv(i, o, 1, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w i"], context: Context
    ) -> Float[Array, "b h w o"]:
        x = self.norm(x, context)
        visible = context.visible(x)
        if visible is not None:
            token = ops.per_channel(self.token[...].astype(x.dtype), x)
            x = jnp.where(visible, x, token)
        return self.project(x)


class FillingDecoder(Decoder):
    """What both share: the last map, filled unless it comes from a vector."""

    def fill_last(self, fill: Fill, x: Array, context: Context) -> Array:
        """A bottleneck's vector was expanded to a map without gaps."""
        dense = Context(train=context.train)
        return fill(x, context if self.expand is None else dense)


class HierarchicalStage(nnx.Module):
    """A filled map, plus what the coarser stage says, through one block."""

    def __init__(self, config: ModelConfig, info: FeatureInfo, o: int, *, rngs):
        self.fill = Fill(info.channels, o, config.norm, rngs=rngs)
        self.blocks = nnx.List([make_block(config, o, rngs)])


class HierarchicalDecoder(FillingDecoder):
    """Every map is filled and joins the decoder at its own size, coarsest first.

    x_n = block(up(x_{n+1}) + fill(map_n)), then one patch a site: Tian et al. 2023
    (SparK), section 3.3, with this house's blocks, and patches for the way up.
    """

    def build(
        self, config: ModelConfig, info: tuple[FeatureInfo, ...], rngs: nnx.Rngs
    ) -> None:
        widths = config.widths
        self.stages = nnx.List(
            [
                HierarchicalStage(config, info[n], widths[n], rngs=rngs)
                for n in reversed(range(len(info)))
            ]
        )
        self.ups = nnx.List(
            [
                layers.PatchTranspose(
                    widths[n],
                    widths[n - 1],
                    info[n].stride // info[n - 1].stride,
                    rngs=rngs,
                )
                for n in reversed(range(1, len(info)))
            ]
        )
        self.image = layers.PatchTranspose(
            widths[0],
            config.channels,
            info[0].stride,
            init=layers.trunc_normal,
            rngs=rngs,
        )

    def grow(self, x: Array, encoded: Encoded, context: Context) -> Array:
        dense = Context(train=context.train)
        x = self.fill_last(self.stages[0].fill, x, context)
        x = run_blocks(self.stages[0].blocks, x, dense, self.config.remat)
        finer = encoded.maps[-2::-1]
        for stage, up, skip in zip(self.stages[1:], self.ups, finer, strict=True):
            _, height, width, _ = skip.shape
            x = up(x)[:, :height, :width] + stage.fill(skip, context)
            x = run_blocks(stage.blocks, x, dense, self.config.remat)
        return self.image(x)[:, : encoded.size[0], : encoded.size[1]]


class BlockDecoder(FillingDecoder):
    """The last map filled, one block, one patch a site: Woo et al. 2023, section 3.1.

    The light decoder of FCMAE. It sees no finer map, so everything must be in the last.
    """

    def build(
        self, config: ModelConfig, info: tuple[FeatureInfo, ...], rngs: nnx.Rngs
    ) -> None:
        width = config.widths[-1]
        self.fill = Fill(info[-1].channels, width, config.norm, rngs=rngs)
        self.blocks = nnx.List([make_block(config, width, rngs)])
        self.image = layers.PatchTranspose(
            width,
            config.channels,
            info[-1].stride,
            init=layers.trunc_normal,
            rngs=rngs,
        )

    def grow(self, x: Array, encoded: Encoded, context: Context) -> Array:
        x = self.fill_last(self.fill, x, context)
        dense = Context(train=context.train)
        x = run_blocks(self.blocks, x, dense, self.config.remat)
        return self.image(x)[:, : encoded.size[0], : encoded.size[1]]
