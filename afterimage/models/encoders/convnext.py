"""ConvNeXt V2: Woo et al. 2023, sizes from its appendix; V1: Liu et al. 2022.

`convnext-SIZE` is ours to train from images. `convnextv2_SIZE` and `convnext_SIZE`, V2
and V1, take published weights: they have timm's names, and its norm of the feature
vector.
"""

from typing import ClassVar

from flax import nnx
from jaxtyping import Array

from afterimage.models import layers
from afterimage.models.blocks import BlockStage, ConvNeXtBlock
from afterimage.models.encoder import ModelConfig, StagedEncoder, make_feature_info
from afterimage.models.layers import PassInfo, make_norm
from afterimage.plugins import ENCODERS


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

    def __call__(self, x: Array, context: PassInfo) -> Array:
        return self.norm(self.conv(x, context), context)


class ConvNeXtDown(nnx.Module):
    """Norm, then patchify 2x2."""

    def __init__(self, i: int, o: int, norm: str, rngs: nnx.Rngs):
        self.norm = make_norm(norm, i)
        self.conv = layers.Patchify(i, o, 2, init=layers.trunc_normal, rngs=rngs)

    def __call__(self, x: Array, context: PassInfo) -> Array:
        return self.conv(self.norm(x, context), context)


class ConvNeXt(StagedEncoder):
    """ConvNeXt, V2 unless it scales its layers."""

    default_norm = "layer"
    layer_scale: ClassVar[bool] = False
    """Whether blocks have V1's layer scale in place of GRN."""

    @classmethod
    def default_stem(cls, image_size: tuple[int, int]) -> int:
        return 1 if min(image_size) <= 16 else super().default_stem(image_size)

    @classmethod
    def block(cls, c: int, norm: str, *, rngs: nnx.Rngs) -> nnx.Module:
        return ConvNeXtBlock(c, norm, layer_scale=cls.layer_scale, rngs=rngs)

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.stem = ConvNeXtStem(config, rngs)
        stages, i = [], config.widths[0]
        for n, (o, depth) in enumerate(zip(config.widths, self.depths, strict=True)):
            down = ConvNeXtDown(i, o, config.norm, rngs) if n > 0 else None
            blocks = [self.block(o, config.norm, rngs=rngs) for _ in range(depth)]
            stages.append(BlockStage(blocks, down))
            i = o
        self.stages = nnx.List(stages)
        self.feature_info = make_feature_info(config, config.stem_stride, config.widths)


@ENCODERS.add("convnext-atto")
class Atto(ConvNeXt):
    """ConvNeXt V2 atto"""

    widths, depths = (40, 80, 160, 320), (2, 2, 6, 2)


@ENCODERS.add("convnext-femto")
class Femto(ConvNeXt):
    """ConvNeXt V2 femto"""

    widths, depths = (48, 96, 192, 384), (2, 2, 6, 2)


@ENCODERS.add("convnext-pico")
class Pico(ConvNeXt):
    """ConvNeXt V2 pico"""

    widths, depths = (64, 128, 256, 512), (2, 2, 6, 2)


@ENCODERS.add("convnext-nano")
class Nano(ConvNeXt):
    """ConvNeXt V2 nano"""

    widths, depths = (80, 160, 320, 640), (2, 2, 8, 2)


@ENCODERS.add("convnext-tiny")
class Tiny(ConvNeXt):
    """ConvNeXt V2 tiny"""

    widths, depths = (96, 192, 384, 768), (3, 3, 9, 3)


@ENCODERS.add("convnextv2_atto")
class AttoV2(Atto):
    """ConvNeXt V2 atto, with timm's norm of the feature vector"""

    pooled_norm = True


@ENCODERS.add("convnext_atto")
class AttoV1(Atto):
    """ConvNeXt V1 atto, with timm's norm of the feature vector"""

    layer_scale, pooled_norm = True, True


@ENCODERS.add("convnextv2_femto")
class FemtoV2(Femto):
    """ConvNeXt V2 femto, with timm's norm of the feature vector"""

    pooled_norm = True


@ENCODERS.add("convnext_femto")
class FemtoV1(Femto):
    """ConvNeXt V1 femto, with timm's norm of the feature vector"""

    layer_scale, pooled_norm = True, True


@ENCODERS.add("convnextv2_pico")
class PicoV2(Pico):
    """ConvNeXt V2 pico, with timm's norm of the feature vector"""

    pooled_norm = True


@ENCODERS.add("convnext_pico")
class PicoV1(Pico):
    """ConvNeXt V1 pico, with timm's norm of the feature vector"""

    layer_scale, pooled_norm = True, True


@ENCODERS.add("convnextv2_nano")
class NanoV2(Nano):
    """ConvNeXt V2 nano, with timm's norm of the feature vector"""

    pooled_norm = True


@ENCODERS.add("convnext_nano")
class NanoV1(Nano):
    """ConvNeXt V1 nano, with timm's norm of the feature vector"""

    layer_scale, pooled_norm = True, True


@ENCODERS.add("convnextv2_tiny")
class TinyV2(Tiny):
    """ConvNeXt V2 tiny, with timm's norm of the feature vector"""

    pooled_norm = True


@ENCODERS.add("convnext_tiny")
class TinyV1(Tiny):
    """ConvNeXt V1 tiny, with timm's norm of the feature vector"""

    layer_scale, pooled_norm = True, True
