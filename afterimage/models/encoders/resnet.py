"""ResNet: He et al. 2015, Table 1."""

import jax
from flax import nnx
from jaxtyping import Array

from afterimage.models import layers, ops
from afterimage.models.blocks import (
    BasicBlock,
    BlockStage,
    BottleneckBlock,
)
from afterimage.models.encoder import ModelConfig, StagedEncoder, make_feature_info
from afterimage.models.layers import PassInfo, make_norm
from afterimage.plugins import ENCODERS


class ResNetStem(nnx.Module):
    """7x7 stride 2 and 3x3 max-pooling; for small images only a 3x3 stride 1."""

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

    def __call__(self, x: Array, context: PassInfo) -> Array:
        x = jax.nn.relu(self.norm(self.conv(x, context), context))
        return ops.max_pool_3x3(context.hide(x)) if self.stride == 4 else x


class ResNet(StagedEncoder):
    """ResNet with basic or bottleneck blocks."""

    widths, stems = (64, 128, 256, 512), (1, 4)
    bottlenecks = False
    """Whether blocks have three convolutions, 1x1, 3x3 and 1x1, instead of two."""

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        block, factor = (BottleneckBlock, 4) if self.bottlenecks else (BasicBlock, 1)
        self.stem = ResNetStem(config, rngs)
        stages, i = [], config.widths[0]
        for n, (width, depth) in enumerate(
            zip(config.widths, self.depths, strict=True)
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


@ENCODERS.add("resnet18")
class ResNet18(ResNet):
    """ResNet-18, basic blocks"""

    depths = (2, 2, 2, 2)


@ENCODERS.add("resnet34")
class ResNet34(ResNet):
    """ResNet-34, basic blocks"""

    depths = (3, 4, 6, 3)


@ENCODERS.add("resnet50")
class ResNet50(ResNet):
    """ResNet-50, bottleneck blocks"""

    depths, bottlenecks = (3, 4, 6, 3), True
