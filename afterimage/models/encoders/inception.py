"""InceptionV3: Szegedy et al. 2016, as torchvision and Keras have it, without its head.

Many layers are not padded, so maps lack sites at the borders: `InceptionInfo`.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from afterimage.errors import UserError
from afterimage.models import layers, ops
from afterimage.models.blocks import BlockStage
from afterimage.models.encoder import (
    EncoderNetwork,
    FeatureInfo,
    Maps,
    ModelConfig,
    Switches,
)
from afterimage.models.layers import PassInfo, make_norm
from afterimage.plugins import ENCODERS

SMALLEST = 75  # pixels a side that leave one site in the last map


class Conv(NamedTuple):
    """A convolution, its norm and relu, with torchvision's name."""

    name: str
    channels: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    padded: bool = True


Step = str | Conv | tuple[Conv, ...]
"""`MAX`, `MEAN`, a convolution, or several side by side."""
Branch = tuple[Step, ...]
MAX, MEAN = "3x3 maximum, stride 2, not padded", "3x3 mean, padded"


def _a(pooled: int) -> tuple[Branch, ...]:
    """Figure 5, with a 5x5 convolution kept."""
    double = (Conv("branch3x3dbl_2", 96, 3), Conv("branch3x3dbl_3", 96, 3))
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, 5)),
        (Conv("branch3x3dbl_1", 64), *double),
        (MEAN, Conv("branch_pool", pooled)),
    )


def _c(inner: int) -> tuple[Branch, ...]:
    """Figure 6: 7x7 convolutions in two steps."""
    row, column = (1, 7), (7, 1)
    return (
        (Conv("branch1x1", 192),),
        (
            Conv("branch7x7_1", inner),
            Conv("branch7x7_2", inner, row),
            Conv("branch7x7_3", 192, column),
        ),
        (
            Conv("branch7x7dbl_1", inner),
            Conv("branch7x7dbl_2", inner, column),
            Conv("branch7x7dbl_3", inner, row),
            Conv("branch7x7dbl_4", inner, column),
            Conv("branch7x7dbl_5", 192, row),
        ),
        (MEAN, Conv("branch_pool", 192)),
    )


_B = (
    (Conv("branch3x3", 384, 3, 2, padded=False),),
    (
        Conv("branch3x3dbl_1", 64),
        Conv("branch3x3dbl_2", 96, 3),
        Conv("branch3x3dbl_3", 96, 3, 2, padded=False),
    ),
    (MAX,),
)
_D = (
    (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, 3, 2, padded=False)),
    (
        Conv("branch7x7x3_1", 192),
        Conv("branch7x7x3_2", 192, (1, 7)),
        Conv("branch7x7x3_3", 192, (7, 1)),
        Conv("branch7x7x3_4", 192, 3, 2, padded=False),
    ),
    (MAX,),
)
_E = (
    (Conv("branch1x1", 320),),
    (
        Conv("branch3x3_1", 384),
        (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))),
    ),
    (
        Conv("branch3x3dbl_1", 448),
        Conv("branch3x3dbl_2", 384, 3),
        (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
    ),
    (MEAN, Conv("branch_pool", 192)),
)
_FIRST = (
    Conv("Conv2d_1a_3x3", 32, 3, 2, padded=False),
    Conv("Conv2d_2a_3x3", 32, 3, padded=False),
    Conv("Conv2d_2b_3x3", 64, 3),
)
_SECOND = (
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, 3, padded=False),
)
STAGES: tuple[dict[str, tuple[Branch, ...]], ...] = (
    {"": (_FIRST,)},
    {"": (_SECOND,)},
    {"Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64)},
    {
        "Mixed_6a": _B,
        **{f"Mixed_6{n}": _c(c) for n, c in zip("bcde", (128, 160, 160, 192))},
    },
    {"Mixed_7a": _D, "Mixed_7b": _E, "Mixed_7c": _E},
)
"""The blocks of each stage, by torchvision's names."""


def convolutions() -> list[str]:
    """Torchvision's names of all convolutions, in the order of Keras' numbers."""
    found = []
    for at, branches in (block for stage in STAGES for block in stage.items()):
        steps = [step for branch in branches for step in branch]
        for step in (s for s in steps if not isinstance(s, str)):
            convs = (step,) if isinstance(step, Conv) else step
            found += [f"{at}.{conv.name}".removeprefix(".") for conv in convs]
    return found


class ConvUnit(nnx.Module):
    """relu(norm(convolution)), BatchNorm with epsilon 1e-3."""

    def __init__(self, i: int, o: int, conv: Conv, norm: str, *, rngs: nnx.Rngs):
        how = {"stride": conv.stride, "padded": conv.padded, "bias": False}
        self.conv = layers.Conv(i, o, conv.kernel, **how, rngs=rngs)
        self.norm = make_norm(norm, o, epsilon=1e-3)

    def __call__(self, x: Array, context: PassInfo) -> Array:
        return jax.nn.relu(self.norm(self.conv(x, context), context))


def _max_pool(x: Array, context: PassInfo) -> Array:
    # No value is below zero here, so a hidden site is never the sole maximum.
    return ops.max_pool_3x3(context.hide(x), padded=False)


class Mixed(nnx.Module):
    """The outputs of several branches, one after another along the channels."""

    def __init__(
        self, i: int, branches: tuple[Branch, ...], config: ModelConfig, rngs: nnx.Rngs
    ):
        self.branches, self.channels = branches, 0
        self.counts_padding = config.encoder.counts_padding  # pyright: ignore[reportAttributeAccessIssue]
        for branch in branches:
            width = i
            for step in branch:
                if isinstance(step, str):
                    continue
                convs = (step,) if isinstance(step, Conv) else step
                outs = [config.scaled(conv.channels) for conv in convs]
                for conv, o in zip(convs, outs, strict=True):
                    unit = ConvUnit(width, o, conv, config.norm, rngs=rngs)
                    setattr(self, conv.name, unit)
                width = sum(outs)
            self.channels += width

    def __call__(self, x: Array, context: PassInfo) -> Array:
        found = []
        for branch in self.branches:
            y = x
            for step in branch:
                y = self._step(step, y, context)
            found.append(y)
        return jnp.concatenate(found, -1)

    def _step(self, step: Step, x: Array, context: PassInfo) -> Array:
        if step == MAX:
            return _max_pool(x, context)
        if step == MEAN:
            return ops.mean_pool_3x3(context.hide(x), self.counts_padding)
        if isinstance(step, Conv):
            return getattr(self, step.name)(x, context)
        return jnp.concatenate([self._step(one, x, context) for one in step], -1)


_LOST = {2: 5, 4: 15, 8: 19, 16: 27, 32: 43}  # pixels, by stride


@dataclasses.dataclass(frozen=True)
class InceptionInfo(FeatureInfo):
    """A feature map without the sites that would need padding."""

    def sites(self, side: int) -> int:
        """floor((side - lost) / stride), with 5, 15, 19, 27 or 43 pixels lost."""
        return (side - _LOST[self.stride]) // self.stride


@ENCODERS.add("inception_v3")
class InceptionV3(EncoderNetwork):
    """InceptionV3, as in torchvision; images of at least 75 pixels

    Maps lie in the middle of the image and are smaller than those of other encoders: at
    299 pixels 147, 71, 35, 17 and 8 sites a side.
    """

    widths, depths, stems = (64, 192, 288, 768, 2048), (1, 1, 3, 5, 3), (2, 2)
    default_norm = "batch"
    counts_padding: ClassVar[bool] = True
    """Whether means at the border count the zeros around the map, as PyTorch's do."""

    @classmethod
    def problems(cls, image_size: tuple[int, int]) -> list[str]:
        if min(image_size) >= SMALLEST:
            return []
        return [
            f"image_size={image_size} must be at least {SMALLEST} px a side: the last "
            "map would have no site (resize the images, e.g. --image-size 96)"
        ]

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        stages, info, i = [], [], config.channels
        for n, depth in enumerate(self.depths):
            blocks = []
            for branches in list(STAGES[n].values())[:depth]:
                blocks.append(Mixed(i, branches, config, rngs))
                i = blocks[-1].channels
            stages.append(BlockStage(blocks))
            info.append(InceptionInfo(f"stages/{n}", i, 2 ** (n + 1)))
        self.stages, self.feature_info = nnx.List(stages), tuple(info)

    def encode(self, images: Array, context: PassInfo) -> tuple[Maps, Switches]:
        if min(images.shape[1:3]) < SMALLEST:
            raise UserError(
                f"images of {images.shape[1:3]} px; InceptionV3 needs at least "
                f"{SMALLEST} px a side"
            )
        maps, x = [], images
        for n, stage in enumerate(self.stages):
            if n in (1, 2):
                x = _max_pool(x, context)
            x = stage(x, context, self.config.remat)
            maps.append(context.hide(x))
        return maps, []


@ENCODERS.add("inception_v3_keras")
class InceptionV3Keras(InceptionV3):
    """InceptionV3, as in Keras: means at the border leave the padding out"""

    counts_padding = False
