"""The fast default: patchify down, RMS norm, residual 3x3 blocks."""

import jax
from flax import nnx
from jaxtyping import Array

from afterimage.models import layers
from afterimage.models.blocks import BasicBlock, run_blocks
from afterimage.models.encoder import (
    EncoderNetwork,
    Maps,
    ModelConfig,
    Switches,
    make_feature_info,
)
from afterimage.models.layers import PassInfo, make_norm
from afterimage.plugins import ENCODERS


class ConvStage(nnx.Module):
    """Patchify down, norm, relu, residual 3x3 blocks."""

    def __init__(self, i: int, o: int, r: int, depth: int, norm: str, rngs: nnx.Rngs):
        self.down = layers.Patchify(i, o, r, rngs=rngs)
        self.norm = make_norm(norm, o)
        self.blocks = nnx.List(
            [BasicBlock(o, o, norm, rngs=rngs) for _ in range(depth)]
        )

    def __call__(self, x: Array, context: PassInfo, remat: bool) -> Array:
        x = jax.nn.relu(self.norm(self.down(x, context), context))
        return run_blocks(self.blocks, x, context, remat)


@ENCODERS.add("conv")
class ConvEncoder(EncoderNetwork):
    """patchify down, residual 3x3 blocks; the fast default"""

    widths, depths = (32, 64, 128), (0, 1, 1)

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        stages, i = [], config.channels
        for n, (o, depth) in enumerate(zip(config.widths, self.depths, strict=True)):
            r = config.stem_stride if n == 0 else 2
            stages.append(ConvStage(i, o, r, depth, config.norm, rngs))
            i = o
        self.stages = nnx.List(stages)
        self.feature_info = make_feature_info(config, config.stem_stride, config.widths)

    def encode(self, images: Array, context: PassInfo) -> tuple[Maps, Switches]:
        maps, x = [], images
        for stage in self.stages:
            x = stage(x, context, self.config.remat)
            context = context.after(len(stage.blocks))
            maps.append(context.hide(x))
        return maps, []
