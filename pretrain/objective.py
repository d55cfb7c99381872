"""Objectives: what is trained, and the loss that trains it.

An objective is a small frozen dataclass, registered by name. Its fields are its
settings; everything else about it (checks, network, loss, diagnostics, pictures) is in
the same file:

    @OBJECTIVES.add("my-objective")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class MyObjective(Objective): ...

`Objective` is for any loss. `Reconstruction` is for objectives that produce an image to
compare with the input, `Autoencoding` for those whose image comes from a decoder and is
scored by a loss that the user selects.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from afterimage.data import ImageSet
from afterimage.data.augmentations import Augment, make_augment
from afterimage.data.augmentations.resampling import central_squares
from afterimage.data.preprocessing import Preprocessing
from afterimage.fields import at_least_0
from afterimage.models import Autoencoder, ModelConfig, Network
from afterimage.models.encoder import MASKED_DECODERS
from afterimage.pretrain.losses import ReconstructionLoss
from afterimage.training.optimiser import EVERYTHING, Group
from afterimage.training.stage import Context, Phase, Stage, Term, TermResult, View

Tree = Mapping[str, Any]
Rules = Mapping[str, Callable[[Context], Any]]
PixelErrors = Callable[[Tree, Tree, Array], Float[Array, "b h w"]]
"""(params, stats, images [b, h, w, c] in [0, 1]) -> squared errors in the space of the
target, means over channels."""


def to_pixels(images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """uint8 -> float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


@dataclasses.dataclass(frozen=True)
class ModelSetup:
    """The parts of a run that are the same at every step."""

    model: ModelConfig
    network: Network
    """The network that the objective built."""
    preprocessing: Preprocessing
    augment: Augment = dataclasses.field(default_factory=lambda: make_augment("none"))
    """The augmentation of the run, for objectives that need one in an evaluation."""
    mean_histogram: tuple[tuple[float, ...], ...] | None = None
    """The mean target of `target="hog"`, which the network need not learn: [c][9]."""


@dataclasses.dataclass(frozen=True)
class Forward:
    """The network with its weights, ready to apply to one batch."""

    setup: ModelSetup
    params: Tree
    stats: Tree
    key: Array
    """For all random draws of the objective in this batch."""
    step: Array | None = None
    """Number of steps taken; None in evaluation."""
    counted: Array | None = None
    """[b], true at the images of a batch that count, if some only pad it."""

    @property
    def train(self) -> bool:
        """Whether statistics are updated."""
        return self.step is not None

    def __call__(self, *args: Any, method: str | None = None, **kwargs: Any) -> Any:
        """(output, statistics afterwards) of the network, or of its `method`."""
        return self.setup.network.apply(
            self.params, self.stats, *args, train=self.train, method=method, **kwargs
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(abc.ABC):
    """Base class of all objectives; its fields are settings."""

    name: ClassVar[str]
    """Set by the registry."""
    views: ClassVar[tuple[str, ...]] = ("view",)
    """The augmented views of the training images that the terms read: `train/NAME`,
    float [b, h, w, c] in [0, 1], each with its own random numbers."""
    default_vector: ClassVar[tuple[str, str]] = ("grid", "none")
    """(pool, transform) of the feature vector, unless labels tell a better one
    (`afterimage.models.vector.VectorRecipe`)."""
    joins_patches: ClassVar[bool] = True
    """Whether the default feature vector is joined with a dictionary of patches and
    HOG."""
    default_decoder: ClassVar[str] = ""
    """The decoder if none is set; "" is the model's own."""
    default_norm: ClassVar[str] = ""
    """The norm if none is set; "" is the model's own."""

    def problems(self, config: Any, model: ModelConfig) -> list[str]:
        """Problems with a PretrainConfig, one sentence each.

        The data has not been read yet: the size and channels of `model` are not final.
        """
        del config, model
        return []

    def data_problems(self, model: ModelConfig) -> list[str]:
        """Problems with images of this size and number of channels."""
        del model
        return []

    @abc.abstractmethod
    def build(self, model: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        """The module to train; its `encoder` is that of `model`."""

    def start(self, params: Tree, stats: Tree) -> Tree:
        """The statistics before the first step, from those of the new module."""
        del params
        return stats

    def follow(self, params: Tree, stats: Tree, step: Array, progress: Array) -> Tree:
        """The statistics after a step, with what follows the parameters (a teacher).

        Called once a step, after the rule `stats/next` of each of its micro-batches.
        `progress` is the share of the run that is done.
        """
        del params, step, progress
        return stats

    def prepare(self, setup: ModelSetup, images: ImageSet) -> ModelSetup:
        """The setup with what must be measured on the training images first."""
        del images
        return setup

    @abc.abstractmethod
    def terms(self, setup: ModelSetup) -> tuple[Term, ...]:
        """The terms of the loss. They read the views, `train/image` (uint8), and the
        values of `rules`."""

    def rules(self, forward: Forward) -> Rules:
        """Further values for the terms, each computed once per step: {name: rule}.

        The rule `stats/next` gives the statistics after the (micro-)batch.
        """
        return {"stats/next": lambda _: forward.stats}

    @abc.abstractmethod
    def measure(
        self, forward: Forward, pixels: Float[Array, "b h w c"]
    ) -> tuple[dict[str, Array], tuple[Array, ...]]:
        """({measure: [b, ...]}, a picture of each image for each row in `rows`).

        For images in [0, 1], in an evaluation; `loss` [b] must be among the measures.
        """

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the picture rows that `measure` returns."""
        return ()

    def summarise(self, means: Tree) -> dict[str, Any]:
        """Scalar metrics from the means of the measures over images."""
        return dict(means)

    def samples(self, forward: Forward, pixels: Array) -> Array | None:
        """As many generated pictures as `pixels`; None if it generates none."""
        del forward, pixels
        return None

    def scores(self, setup: ModelSetup) -> ReconstructionLoss | None:
        """The reconstruction loss, also used to score the mean image; None if nothing
        is reconstructed."""
        del setup
        return None

    def pixel_errors(
        self, model: ModelConfig, preprocessing: Preprocessing
    ) -> PixelErrors | None:
        """How well a trained network reconstructs each pixel; None if none is.

        An image's errors do not depend on the other images of a batch.
        """
        del model, preprocessing

    def facts(self) -> dict[str, Any]:
        """The objective's entry in an encoder's manifest: its name and settings."""
        return {"objective": self.name, **dataclasses.asdict(self)}

    @property
    def loss_label(self) -> str:
        """The name of the loss in a report."""
        return f"Loss ({self.name})"


def make_stage(
    objective: Objective,
    setup: ModelSetup,
    config: Any,
    steps: int,
    groups: tuple[Group, ...] = EVERYTHING,
) -> Stage:
    """One phase in which all parameters learn from the objective's terms."""

    def provide(params, stats, batch, key, step, trainable):
        del trainable
        view_key, key = jax.random.split(key)
        aspect = batch.get("aspect")  # of whole photos, stretched

        def view(number: int) -> Callable[[Context], Array]:
            drawn = jax.random.fold_in(view_key, number) if number else view_key
            return lambda _: setup.augment(drawn, to_pixels(batch["image"]), aspect)

        def image(_: Context) -> Array:
            if aspect is None:
                return batch["image"]
            squares = central_squares(to_pixels(batch["image"]), aspect)
            return jnp.round(255 * squares).astype(jnp.uint8)

        views = {f"train/{name}": view(n) for n, name in enumerate(objective.views)}
        forward = Forward(setup, params, stats, key, step)
        return {"train/image": image, **views, **objective.rules(forward)}

    phase = Phase(
        name="pretrain",
        terms=objective.terms(setup),
        groups=groups,
        steps=steps,
        options=config,
    )
    return Stage(phases=(phase,), providers=provide, follow=objective.follow)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pass:
    """The result of one forward pass of b images."""

    output: Float[Array, "b h w c"]
    """What is compared with the target."""
    stats: Tree
    mask: Bool[Array, "b h w"] | None = None
    """The pixels to compare, if not all; the encoder did not see them."""
    penalty: Float[Array, " b"] | None = None
    """Added to the reconstruction loss of each image."""
    measures: Mapping[str, Float[Array, "b ..."]] = dataclasses.field(
        default_factory=dict
    )
    """Diagnostics of each image; `diagnose` receives their means."""


_GREY = 0.5
_SHARED = ("reconstruction", "visible_loss")
"""Measures that any reconstruction may have; their mean is the metric."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(Objective):
    """Reconstructs an image, from a corrupted one if `corruption` is set."""

    default_vector: ClassVar[tuple[str, str]] = ("pyramid-grid", "standardise")

    corruption: Literal["none", "gaussian", "salt-and-pepper", "erasing"] = "none"
    """Corrupts the encoder's input; the target is the clean image (a denoising
    autoencoder)."""

    corruption_strength: float | None = None
    """gaussian: sigma in standard deviations of the data; salt-and-pepper: probability
    that a pixel is replaced; erasing: share of the area. Default: 1, 0.25, 0.25."""

    @abc.abstractmethod
    def forward(self, forward: Forward, inputs: Float[Array, "b h w c"]) -> Pass:
        """One forward pass of normalised images."""

    def problems(self, config: Any, model: ModelConfig) -> list[str]:
        # Imported here because most runs corrupt nothing.
        from afterimage.pretrain.corruptions import corruption_problems

        del config, model
        return corruption_problems(self.corruption, self.corruption_strength)

    def scores(self, setup: ModelSetup) -> ReconstructionLoss:
        return ReconstructionLoss(
            loss="mse", target="data", preprocessing=setup.preprocessing
        )

    def pixel_errors(
        self, model: ModelConfig, preprocessing: Preprocessing
    ) -> PixelErrors | None:
        module = nnx.eval_shape(lambda: self.build(model, nnx.Rngs(0)))
        network, _, _ = Network.create(module)
        setup = ModelSetup(model, network, preprocessing)
        scores = self.scores(setup)
        if scores.target == "hog":
            return None

        def errors(params: Tree, stats: Tree, pixels: Array) -> Array:
            forward = Forward(setup, params, stats, jax.random.key(0))
            return self.errors(forward, scores, pixels)

        return errors

    def errors(
        self, forward: Forward, scores: ReconstructionLoss, pixels: Array
    ) -> Float[Array, "b h w"]:
        """The errors of one pass of clean images, for `pixel_errors`."""
        found = self.forward(forward, self.inputs(forward, pixels))
        return scores.squared_errors(found.output, pixels)

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        if self.corruption != "none" and self.corruption_strength is None:
            from afterimage.pretrain.corruptions import USUAL_STRENGTH

            facts["corruption_strength"] = USUAL_STRENGTH[self.corruption]
        return facts

    def terms(self, setup: ModelSetup) -> tuple[Term, ...]:
        del setup
        return (Term(name="loss", fn=self._loss, reads=("train/measured",)),)

    def _loss(self, view: View) -> TermResult:
        values, measures = view["train/measured"]
        means = {name: jnp.mean(v, axis=0) for name, v in measures.items()}
        return values, self.summarise(means)

    def rules(self, forward: Forward) -> Rules:
        setup = forward.setup
        return {
            "train/pass": lambda ctx: self._pass(forward, ctx["train/view"])[0],
            "train/measured": lambda ctx: self.measured(
                setup, ctx["train/pass"], ctx["train/view"]
            ),
            "stats/next": lambda ctx: ctx["train/pass"].stats,
        }

    def _pass(self, forward: Forward, pixels: Array) -> tuple[Pass, Array]:
        """The result of a pass, and the pixels given to the encoder."""
        preprocessing, corrupted = forward.setup.preprocessing, pixels
        if self.corruption != "none":
            from afterimage.pretrain.corruptions import make_corruption

            mean, std = preprocessing.mean, preprocessing.std
            change = make_corruption(
                self.corruption, self.corruption_strength, mean, std
            )
            corrupted = change(forward.key, pixels)
        key = jax.random.fold_in(forward.key, 1)
        forward = dataclasses.replace(forward, key=key)
        return self.forward(forward, self.inputs(forward, corrupted)), corrupted

    def inputs(self, forward: Forward, pixels: Array) -> Float[Array, "b h w c"]:
        """Normalised images, for `forward` with the same key."""
        return forward.setup.preprocessing.normalise(pixels)

    def measured(
        self, setup: ModelSetup, found: Pass, pixels: Array
    ) -> tuple[Array, dict[str, Array]]:
        """The loss of each image, and all its measures."""
        loss = self.scores(setup)
        target = loss.targets(pixels)
        values = loss.per_image(found.output, target, found.mask)
        measures = dict(found.measures)
        if found.mask is not None:
            visible = loss.per_image(found.output, target, ~found.mask)
            measures["visible_loss"] = visible
        if found.penalty is not None:
            measures["reconstruction"] = values
            values = values + found.penalty
        return values, measures

    def measure(
        self, forward: Forward, pixels: Float[Array, "b h w c"]
    ) -> tuple[dict[str, Array], tuple[Array, ...]]:
        found, corrupted = self._pass(forward, pixels)
        values, measures = self.measured(forward.setup, found, pixels)
        rows = self.pictures(forward.setup, found, corrupted, pixels)
        return {"loss": values} | measures, rows

    def pictures(
        self, setup: ModelSetup, found: Pass, corrupted: Array, pixels: Array
    ) -> tuple[Array, ...]:
        """The picture of each row: image, what the encoder saw, reconstruction."""
        shown = corrupted
        output = self.scores(setup).pictures(found.output, pixels)
        if found.mask is not None:
            mask = found.mask[..., None]
            shown = jnp.where(mask, _GREY, corrupted)
            output = jnp.where(mask, output, pixels)
        return (pixels, shown, output) if len(self.rows) > 2 else (pixels, output)

    @property
    def rows(self) -> tuple[str, ...]:
        corrupted = () if self.corruption == "none" else ("corrupted",)
        return "input", *corrupted, "reconstruction"

    def summarise(self, means: Tree) -> dict[str, Any]:
        means = dict(means)
        shared = {k: means.pop(k) for k in _SHARED if k in means}
        return shared | self.diagnose(means)

    def diagnose(self, means: Tree) -> dict[str, Any]:
        """Metrics from the means of the measures that `forward` returns."""
        return dict(means)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoding(Reconstruction):
    """A decoder produces the image, and a loss that the user selects scores it."""

    masks: ClassVar[bool] = False
    """Whether it hides parts of the image from the encoder, which needs another
    decoder."""

    loss: Literal["mse", "l1", "huber", "bce", "ssim"] = "mse"
    """The reconstruction loss. mse: in units of the data's variance; l1, huber: of its
    standard deviation; bce: nats, with pixels as probabilities; ssim: 84 % structural
    dissimilarity, 16 % l1 of pixels in [0, 1]."""

    target: Literal["data", "image"] = "data"
    """What is reconstructed: images normalised by the data's statistics, or each image
    by its own mean and standard deviation, so that brightness and contrast do not
    matter."""

    gradient_weight: float = 0.0
    """Weight of the mean absolute error of the differences between neighbouring pixels,
    which emphasises edges."""

    laplacian_weight: float = 0.0
    """Weight of the mean absolute error at every scale of a Laplacian pyramid."""

    ssim_weight: float = 0.0
    """Weight of the structural dissimilarity."""

    def problems(self, config: Any, model: ModelConfig) -> list[str]:
        found = super().problems(config, model)
        found += self.scores_problems()
        found += at_least_0(self, "gradient_weight", "laplacian_weight", "ssim_weight")
        if self.masks != (model.decoder in MASKED_DECODERS):
            found.append(
                f"decoder={model.decoder!r}: objectives that mask images, and only "
                f"these, need one of {', '.join(MASKED_DECODERS)}"
            )
        return found

    def scores_problems(self) -> list[str]:
        """Incompatible settings of the loss."""
        from afterimage.pretrain.losses import loss_problems

        return loss_problems(
            self.loss,
            self.target,
            ssim_weight=self.ssim_weight,
            gradient_weight=self.gradient_weight,
            laplacian_weight=self.laplacian_weight,
        )

    def build(self, model: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        return Autoencoder(model, rngs=rngs)

    def prepare(self, setup: ModelSetup, images: ImageSet) -> ModelSetup:
        if self.target != "hog":
            return setup
        from afterimage.pretrain.hog import cell_size, mean_histogram

        cell = cell_size(self.target_patch(setup.model))
        assert cell is not None  # checked in `data_problems`
        return dataclasses.replace(setup, mean_histogram=mean_histogram(images, cell))

    def scores(self, setup: ModelSetup) -> ReconstructionLoss:
        return ReconstructionLoss(
            loss=self.loss,
            target=self.target,
            preprocessing=setup.preprocessing,
            patch=self.target_patch(setup.model),
            gradient_weight=self.gradient_weight,
            laplacian_weight=self.laplacian_weight,
            ssim_weight=self.ssim_weight,
            mean_histogram=setup.mean_histogram,
        )

    def target_patch(self, model: ModelConfig) -> int:
        """Side, in pixels, of the patches of a per-patch target."""
        del model
        return 1

    @property
    def loss_label(self) -> str:
        return f"Loss ({self.loss})"
