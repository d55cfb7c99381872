"""Decoders: from the last feature map, or the bottleneck vector, to an image.

Decoders for masked images fill masked sites with a learned token that means "nothing
was seen here". Filled maps are dense: from there on nothing is masked.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from afterimage.errors import UserError
from afterimage.models import layers, ops
from afterimage.models.blocks import run_blocks
from afterimage.models.encoder import (
    EncoderNetwork,
    FeatureInfo,
    Maps,
    ModelConfig,
    Switches,
    build_encoder,
)
from afterimage.models.layers import PassInfo, make_norm


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What an encoder passes to a decoder."""

    code: Float[Array, "b ..."]
    """The last map, or the vector if there is a bottleneck."""
    maps: Maps
    switches: Switches
    size: tuple[int, int]
    """Height and width of the images."""

    def with_code(self, code: Array) -> "Encoded":
        """A copy with another code."""
        # Decoders use the code, never the last map.
        return dataclasses.replace(self, code=code)


def _on_grid(x: Array, stride: int, size: tuple[int, int]) -> Array:
    """A map with all sites of its stride: zeros where the encoder did not pad."""
    return ops.pad_around(x, (-(-size[0] // stride), -(-size[1] // stride)))


class NearestConv(nnx.Module):
    """Nearest up-sampling by r, then a 3x3 convolution."""

    def __init__(self, i: int, o: int, r: int, *, rngs: nnx.Rngs):
        self.r = r
        self.conv = layers.Conv(i, o, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b H W o"]:
        return self.conv(ops.upsample_nearest(x, self.r))


class TransposedConvs(nnx.Module):
    """4x4 stride-2 transposed convolutions, enough of them to upsample by r."""

    def __init__(self, i: int, o: int, r: int, *, rngs: nnx.Rngs):
        times = r.bit_length() - 1
        if times == 0:
            self.convs = nnx.List([layers.Conv(i, o, rngs=rngs)])
            return
        widths = [i] * times + [o]
        self.convs = nnx.List(
            [layers.ConvTranspose(*widths[n : n + 2], rngs=rngs) for n in range(times)]
        )

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b H W o"]:
        for n, conv in enumerate(self.convs):
            x = conv(jax.nn.relu(x) if n else x)
        return x


UPS = {
    "light": layers.PatchTranspose,
    "symmetric": layers.PatchTranspose,
    "transposed": TransposedConvs,
    "nearest": NearestConv,
}


class UpStage(nnx.Module):
    """Upsample by r, norm, relu, blocks; the last stage only upsamples."""

    def __init__(
        self, config: ModelConfig, i: int, o: int, r: int, depth: int, *, last, rngs
    ):
        self.up = UPS[config.decoder](i, o, r, rngs=rngs)
        self.norm = None if last else make_norm(config.norm, o)
        blocks = [make_block(config, o, rngs) for _ in range(depth)]
        self.blocks = nnx.List(blocks)

    def __call__(
        self, x: Array, size: tuple[int, int], context: PassInfo, remat: bool
    ) -> Array:
        x = self.up(x)[:, : size[0], : size[1]]
        if self.norm is None:
            return x
        return run_blocks(
            self.blocks, jax.nn.relu(self.norm(x, context)), context, remat
        )


def make_block(config: ModelConfig, c: int, rngs: nnx.Rngs) -> nnx.Module:
    """A block of the model's own family."""
    return config.encoder.block(c, config.norm, rngs=rngs)


class DecoderNetwork(nnx.Module):
    """Base class of decoders: expands a bottleneck vector to a map first.

    A subclass sets `stages` by `build`, coarsest first, and runs them in `grow`.
    """

    def __init__(self, encoder: EncoderNetwork, *, rngs: nnx.Rngs):
        self.config = encoder.config
        self.info, self.last = encoder.feature_info, encoder.feature_info[-1]
        self.build(self.config, encoder.feature_info, rngs)
        if encoder.bottleneck is None:
            self.expand = None
        else:
            i, o = encoder.bottleneck.kernel.shape
            self.expand = layers.Dense(o, i, rngs=rngs)

    def build(
        self, config: ModelConfig, info: tuple[FeatureInfo, ...], rngs: nnx.Rngs
    ) -> None:
        """Create the stages."""
        raise NotImplementedError

    def grow(self, x: Array, encoded: Encoded, context: PassInfo) -> Array:
        """From the last map to an image."""
        raise NotImplementedError

    def __call__(self, encoded: Encoded, context: PassInfo) -> Float[Array, "b h w c"]:
        """From the last map, or the vector if there is a bottleneck, to an image."""
        x = encoded.code
        if self.expand is not None:
            rows, cols = map(self.last.sites, encoded.size)
            x = self.expand(x).reshape(-1, rows, cols, self.last.channels)
        maps = [
            _on_grid(each, info.stride, encoded.size)
            for each, info in zip(encoded.maps, self.info)
        ]
        x = _on_grid(x, self.last.stride, encoded.size)
        return self.grow(x, dataclasses.replace(encoded, maps=maps), context)


class UpDecoder(DecoderNetwork):
    """One stage per feature map, each upsampling to the size of the next finer map.

    `light` has no blocks, `symmetric` as many as the encoder has at that size.
    """

    def build(
        self, config: ModelConfig, info: tuple[FeatureInfo, ...], rngs: nnx.Rngs
    ) -> None:
        finer = (FeatureInfo("image", config.channels, 1), *info[:-1])
        depths = (0, *config.encoder.depths)
        self.sizes = tuple(f.stride for f in finer[::-1])
        self.stages = nnx.List(
            [
                UpStage(
                    config,
                    info[n].channels,
                    finer[n].channels,
                    info[n].stride // finer[n].stride,
                    depths[n] if config.decoder == "symmetric" else 0,
                    last=n == 0,
                    rngs=rngs,
                )
                for n in reversed(range(len(info)))
            ]
        )

    def grow(self, x: Array, encoded: Encoded, context: PassInfo) -> Array:
        for stage, stride in zip(self.stages, self.sizes, strict=True):
            grown = (-(-encoded.size[0] // stride), -(-encoded.size[1] // stride))
            x = stage(x, grown, context, self.config.remat)
        return x


class UnpoolStage(nnx.Module):
    """Max-unpooling, k x k convolution, then norm and relu except in the last stage."""

    def __init__(
        self, i: int, o: int, k: int, norm: str, *, last: bool, rngs: nnx.Rngs
    ):
        self.conv = layers.Conv(i, o, k, bias=last, rngs=rngs)
        self.norm = None if last else make_norm(norm, o)

    def __call__(self, x: Array, switches: Array, size, context: PassInfo) -> Array:
        x = self.conv(ops.max_unpool(x, switches, size))
        return x if self.norm is None else jax.nn.relu(self.norm(x, context))


class UnpoolDecoder(DecoderNetwork):
    """The classic decoder: puts values back at the positions of the encoder's maxima.

    It needs the encoder's switches, which hold positions that the code lacks.
    """

    def build(
        self, config: ModelConfig, info: tuple[FeatureInfo, ...], rngs: nnx.Rngs
    ) -> None:
        outs = (config.channels, *(f.channels for f in info[:-1]))
        kernels = getattr(config.encoder, "kernels", (3,) * len(info))
        self.sizes = tuple(f.stride // 2 for f in info[::-1])
        self.stages = nnx.List(
            [
                UnpoolStage(
                    info[n].channels,
                    outs[n],
                    kernels[n],
                    config.norm,
                    last=n == 0,
                    rngs=rngs,
                )
                for n in reversed(range(len(info)))
            ]
        )

    def grow(self, x: Array, encoded: Encoded, context: PassInfo) -> Array:
        for stage, stride, where in zip(
            self.stages, self.sizes, reversed(encoded.switches), strict=True
        ):
            grown = (-(-encoded.size[0] // stride), -(-encoded.size[1] // stride))
            x = stage(x, where, grown, context)
        return x


class Fill(nnx.Module):
    """Norm, the token at masked sites, and a projection to the decoder's width.

    Tian et al. 2023 (SparK), section 3.3, "densifying".
    """

    def __init__(self, i: int, o: int, norm: str, *, rngs: nnx.Rngs):
        self.norm = make_norm(norm, i)
        self.token = nnx.Param(layers.trunc_normal(rngs, (i,), i))
        self.project = layers.Conv(i, o, 1, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w i"], context: PassInfo
    ) -> Float[Array, "b h w o"]:
        x = self.norm(x, context)
        visible = context.visible(x)
        if visible is not None:
            token = ops.per_channel(self.token[...].astype(x.dtype), x)
            x = jnp.where(visible, x, token)
        return self.project(x)


def _faint(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
    """A tenth of `trunc_normal`: a new decoder outputs almost nothing.

    Targets are centred, so that is their mean. Louder noise would first be unlearned,
    by switching units off (docs/design/representations.md).
    """
    return 0.1 * layers.trunc_normal(rngs, shape, fan_in)


class FillingDecoder(DecoderNetwork):
    """Base class of filling decoders; fills the last map unless made from a vector."""

    def fill_last(self, fill: Fill, x: Array, context: PassInfo) -> Array:
        """The last map, filled; a map expanded from a vector has no gaps to fill."""
        dense = PassInfo(train=context.train)
        return fill(x, context if self.expand is None else dense)


class HierarchicalStage(nnx.Module):
    """A filled map plus the coarser stage's output, passed through one block."""

    def __init__(self, config: ModelConfig, info: FeatureInfo, o: int, *, rngs):
        self.fill = Fill(info.channels, o, config.norm, rngs=rngs)
        self.blocks = nnx.List([make_block(config, o, rngs)])


class HierarchicalDecoder(FillingDecoder):
    """Fills every map and adds it to the decoder at its own size, coarsest first.

    x_n = block(up(x_{n+1}) + fill(map_n)), then one patch per site: Tian et al. 2023
    (SparK), section 3.3, with our own blocks, and upsampling by patches.
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
            init=_faint,
            rngs=rngs,
        )

    def grow(self, x: Array, encoded: Encoded, context: PassInfo) -> Array:
        dense = PassInfo(train=context.train)
        x = self.fill_last(self.stages[0].fill, x, context)
        x = run_blocks(self.stages[0].blocks, x, dense, self.config.remat)
        finer = encoded.maps[-2::-1]
        for stage, up, skip in zip(self.stages[1:], self.ups, finer, strict=True):
            _, height, width, _ = skip.shape
            x = up(x)[:, :height, :width] + stage.fill(skip, context)
            x = run_blocks(stage.blocks, x, dense, self.config.remat)
        return self.image(x)[:, : encoded.size[0], : encoded.size[1]]


class BlockDecoder(FillingDecoder):
    """The last map filled, one block, one patch per site: Woo et al. 2023, section 3.1.

    The light decoder of FCMAE. It sees no finer maps, so the last one must hold
    everything.
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
            init=_faint,
            rngs=rngs,
        )

    def grow(self, x: Array, encoded: Encoded, context: PassInfo) -> Array:
        x = self.fill_last(self.fill, x, context)
        dense = PassInfo(train=context.train)
        x = run_blocks(self.blocks, x, dense, self.config.remat)
        return self.image(x)[:, : encoded.size[0], : encoded.size[1]]


def build_decoder(encoder: EncoderNetwork, *, rngs: nnx.Rngs) -> DecoderNetwork:
    """The decoder that the encoder's config names, freshly initialised."""
    kinds = {"hierarchical": HierarchicalDecoder, "block": BlockDecoder}
    kinds = {**kinds, "unpool": UnpoolDecoder}
    return kinds.get(encoder.config.decoder, UpDecoder)(encoder, rngs=rngs)


class Autoencoder(nnx.Module):
    """Encoder, optional bottleneck, decoder: images to images of the same shape."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.encoder: EncoderNetwork = build_encoder(config, rngs=rngs)
        self.decoder: DecoderNetwork = build_decoder(self.encoder, rngs=rngs)

    def encode(self, images: Float[Array, "b h w c"], context: PassInfo) -> Encoded:
        """The code, and anything else a decoder may use."""
        maps, switches = self.encoder.encode(images, context)
        code = maps[-1]
        last = self.encoder.feature_info[-1]
        if code.shape[1:3] != tuple(map(last.sites, images.shape[1:3])):
            raise UserError(
                f"images of {images.shape[1:3]} px cannot be reconstructed: "
                f"{self.encoder.config.name} drops the pixels beyond multiples of "
                f"{last.stride}. Resize the images"
            )
        if self.encoder.bottleneck is not None:
            code = self.encoder.vector(code)
        _, height, width, _ = images.shape
        return Encoded(code, maps, switches, (height, width))

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        *,
        mask: Bool[Array, "b h w"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """The reconstruction, in the input's scale; masked pixels are not seen.

        Raises:
            UserError: the encoder drops pixels at this size (VGG).
        """
        context = PassInfo(train=train, mask=mask)
        return self.decoder(self.encode(images, context), context)


def build_autoencoder(config: ModelConfig, *, rngs: nnx.Rngs) -> Autoencoder:
    """The autoencoder that a config names, freshly initialised."""
    return Autoencoder(config, rngs=rngs)
