"""The families of encoders, each stating its `feature_info`."""

from collections.abc import Callable, Sequence

import jax
from flax import nnx
from jaxtyping import Array

from afterimage.errors import UserError
from afterimage.models import layers, pooling
from afterimage.models.blocks import (
    BasicBlock,
    BottleneckBlock,
    ConvNeXtBlock,
    run_blocks,
)
from afterimage.models.config import ModelConfig
from afterimage.models.encoder import Encoder, Maps, Switches, make_feature_info
from afterimage.models.layers import Context
from afterimage.models.norms import make_norm
from afterimage.models.patches import PatchEncoder


class ConvStage(nnx.Module):
    """Patchify down, norm, relu, residual 3x3 blocks."""

    def __init__(self, i: int, o: int, r: int, depth: int, norm: str, rngs: nnx.Rngs):
        self.down = layers.Patchify(i, o, r, rngs=rngs)
        self.norm = make_norm(norm, o)
        self.blocks = nnx.List(
            [BasicBlock(o, o, norm, rngs=rngs) for _ in range(depth)]
        )

    def __call__(self, x: Array, context: Context, remat: bool) -> Array:
        x = jax.nn.relu(self.norm(self.down(x, context), context))
        return run_blocks(self.blocks, x, context, remat)


class ConvEncoder(Encoder):
    """The fast default: patchify down, RMS norm, residual 3x3 blocks."""

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        stages, i = [], config.channels
        for n, (o, depth) in enumerate(
            zip(config.widths, config.preset.depths, strict=True)
        ):
            r = config.stem_stride if n == 0 else 2
            stages.append(ConvStage(i, o, r, depth, config.norm, rngs))
            i = o
        self.stages = nnx.List(stages)
        self.feature_info = make_feature_info(config, config.stem_stride, config.widths)

    def encode(self, images: Array, context: Context) -> tuple[Maps, Switches]:
        maps, x = [], images
        for stage in self.stages:
            x = stage(x, context, self.config.remat)
            maps.append(context.hide(x))
        return maps, []


class ClassicStage(nnx.Module):
    """k x k convolution, norm, relu, 2x2 max-pooling."""

    def __init__(self, i: int, o: int, k: int, norm: str, rngs: nnx.Rngs):
        self.conv = layers.Conv(i, o, k, bias=False, rngs=rngs)
        self.norm = make_norm(norm, o)

    def __call__(self, x: Array, context: Context) -> tuple[Array, Array]:
        x = jax.nn.relu(self.norm(self.conv(x, context), context))
        # Nothing is below zero here, so that a hidden site never is the maximum.
        return pooling.max_pool_with_switches(context.hide(x))


class ClassicEncoder(Encoder):
    """The classic convolutional autoencoder's encoder (Masci et al. 2011)."""

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        ins = (config.channels, *config.widths)
        self.stages = nnx.List(
            [
                ClassicStage(i, o, k, config.norm, rngs)
                for i, o, k in zip(ins, config.widths, config.kernels, strict=False)
            ]
        )
        self.feature_info = make_feature_info(config, 2, config.widths)

    def encode(self, images: Array, context: Context) -> tuple[Maps, Switches]:
        maps, switches, x = [], [], images
        for stage in self.stages:
            x, where = stage(x, context)
            maps.append(context.hide(x))
            switches.append(where)
        return maps, switches


class VGGStage(nnx.Module):
    """3x3 convolutions with bias, norm and relu after each; 2x2 max-pooling."""

    def __init__(self, i: int, o: int, depth: int, norm: str, rngs: nnx.Rngs):
        self.convs = nnx.List(
            [layers.Conv(o if n else i, o, rngs=rngs) for n in range(depth)]
        )
        self.norms = nnx.List([make_norm(norm, o) for _ in range(depth)])

    def __call__(self, x: Array, context: Context) -> Array:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x, context), context))
        x, (h, w) = context.hide(x), x.shape[1:3]
        # PyTorch drops the odd row or column.
        return pooling.max_pool(x[:, : h // 2 * 2, : w // 2 * 2])


class VGG(Encoder):
    """VGG (Simonyan & Zisserman 2014, Table 1); maps after each pooling.

    A map of stride s is floor(H / s) high, as in PyTorch, unlike other encoders' ceil.
    """

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        ins = (config.channels, *config.widths[:-1])
        self.stages = nnx.List(
            [
                VGGStage(i, o, depth, config.norm, rngs)
                for i, o, depth in zip(
                    ins, config.widths, config.preset.depths, strict=True
                )
            ]
        )
        self.feature_info = make_feature_info(config, 2, config.widths)

    def encode(self, images: Array, context: Context) -> tuple[Maps, Switches]:
        if min(images.shape[1:3]) < 32:
            raise UserError(
                f"images of {images.shape[1:3]} px; VGG takes 32 px and more, as it "
                "halves them five times"
            )
        maps, x = [], images
        for stage in self.stages:
            x = stage(x, context)
            maps.append(x)
        return maps, []


class ResNetStem(nnx.Module):
    """7x7 stride 2 and 3x3 max-pooling; 3x3 stride 1 alone for small images."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        o = config.widths[0]
        self.stride = config.stem_stride
        self.conv = layers.Conv(
            config.channels,
            o,
            3 if self.stride == 1 else 7,
            stride=min(self.stride, 2),
            bias=False,
            rngs=rngs,
        )
        self.norm = make_norm(config.norm, o)

    def __call__(self, x: Array, context: Context) -> Array:
        x = jax.nn.relu(self.norm(self.conv(x, context), context))
        return pooling.max_pool_3x3(context.hide(x)) if self.stride == 4 else x


class BlockStage(nnx.Module):
    """Residual blocks, with a `down` layer before them in ConvNeXt."""

    def __init__(self, blocks: list, down: nnx.Module | None = None):
        self.down = down
        self.blocks = nnx.List(blocks)

    def __call__(self, x: Array, context: Context, remat: bool) -> Array:
        if self.down is not None:
            x = self.down(x, context)
        return run_blocks(self.blocks, x, context, remat)


class StagedEncoder(Encoder):
    """A stem, then stages, each of which gives a map; `build` sets both."""

    stem: Callable[[Array, Context], Array]
    stages: Sequence[BlockStage]

    def encode(self, images: Array, context: Context) -> tuple[Maps, Switches]:
        maps, x = [], self.stem(images, context)
        for stage in self.stages:
            x = stage(x, context, self.config.remat)
            maps.append(context.hide(x))
        return maps, []


class ResNet(StagedEncoder):
    """ResNet of basic or bottleneck blocks (He et al. 2015, Table 1)."""

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        basic = config.preset.block == "basic"
        block, factor = (BasicBlock, 1) if basic else (BottleneckBlock, 4)
        self.stem = ResNetStem(config, rngs)
        stages, i = [], config.widths[0]
        for n, (width, depth) in enumerate(
            zip(config.widths, config.preset.depths, strict=True)
        ):
            blocks = []
            for j in range(depth):
                stride = 2 if n > 0 and j == 0 else 1
                blocks.append(
                    block(i, factor * width, config.norm, stride=stride, rngs=rngs)
                )
                i = factor * width
            stages.append(BlockStage(blocks))
        self.stages = nnx.List(stages)
        self.feature_info = make_feature_info(
            config, config.stem_stride, [factor * w for w in config.widths]
        )


class ConvNeXtStem(nnx.Module):
    """Patchify, then norm."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        o = config.widths[0]
        self.conv = layers.Patchify(
            config.channels,
            o,
            config.stem_stride,
            init=layers.trunc_normal,
            rngs=rngs,
        )
        self.norm = make_norm(config.norm, o)

    def __call__(self, x: Array, context: Context) -> Array:
        return self.norm(self.conv(x, context), context)


class ConvNeXtDown(nnx.Module):
    """Norm, then patchify 2x2."""

    def __init__(self, i: int, o: int, norm: str, rngs: nnx.Rngs):
        self.norm = make_norm(norm, i)
        self.conv = layers.Patchify(i, o, 2, init=layers.trunc_normal, rngs=rngs)

    def __call__(self, x: Array, context: Context) -> Array:
        return self.conv(self.norm(x, context), context)


class ConvNeXt(StagedEncoder):
    """ConvNeXt V2 (Woo et al. 2023)."""

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.stem = ConvNeXtStem(config, rngs)
        stages, i = [], config.widths[0]
        for n, (o, depth) in enumerate(
            zip(config.widths, config.preset.depths, strict=True)
        ):
            down = ConvNeXtDown(i, o, config.norm, rngs) if n > 0 else None
            blocks = [ConvNeXtBlock(o, config.norm, rngs=rngs) for _ in range(depth)]
            stages.append(BlockStage(blocks, down))
            i = o
        self.stages = nnx.List(stages)
        self.feature_info = make_feature_info(config, config.stem_stride, config.widths)


FAMILIES = {
    "conv": ConvEncoder,
    "classic": ClassicEncoder,
    "patches": PatchEncoder,
    "vgg": VGG,
    "resnet": ResNet,
    "convnext": ConvNeXt,
}


def build_encoder(config: ModelConfig, *, rngs: nnx.Rngs) -> Encoder:
    """The encoder a config names, freshly initialised."""
    return FAMILIES[config.preset.family](config, rngs=rngs)


def abstract_encoder(config: ModelConfig) -> Encoder:
    """The same with shapes in place of arrays: to be loaded, or only described."""
    return nnx.eval_shape(lambda: build_encoder(config, rngs=nnx.Rngs(0)))
