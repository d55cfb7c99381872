"""The classic convolutional encoder: Masci et al. 2011, section 4."""

import jax
from flax import nnx
from jaxtyping import Array

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


class ClassicStage(nnx.Module):
    """k x k convolution, norm, relu, 2x2 max-pooling."""

    def __init__(self, i: int, o: int, k: int, norm: str, rngs: nnx.Rngs):
        self.conv = layers.Conv(i, o, k, bias=False, rngs=rngs)
        self.norm = make_norm(norm, o)

    def __call__(self, x: Array, context: PassInfo) -> tuple[Array, Array]:
        x = jax.nn.relu(self.norm(self.conv(x, context), context))
        # No value is below zero here, so a hidden site is never the sole maximum.
        return ops.max_pool_with_switches(context.hide(x))


@ENCODERS.add("conv-classic")
class ClassicEncoder(EncoderNetwork):
    """3x3 convolution and max-pooling, max-unpooling decoder"""

    widths, depths, stems = (32, 64, 128), (1, 1, 1), (1, 1)
    kernels = (3, 3, 3)
    default_decoder = "unpool"
    gives_switches = True

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        ins = (config.channels, *config.widths)
        self.stages = nnx.List(
            [
                ClassicStage(i, o, k, config.norm, rngs)
                for i, o, k in zip(ins, config.widths, self.kernels, strict=False)
            ]
        )
        self.feature_info = make_feature_info(config, 2, config.widths)

    def encode(self, images: Array, context: PassInfo) -> tuple[Maps, Switches]:
        maps, switches, x = [], [], images
        for stage in self.stages:
            x, where = stage(x, context)
            maps.append(context.hide(x))
            switches.append(where)
        return maps, switches


@ENCODERS.add("conv-masci")
class Masci(ClassicEncoder):
    """5x5, 5x5 and 3x3 convolutions, max-pooling: 100, 150, 200 channels"""

    widths, kernels = (100, 150, 200), (5, 5, 3)
