"""Joint embedding: two augmented views of an image get similar embeddings.

The encoder's vector of each view passes through a projector, and a loss compares the
embeddings of a batch. The projector is discarded after pretraining; the encoder's own
vector is the better feature (Chen et al., "A Simple Framework for Contrastive Learning
of Visual Representations", 2020, section 4.2).

Both views go through the network as one batch of 2b images, so BatchNorm normalises
them alike, by moments over both. Everything that the loss compares is of the whole
batch, on however many devices. With accumulation it is of one micro-batch: `accumulate`
does not replace a large batch here.

A decoder may learn beside it. By default no gradient of the reconstruction reaches the
encoder, so pictures cost the features nothing but time.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from afterimage.data import ImageSet
from afterimage.fields import at_least_0, at_least_1
from afterimage.models import ModelConfig, build_encoder
from afterimage.models.decoders import Encoded, build_decoder
from afterimage.models.layers import BatchNorm, Dense, PassInfo
from afterimage.pretrain.losses import ReconstructionLoss
from afterimage.pretrain.objective import (
    Forward,
    ModelSetup,
    Objective,
    Pass,
    Rules,
    Tree,
    to_pixels,
)
from afterimage.pretrain.objectives.masked import Masked
from afterimage.pretrain.objectives.plain import Plain
from afterimage.training.stage import Context, Term, TermResult, View

Embeddings = Float[Array, "b 2 d"]
"""The embeddings of both views of each image."""
Counted = Bool[Array, " b"] | None
"""Which images count, if not all: a padded batch has others."""


class Projector(nnx.Module):
    """Linear, BatchNorm, ReLU, linear."""

    def __init__(self, i: int, hidden: int, o: int, *, rngs: nnx.Rngs):
        self.first = Dense(i, hidden, rngs=rngs)
        self.norm = BatchNorm(hidden)
        self.second = Dense(hidden, o, rngs=rngs)

    def __call__(self, x: Float[Array, "n i"], context: PassInfo) -> Array:
        return self.second(jax.nn.relu(self.norm(self.first(x), context)))


def passed_back(x: Array, share: float) -> Array:
    """x, with `share` of its gradient: 0 stops it."""
    fixed = jax.lax.stop_gradient(x)
    return fixed if share == 0 else fixed + share * (x - fixed)


def unit(z: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """z / |z|."""
    squared = jnp.square(z).sum(-1, keepdims=True)
    return z * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))


def product(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Scalar products in full float32, also where a device would round (TF32)."""
    return jnp.matmul(a, b.T, precision="highest")


def alignment_and_uniformity(z: Embeddings, counted: Counted) -> dict[str, Array]:
    """Of unit embeddings u, for each image; [b] each.

    `alignment` = |u - u'|² of its views, 0 to 4; `uniformity` = the mean of
    e^(-2 |u - v|²) over the first views v of the other images, whose logarithm is the
    metric. Wang and Isola, "Understanding Contrastive Representation Learning through
    Alignment and Uniformity on the Hypersphere" (2020), section 4.1 (α = t = 2).
    """
    u = unit(z)
    first = u[:, 0]
    near = jnp.exp(-2 * (2 - 2 * product(first, first)))
    others = ~jnp.eye(len(u), dtype=bool)
    if counted is not None:
        others = others & counted[None]
    near = jnp.where(others, near, 0).sum(-1) / jnp.maximum(others.sum(-1), 1)
    apart = jnp.square(u[:, 0] - u[:, 1]).sum(-1)
    return {"alignment": apart, "uniformity": near}


class EmbeddingNetwork(nnx.Module):
    """Encoder and projector, and a decoder unless nothing is reconstructed."""

    def __init__(
        self, config: ModelConfig, settings: "JointEmbedding", *, rngs: nnx.Rngs
    ):
        self.encoder = build_encoder(config, rngs=rngs)
        length = self.encoder.num_features
        hidden = settings.hidden or 2 * length
        self.projector = Projector(length, hidden, settings.projection, rngs=rngs)
        # Last: the rest starts from the same values, whatever is reconstructed.
        if settings.reconstruct != "none":
            self.decoder = build_decoder(self.encoder, rngs=rngs)

    def embed(
        self,
        views: Float[Array, "b 2 h w c"],
        *,
        train: bool = False,
        share: float | None = None,
    ) -> tuple[Embeddings, Float[Array, "b h w c"] | None]:
        """(the embeddings, the first views decoded); without a `share` of the gradient
        for the encoder nothing is decoded."""
        context = PassInfo(train=train)
        # The views of an image stay neighbours, so that no row changes its device.
        images = views.reshape(-1, *views.shape[2:])
        maps, switches = self.encoder.encode(images, context)
        z = self.projector(self.encoder.vector(maps[-1]), context)
        z = z.reshape(*views.shape[:2], -1)
        if share is None:
            return z, None
        first = [x[::2] for x in maps], [x[::2] for x in switches]
        return z, self._decode(*first, views[:, 0], share, context)

    def reconstruct(
        self,
        images: Float[Array, "b h w c"],
        mask: Bool[Array, "b h w"] | None,
        *,
        train: bool = False,
        share: float,
    ) -> Float[Array, "b h w c"]:
        """Images decoded from a pass of their own.

        In the encoder BatchNorm uses its running moments, as it does wherever the
        encoder is used afterwards, and leaves updates to the views.
        """
        maps, switches = self.encoder.encode(images, PassInfo(mask=mask))
        context = PassInfo(train=train, mask=mask)
        return self._decode(maps, switches, images, share, context)

    def _decode(self, maps, switches, images, share, context) -> Array:
        bottleneck = self.encoder.bottleneck
        code = maps[-1] if bottleneck is None else self.encoder.vector(maps[-1])
        code, *maps = (passed_back(x, share) for x in (code, *maps))
        size = (images.shape[1], images.shape[2])
        return self.decoder(Encoded(code, maps, switches, size), context)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Embedded:
    """The result of one pass of the views of b images."""

    z: Embeddings
    losses: Float[Array, " b"]
    """The embedding loss of each image."""
    stats: Tree
    """The network's statistics afterwards."""
    output: Float[Array, "b h w c"] | None = None
    """The first views decoded."""
    kept: Tree = dataclasses.field(default_factory=dict)
    """What is stored beside the network's statistics, e.g. a teacher."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointEmbedding(Objective):
    """Base class; a subclass compares the embeddings in `embed`."""

    views: ClassVar[tuple[str, ...]] = ("view", "other")
    default_norm: ClassVar[str] = "batch"

    hidden: int | None = None
    """Units in the hidden layer of the projector, which is discarded afterwards.
    Default: twice the length of the feature vector."""

    projection: int = 128
    """Length of the embeddings that the loss compares."""

    reconstruct: Literal["none", "view", "image", "masked"] = "view"
    """What a decoder learns to reconstruct, for pictures and anomalies. view: the first
    view, from the pass that is there anyway; image: the image without augmentation,
    from a pass of its own; masked: the masked patches of that image, from a pass that
    does not see them; none: there is no decoder."""

    target: Literal["data", "image", "hog"] = "data"
    """What is reconstructed: images normalised by the data's statistics, or each image
    by its own mean and standard deviation; or, of masked patches, histograms of
    oriented gradients."""

    ratio: float = 0.6
    """Share of the patches that are masked, if masked patches are reconstructed."""

    patch: int | None = None
    """Side of these patches in pixels. Default: as for the objective masked."""

    reconstruction_weight: float = 1.0
    """Weight of the reconstruction loss, a mean squared error."""

    reconstruction_gradient: float = 0.0
    """Share of the decoder's gradient that reaches the encoder; 0: the encoder learns
    from the embeddings alone."""

    @abc.abstractmethod
    def embed(self, forward: Forward, views: Float[Array, "b 2 h w c"]) -> Embedded:
        """One pass of normalised views.

        Images that do not count (`forward.counted`) must not influence others.
        """

    def passed(
        self, forward: Forward, views: Float[Array, "b 2 h w c"]
    ) -> tuple[tuple[Embeddings, Array | None], Tree]:
        """((embeddings, first views decoded if wanted), statistics afterwards)."""
        decodes = forward.train and self.reconstruct == "view"
        share = self.reconstruction_gradient if decodes else None
        return forward(views, method="embed", share=share)

    @property
    def part(self) -> Plain | Masked | None:
        """The objective of the decoder."""
        if self.reconstruct == "none":
            return None
        if self.reconstruct == "masked":
            return Masked(target=self.target, ratio=self.ratio, patch=self.patch)
        return Plain(target="image" if self.target == "image" else "data")

    @property
    def default_decoder(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return Masked.default_decoder if self.reconstruct == "masked" else ""

    def problems(self, config: Any, model: ModelConfig) -> list[str]:
        found = at_least_0(self, "reconstruction_gradient")
        if config.augment == "none":
            found.append(
                "augment='none': both views of an image would be the same. Choose "
                "photos, writing or any-way-up, or augmentations joined by commas; "
                "afterimage methods lists them"
            )
        if config.batch_size // config.accumulate < 2:
            found.append(
                f"batch_size={config.batch_size}, accumulate={config.accumulate}: a "
                "micro-batch needs at least 2 images, which are compared"
            )
        found += at_least_1(self, "hidden", "projection")
        if not self.reconstruction_weight > 0:
            found.append(
                f"reconstruction_weight={self.reconstruction_weight}: must be above 0 "
                "(reconstruct='none' leaves the decoder out)"
            )
        found += self._unused(config)
        if self.target == "hog" and self.reconstruct != "masked":
            found.append("target='hog': only with reconstruct='masked'")
        part = self.part
        return found + ([] if part is None else part.problems(config, model))

    def _unused(self, config: Any) -> list[str]:
        """Settings that have no effect."""
        usual = {f.name: f.default for f in dataclasses.fields(JointEmbedding)}
        idle = {"ratio", "patch"} if self.reconstruct != "masked" else set()
        if self.reconstruct == "none":
            idle |= {"target", "reconstruction_weight", "reconstruction_gradient"}
        given = {name: getattr(self, name) for name in sorted(idle)}
        given = {name: v for name, v in given.items() if v != usual[name]}
        if self.reconstruct == "none" and config.decoder is not None:
            given["decoder"] = config.decoder
        return [
            f"{name}={value!r} has no effect with reconstruct={self.reconstruct!r}"
            for name, value in given.items()
        ]

    def data_problems(self, model: ModelConfig) -> list[str]:
        return [] if self.part is None else self.part.data_problems(model)

    def prepare(self, setup: ModelSetup, images: ImageSet) -> ModelSetup:
        return setup if self.part is None else self.part.prepare(setup, images)

    def scores(self, setup: ModelSetup) -> ReconstructionLoss | None:
        return None if self.part is None else self.part.scores(setup)

    @property
    def rows(self) -> tuple[str, ...]:
        return () if self.part is None else self.part.rows

    def build(self, model: ModelConfig, rngs: nnx.Rngs) -> EmbeddingNetwork:
        return EmbeddingNetwork(model, self, rngs=rngs)

    def terms(self, setup: ModelSetup) -> tuple[Term, ...]:
        del setup
        own = Term(name="embedding", fn=self._embedding, reads=("train/embedded",))
        if self.part is None:
            return (own,)
        decoded = Term(
            name="reconstruction",
            fn=self._reconstruction,
            reads=("train/measured",),
            weight=self.reconstruction_weight,
        )
        return own, decoded

    def _embedding(self, view: View) -> TermResult:
        found: Embedded = view["train/embedded"]
        each = alignment_and_uniformity(found.z, None)
        means = {name: values.mean() for name, values in each.items()}
        return found.losses, self.summarise(means)

    def _reconstruction(self, view: View) -> TermResult:
        values, measures = view["train/measured"]
        return values, {name: v.mean() for name, v in measures.items()}

    def rules(self, forward: Forward) -> Rules:
        def embedded(ctx: Context) -> Embedded:
            views = [ctx[f"train/{name}"] for name in self.views]
            return self.embed(forward, _stacked(forward, views))

        def decoded(ctx: Context) -> Pass:
            found: Embedded = ctx["train/embedded"]
            if found.output is not None:
                return Pass(found.output, found.stats)
            after = dataclasses.replace(forward, stats=found.stats)
            return self._own_pass(after, to_pixels(ctx["train/image"]))

        def measured(ctx: Context) -> Any:
            assert self.part is not None
            found: Pass = ctx["train/decoded"]
            shown = self.reconstruct == "view"
            pixels = ctx["train/view"] if shown else to_pixels(ctx["train/image"])
            return self.part.measured(forward.setup, found, pixels)

        def stats(ctx: Context) -> Tree:
            found: Embedded = ctx["train/embedded"]
            last = found if self.part is None else ctx["train/decoded"]
            return {**last.stats, **found.kept}

        return {
            "train/embedded": embedded,
            "train/decoded": decoded,
            "train/measured": measured,
            "stats/next": stats,
        }

    def _own_pass(self, forward: Forward, pixels: Float[Array, "b h w c"]) -> Pass:
        """Images without augmentation, encoded and decoded."""
        part = self.part
        assert part is not None
        mask = part.draw(forward, pixels) if isinstance(part, Masked) else None
        output, stats = forward(
            part.inputs(forward, pixels),
            mask,
            share=self.reconstruction_gradient,
            method="reconstruct",
        )
        return Pass(output, stats, mask=mask)

    def measure(
        self, forward: Forward, pixels: Float[Array, "b h w c"]
    ) -> tuple[dict[str, Array], tuple[Array, ...]]:
        """The loss of two augmented views, the same in each evaluation, and of the
        reconstruction of the image itself."""
        *keys, key = jax.random.split(forward.key, 3)
        views = [forward.setup.augment(view, pixels) for view in keys]
        found = self.embed(forward, _stacked(forward, views))
        measures = {"loss": found.losses, "embedding": found.losses}
        measures |= alignment_and_uniformity(found.z, forward.counted)
        if self.part is None:
            return measures, ()
        after = dataclasses.replace(forward, stats=found.stats, key=key)
        own = self._own_pass(after, pixels)
        values, more = self.part.measured(forward.setup, own, pixels)
        measures["loss"] += self.reconstruction_weight * values
        rows = self.part.pictures(forward.setup, own, pixels, pixels)
        return {**measures, "reconstruction": values, **more}, rows

    def summarise(self, means: Tree) -> dict[str, Any]:
        tiny = jnp.finfo(jnp.float32).tiny  # a single image has no others
        return {**means, "uniformity": jnp.log(jnp.maximum(means["uniformity"], tiny))}


def _stacked(forward: Forward, views: Sequence[Array]) -> Float[Array, "b 2 h w c"]:
    normalise = forward.setup.preprocessing.normalise
    return jnp.stack([normalise(view) for view in views], 1)
