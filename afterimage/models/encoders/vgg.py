"""VGG: Simonyan & Zisserman 2014, Table 1."""

import jax
from flax import nnx
from jaxtyping import Array

from afterimage.errors import UserError
from afterimage.models import layers, ops
from afterimage.models.encoder import (
    EncoderNetwork,
    Maps,
    ModelConfig,
    Switches,
    make_feature_info,
)
from afterimage.models.layers import PassInfo, make_norm
from afterimage.plugins import ENCODERS


class VGGStage(nnx.Module):
    """3x3 convolutions with bias, norm and relu after each; 2x2 max-pooling."""

    def __init__(self, i: int, o: int, depth: int, norm: str, rngs: nnx.Rngs):
        self.convs = nnx.List(
            [layers.Conv(o if n else i, o, rngs=rngs) for n in range(depth)]
        )
        self.norms = nnx.List([make_norm(norm, o) for _ in range(depth)])

    def __call__(self, x: Array, context: PassInfo) -> Array:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x, context), context))
        x, (h, w) = context.hide(x), x.shape[1:3]
        # PyTorch drops the odd row or column.
        return ops.max_pool(x[:, : h // 2 * 2, : w // 2 * 2])


class VGG(EncoderNetwork):
    """VGG (Simonyan & Zisserman 2014, Table 1); maps after each pooling.

    A map of stride s is floor(H / s) high, as in PyTorch, unlike other encoders' ceil.
    """

    widths, stems = (64, 128, 256, 512, 512), (1, 1)
    default_norm = "none"

    @classmethod
    def problems(cls, image_size: tuple[int, int]) -> list[str]:
        if not any(n < 32 or n % 32 for n in image_size):
            return []
        return [
            f"image_size={image_size} must be a multiple of 32: VGG halves the image "
            "five times and drops odd pixels"
        ]

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        ins = (config.channels, *config.widths[:-1])
        self.stages = nnx.List(
            [
                VGGStage(i, o, depth, config.norm, rngs)
                for i, o, depth in zip(ins, config.widths, self.depths, strict=True)
            ]
        )
        self.feature_info = make_feature_info(config, 2, config.widths)

    def encode(self, images: Array, context: PassInfo) -> tuple[Maps, Switches]:
        if min(images.shape[1:3]) < 32:
            raise UserError(
                f"images of {images.shape[1:3]} px; VGG needs at least 32 px, as it "
                "halves them five times"
            )
        maps, x = [], images
        for stage in self.stages:
            x = stage(x, context)
            maps.append(x)
        return maps, []


@ENCODERS.add("vgg11")
class VGG11(VGG):
    """VGG-11 without a norm"""

    depths = (1, 1, 2, 2, 2)


@ENCODERS.add("vgg16")
class VGG16(VGG):
    """VGG-16 without a norm"""

    depths = (2, 2, 3, 3, 3)


@ENCODERS.add("vgg11_bn")
class VGG11BN(VGG11):
    """VGG-11 with BatchNorm"""

    default_norm = "batch"


@ENCODERS.add("vgg16_bn")
class VGG16BN(VGG16):
    """VGG-16 with BatchNorm"""

    default_norm = "batch"
