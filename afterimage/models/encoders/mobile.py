"""Inverted residuals: MobileNetV2 (Sandler et al. 2018) and EfficientNet-Lite.

EfficientNet-Lite (https://github.com/tensorflow/tpu, models/official/efficientnet/lite)
is EfficientNet (Tan & Le 2019) without squeeze-and-excitation, with ReLU6.
"""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import jax
from flax import nnx
from jaxtyping import Array

from afterimage.models import layers
from afterimage.models.blocks import BlockStage, Residual
from afterimage.models.encoder import ModelConfig, StagedEncoder, make_feature_info
from afterimage.models.layers import PassInfo, make_norm
from afterimage.plugins import ENCODERS


class ConvUnit(nnx.Module):
    """relu6(norm(convolution))."""

    def __init__(
        self,
        i: int,
        o: int,
        k: int,
        norm: str,
        *,
        stride: int = 1,
        same: bool = False,
        epsilon: float = layers.BATCH_EPSILON,
        rngs: nnx.Rngs,
    ):
        how = {"stride": stride, "same": same}
        self.conv = layers.Conv(i, o, k, bias=False, rngs=rngs, **how)
        self.norm = make_norm(norm, o, epsilon=epsilon)

    def __call__(self, x: Array, context: PassInfo) -> Array:
        return jax.nn.relu6(self.norm(self.conv(x, context), context))


class InvertedResidual(Residual):
    """1x1 to `factor` times the channels, k x k depthwise, 1x1 to o; a norm after each.

    relu6 follows the first two. x is added where channels and size stay the same. With
    a factor of 1 the first convolution is left out.
    """

    def __init__(
        self,
        i: int,
        o: int,
        k: int,
        norm: str,
        *,
        stride: int = 1,
        factor: int = 1,
        same: bool = False,
        epsilon: float = layers.BATCH_EPSILON,
        rngs: nnx.Rngs,
    ):
        m = i * factor
        if factor > 1:
            self.expand = layers.Conv(i, m, 1, bias=False, rngs=rngs)
            self.expand_norm = make_norm(norm, m, epsilon=epsilon)
        else:
            self.expand = None
        self.depthwise = layers.DepthwiseConv(
            m,
            k,
            stride=stride,
            same=same,
            bias=False,
            init=layers.he_normal,
            rngs=rngs,
        )
        self.depthwise_norm = make_norm(norm, m, epsilon=epsilon)
        self.project = layers.Conv(m, o, 1, bias=False, rngs=rngs)
        self.project_norm = make_norm(norm, o, epsilon=epsilon)
        self.adds = stride == 1 and i == o

    def __call__(self, x: Array, context: PassInfo) -> Array:
        y = x
        if self.expand is not None:
            y = jax.nn.relu6(self.expand_norm(self.expand(y, context), context))
        y = jax.nn.relu6(self.depthwise_norm(self.depthwise(y, context), context))
        y = self.project_norm(self.project(y, context), context)
        return x + context.branch(y) if self.adds else y


Group = tuple[int, int, int, int]
"""Of like blocks: expansion factor, kernel size, channels, number of blocks."""


class Mobile(StagedEncoder):
    """A 3x3 convolution, inverted residuals, and a 1x1 convolution to 1280 channels.

    The stem has stride 1 for images of at most 64 px. Every stage but the first starts
    with stride 2.
    """

    stems = (1, 2)
    default_norm = "batch"
    groups: ClassVar[tuple[tuple[Group, ...], ...]]
    """The blocks of each stage."""
    same: ClassVar[bool] = False
    """Padding of convolutions with a stride as TensorFlow has it."""
    epsilon: ClassVar[float] = layers.BATCH_EPSILON
    """Of BatchNorm."""
    _STEM: ClassVar[int] = 32

    @classmethod
    def block(cls, c: int, norm: str, *, rngs: nnx.Rngs) -> nnx.Module:
        return InvertedResidual(c, c, 3, norm, rngs=rngs)

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        norm, how = config.norm, {"same": self.same, "epsilon": self.epsilon}
        i = config.scaled(self._STEM)
        self.stem = ConvUnit(
            config.channels, i, 3, norm, stride=config.stem_stride, rngs=rngs, **how
        )
        stages = []
        for number, groups in enumerate(self.groups):
            blocks = []
            kinds = (itertools.repeat(group[:3], group[3]) for group in groups)
            for factor, k, channels in itertools.chain.from_iterable(kinds):
                stride = 2 if number > 0 and not blocks else 1
                o = config.scaled(channels)
                blocks.append(
                    InvertedResidual(
                        i, o, k, norm, stride=stride, factor=factor, rngs=rngs, **how
                    )
                )
                i = o
            if number == len(self.groups) - 1:
                o = config.widths[-1]
                blocks.append(ConvUnit(i, o, 1, norm, rngs=rngs, epsilon=self.epsilon))
            stages.append(BlockStage(blocks))
        self.stages = nnx.List(stages)
        self.feature_info = make_feature_info(config, config.stem_stride, config.widths)


def _stages(
    kernels: Sequence[int], channels: Sequence[int], blocks: Sequence[int]
) -> tuple[tuple[Group, ...], ...]:
    """Seven groups of blocks in five stages: one, one, one, two, two."""
    every = zip((1, 6, 6, 6, 6, 6, 6), kernels, channels, blocks, strict=True)
    first, second, third, *rest = every
    return (first,), (second,), (third,), tuple(rest[:2]), tuple(rest[2:])


@ENCODERS.add("mobilenet_v2")
class MobileNetV2(Mobile):
    """MobileNetV2"""

    widths, depths = (16, 24, 32, 96, 1280), (1, 2, 3, 7, 4)
    groups = _stages((3,) * 7, (16, 24, 32, 64, 96, 160, 320), (1, 2, 3, 4, 3, 3, 1))


_KERNELS = (3, 3, 5, 3, 5, 5, 3)


@ENCODERS.add("efficientnet_lite0")
class EfficientNetLite0(Mobile):
    """EfficientNet-Lite0"""

    widths, depths = (16, 24, 40, 112, 1280), (1, 2, 2, 6, 5)
    same, epsilon = True, 1e-3
    groups = _stages(_KERNELS, (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1))


@ENCODERS.add("efficientnet_lite1")
class EfficientNetLite1(EfficientNetLite0):
    """EfficientNet-Lite1"""

    depths = (1, 3, 3, 8, 6)
    groups = _stages(_KERNELS, (16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1))


@ENCODERS.add("efficientnet_lite2")
class EfficientNetLite2(EfficientNetLite0):
    """EfficientNet-Lite2"""

    widths, depths = (16, 24, 48, 120, 1280), (1, 3, 3, 8, 6)
    groups = _stages(_KERNELS, (16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1))
