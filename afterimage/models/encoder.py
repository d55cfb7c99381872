"""Encoders: model configs, the base class, and modules as pure functions.

Every encoder takes any input of at least 8 x 8 px. A map of stride s is ceil(H / s)
high: patchify pads odd sides at the bottom and right, 3x3 convolutions pad on all
sides.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from afterimage.checkpoints.schemas import LARGEST_SIDE, MOST_CHANNELS, WIDEST
from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.errors import UserError
from afterimage.models import layers
from afterimage.models.blocks import BasicBlock, Residual
from afterimage.models.layers import PassInfo, StochasticDepth
from afterimage.plugins import ENCODERS

MIN_IMAGE_SIZE = 8
NORMS = ("rms", "layer", "group", "batch", "frozen", "none")
MASKED_DECODERS = ("hierarchical", "block")
"""Decoders that fill masked sites with a learned token."""
DECODERS = ("light", "symmetric", "transposed", "nearest", "unpool", *MASKED_DECODERS)

Maps = list[Float[Array, "b _h _w _c"]]
Switches = list[UInt8[Array, "b _h _w _c"]]


@dataclasses.dataclass(frozen=True)
class FeatureInfo:
    """One feature map: its name, its channels, and input pixels per map pixel.

    A map of stride s over H x W pixels is ceil(H / s) x ceil(W / s), with few
    exceptions (`sites`).
    """

    name: str
    channels: int
    stride: int

    def sites(self, side: int) -> int:
        """Rows of the map for this number of rows of pixels; the same for columns."""
        return -(-side // self.stride)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything needed to rebuild a model; defaults are resolved on construction.

    `norm=""`, `decoder=""` and `stem_stride=0` mean the encoder's own choice, which for
    the stem depends on the image size. The fields then hold the resolved values, so a
    stored config rebuilds the same tree even if defaults change later. `remat` trades
    compute for memory (blocks are recomputed in the backward pass); it changes neither
    tree nor result.

    Raises:
        UserError: lists every invalid field.
    """

    name: str = "conv"
    image_size: tuple[int, int] = (32, 32)
    channels: int = 3
    norm: str = ""
    decoder: str = ""
    bottleneck: int | None = None
    width: float = 1.0
    stem_stride: int = 0
    remat: bool = False

    def __post_init__(self) -> None:
        encoder = self.encoder
        # JSON returns lists; a frozen config is hashed, so it needs a tuple.
        object.__setattr__(self, "image_size", tuple(int(n) for n in self.image_size))
        wrong = self._mismatches()
        if wrong:
            raise UserError(f"model {self.name!r} cannot be built: {'; '.join(wrong)}.")
        object.__setattr__(self, "norm", self.norm or encoder.default_norm)
        object.__setattr__(self, "decoder", self.decoder or encoder.default_decoder)
        stem = self.stem_stride or encoder.default_stem(self.image_size)
        object.__setattr__(self, "stem_stride", stem)

    def _mismatches(self) -> list[str]:
        wrong = []
        size = self.image_size
        if len(size) != 2 or min(size) < MIN_IMAGE_SIZE or max(size) > LARGEST_SIDE:
            wrong.append(
                f"image_size={size} must be (H, W), each at least {MIN_IMAGE_SIZE} px"
                f" and at most {LARGEST_SIDE} px"
                " (resize the images, e.g. --image-size 32)"
            )
        if not 1 <= self.channels <= MOST_CHANNELS:
            wrong.append(
                f"channels={self.channels} must be at least 1 and at most"
                f" {MOST_CHANNELS}"
            )
        if self.norm not in ("", *NORMS):
            wrong.append(f"norm={self.norm!r} must be one of {', '.join(NORMS)}")
        if self.decoder not in ("", *DECODERS):
            wrong.append(
                f"decoder={self.decoder!r} must be one of {', '.join(DECODERS)}"
            )
        elif self.decoder == "unpool" and not self.encoder.gives_switches:
            wrong.append(
                "decoder='unpool' needs the max-pooling of 'conv-classic' and"
                " 'conv-masci'; take decoder='light' or one of them"
            )
        wrong += self.encoder.problems(size)
        if self.bottleneck is not None and not 1 <= self.bottleneck <= WIDEST:
            wrong.append(
                f"bottleneck={self.bottleneck} must be None, or at least 1 and at most"
                f" {WIDEST}"
            )
        if not 0 < self.width <= 16:
            wrong.append(f"width={self.width} must be greater than 0 and at most 16")
        if self.stem_stride not in (0, 1, 2, 4):
            wrong.append(f"stem_stride={self.stem_stride} must be 1, 2 or 4")
        return wrong

    @property
    def encoder(self) -> "type[EncoderNetwork]":
        """The encoder's class, from the registry."""
        return ENCODERS.get(self.name)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage: the encoder's times `width`, in multiples of 8."""
        return tuple(map(self.scaled, self.encoder.widths))

    def scaled(self, channels: int) -> int:
        """A number of channels times `width`, as a multiple of 8."""
        if self.width == 1:
            return channels
        return max(8, round(channels * self.width / 8) * 8)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` restores an equal config."""
        values = dataclasses.asdict(self) | {"image_size": list(self.image_size)}
        package = ENCODERS.origin(self.name)
        return values if package is None else values | {"package": package}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """A config from `to_dict`'s values; unknown names raise an error listing them.

        Raises:
            UserError: fields this version does not know, invalid values, or an encoder
                from a package that is not installed.
        """
        values = dict(values)
        ENCODERS.get(values.get("name", ""), values.pop("package", None))
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(
                f"the model config has unknown fields {', '.join(unknown)}; this "
                f"version knows {', '.join(sorted(known))}. If a newer version of "
                "Afterimage wrote it, update"
            )
        # JSON has lists for tuples.
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        if isinstance(plain.get("width"), int):  # JSON may write 1.0 as 1
            plain["width"] = float(plain["width"])
        return cls(**plain)


class EncoderNetwork(nnx.Module):
    """Base class of encoders: a stem, stages, and the feature vector of an image.

    A subclass creates its layers in `build` and runs them in `encode`. For a registered
    one (`@ENCODERS.add("my-encoder")`), lists of models show the first line of its
    docstring.
    """

    widths: ClassVar[tuple[int, ...]]
    """Channels of the stages, before `ModelConfig.width` multiplies them."""
    depths: ClassVar[tuple[int, ...]]
    """Blocks in each stage; a symmetric decoder has the same number."""
    stems: ClassVar[tuple[int, int]] = (2, 4)
    """Stem stride for images of at most 64 pixels, and for larger ones."""
    default_norm: ClassVar[str] = "rms"
    default_decoder: ClassVar[str] = "light"
    gives_switches: ClassVar[bool] = False
    """Whether `encode` returns the switches that the decoder `unpool` needs."""
    pooled_norm: ClassVar[bool] = False
    """Whether the feature vector is a LayerNorm of the mean of the last map."""
    feature_info: tuple[FeatureInfo, ...]
    stages: Any
    """The layers or blocks of each map, finest first."""

    @classmethod
    def default_stem(cls, image_size: tuple[int, int]) -> int:
        """Stem stride if none is set."""
        small, large = cls.stems
        return small if min(image_size) <= 64 else large

    @classmethod
    def problems(cls, image_size: tuple[int, int]) -> list[str]:
        """Reasons why images of this size cannot be used, one sentence each."""
        del image_size
        return []

    @classmethod
    def block(cls, c: int, norm: str, *, rngs: nnx.Rngs) -> nnx.Module:
        """A residual block of the encoder's kind, for decoders."""
        return BasicBlock(c, c, norm, rngs=rngs)

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.build(config, rngs)
        last = self.feature_info[-1]
        normed = config.bottleneck is None and self.pooled_norm
        self.vector_norm = layers.LayerNorm(last.channels) if normed else None
        if config.bottleneck is None:
            self.bottleneck = None
        else:
            h, w = map(last.sites, config.image_size)
            flat = h * w * last.channels
            self.bottleneck = layers.Dense(flat, config.bottleneck, rngs=rngs)

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        """Creates the layers and sets `feature_info`."""
        raise NotImplementedError

    def encode(self, images: Array, context: PassInfo) -> tuple[Maps, Switches]:
        """Feature maps, and the switches of max-pooling if there is any.

        With a mask in the context, maps are zero at masked sites.
        """
        raise NotImplementedError

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        *,
        mask: Bool[Array, "b h w"] | None = None,
        train: bool = False,
        depth: StochasticDepth | None = None,
    ) -> Maps:
        """Feature maps, finest first, of the sizes that `feature_info` gives.

        Pixels where `mask` is true do not affect the result, bit for bit; maps are zero
        at sites whose pixels are all masked. `depth` skips residual branches at random;
        the number of blocks is filled in.
        """
        if depth is not None:
            depth = dataclasses.replace(depth, blocks=self.residual_blocks)
        return self.encode(images, PassInfo(train=train, mask=mask, depth=depth))[0]

    @property
    def residual_blocks(self) -> int:
        """Number of blocks that stochastic depth counts; 0 if none is residual."""
        blocks = [b for stage in self.stages for b in getattr(stage, "blocks", ())]
        return len(blocks) if any(isinstance(b, Residual) for b in blocks) else 0

    @property
    def num_features(self) -> int:
        """Length of the feature vector."""
        return self.config.bottleneck or self.feature_info[-1].channels

    def features(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b d"]:
        """The feature vector: the bottleneck, if any, else the mean of the last map,
        which a few encoders normalise (`pooled_norm`)."""
        return self.vector(self(images, train=train)[-1])

    def vector(
        self, last: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b d"]:
        """The feature vector of the last map.

        Raises:
            UserError: the bottleneck was built for images of another size.
        """
        del train  # a bottleneck has no batch statistics
        if self.bottleneck is None:
            mean = last.mean((1, 2))
            norm = self.vector_norm
            return mean if norm is None else norm(mean, layers.DENSE)
        flat = last.reshape(last.shape[0], -1)
        if flat.shape[1] != self.bottleneck.kernel.shape[0]:
            raise UserError(
                "this encoder's bottleneck was built for images of "
                f"{self.config.image_size} px, but these give a last map of "
                f"{last.shape[1:]}; resize the images to that size"
            )
        return self.bottleneck(flat)


class StagedEncoder(EncoderNetwork):
    """A stem, then stages that each give one map; `build` sets both."""

    stem: Callable[[Array, PassInfo], Array]

    def encode(self, images: Array, context: PassInfo) -> tuple[Maps, Switches]:
        maps, x = [], self.stem(images, context)
        for stage in self.stages:
            x = stage(x, context, self.config.remat)
            context = context.after(len(stage.blocks))
            maps.append(context.hide(x))
        return maps, []


def make_feature_info(
    config: ModelConfig, first: int, widths: Sequence[int]
) -> tuple[FeatureInfo, ...]:
    """One entry per width, each with twice the stride of the one before."""
    return tuple(
        FeatureInfo(f"stages/{i}", width, first * 2**i)
        for i, width in enumerate(widths)
    )


def build_encoder(config: ModelConfig, *, rngs: nnx.Rngs) -> EncoderNetwork:
    """The encoder that a config names, freshly initialised."""
    return config.encoder(config, rngs=rngs)


def abstract_encoder(config: ModelConfig) -> EncoderNetwork:
    """The same with shapes in place of arrays, for loading or describing."""
    return nnx.eval_shape(lambda: build_encoder(config, rngs=nnx.Rngs(0)))


def models() -> dict[str, str]:
    """The name of every model, with a one-line description."""
    about = {name: ENCODERS.get(name).__doc__ or "" for name in ENCODERS.names()}
    return {name: text.partition("\n")[0].rstrip(".") for name, text in about.items()}


def describe(name: str, side: int) -> str:
    """A model in a few lines, for colour images of `side` x `side` pixels."""
    config = ModelConfig(name=name, image_size=(side, side), channels=3)
    encoder = abstract_encoder(config)
    leaves = jax.tree.leaves(nnx.state(encoder, nnx.Param))
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    lines = [
        f"{name}: {models()[name]}",
        f"{count:,} parameters; normalisation {config.norm}, decoder {config.decoder}",
        f"maps of a {side} x {side} image:",
    ]
    for info in encoder.feature_info:
        sites = info.sites(side)
        lines.append(f"  {info.name}: {sites} x {sites} x {info.channels}")
    return "\n".join(lines)


Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """A module as pure functions of (params, stats); hashable, for closures under jit.

    Floating-point inputs are cast to `dtype`, which all arithmetic then uses;
    parameters, norm statistics and outputs stay float32.
    """

    graph: nnx.GraphDef
    dtype: str = "float32"

    @classmethod
    def create(
        cls, module: nnx.Module, *, dtype: str = "float32"
    ) -> tuple["Network", Tree, Tree]:
        """(network, params, stats) of a module; the module itself is not kept."""
        graph, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
        return cls(graph, dtype), _plain(params), _plain(stats)

    def apply(
        self,
        params: Mapping[str, Any],
        stats: Mapping[str, Any],
        *args: Any,
        train: bool = False,
        method: str | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Tree]:
        """(output, stats) of the module's `__call__`, or of the named method.

        `stats` is returned unchanged unless `train`.
        """
        module = nnx.merge(self.graph, _numbered(params), _numbered(stats))
        call = module if method is None else getattr(module, method)
        args = jax.tree.map(lambda x: _cast(x, self.dtype), args)
        out = call(*args, train=train, **kwargs)
        out = jax.tree.map(lambda x: _cast(x, "float32"), out)
        if not train:
            return out, dict(stats)
        return out, _plain(nnx.state(module, nnx.BatchStat))


def _cast(x: Any, dtype: str) -> Any:
    floating = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.asarray(x, dtype) if floating else x


def _plain(state: Any) -> Tree:
    """NNX state -> nested dicts with string keys (NNX numbers list items)."""
    return unflatten(flatten(nnx.to_pure_dict(state)))


def _numbered(tree: Mapping[str, Any]) -> dict[Any, Any]:
    """The inverse of `_plain`: digits become the integers NNX expects."""
    return {
        int(key) if key.isdigit() else key: _numbered(value)
        if isinstance(value, Mapping)
        else value
        for key, value in tree.items()
    }
