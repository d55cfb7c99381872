"""From a batch to a loss: augment, corrupt, normalise, reconstruct, compare."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from afterimage.data.augment import make_augment
from afterimage.data.preprocessing import Preprocessing
from afterimage.models import Network
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.corruptions import make_corruption
from afterimage.pretrain.losses import ReconstructionLoss
from afterimage.pretrain.masks import patch_size
from afterimage.pretrain.plain import Pass, Plain
from afterimage.training.groups import EVERYTHING
from afterimage.training.stage import Phase, Stage
from afterimage.training.terms import Context, Term, TermResult, View

Tree = Mapping[str, Any]

_GREY = 0.5


def to_pixels(images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """uint8 -> float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What a pretraining run does with images, as pure functions for jit."""

    config: PretrainConfig
    objective: Plain
    network: Network
    """What the objective built."""
    preprocessing: Preprocessing

    @property
    def loss(self) -> ReconstructionLoss:
        size = self.preprocessing.image_size
        masked = self.config.objective == "masked"
        return ReconstructionLoss(
            loss=self.config.loss,
            target=self.config.target,
            preprocessing=self.preprocessing,
            patch=patch_size(self.config, size) if masked else 1,
            gradient_weight=self.config.gradient_weight,
            laplacian_weight=self.config.laplacian_weight,
            ssim_weight=self.config.ssim_weight,
        )

    def corrupt(self, key: Array, pixels: Array) -> Array:
        """What the encoder is given instead of `pixels`, both in [0, 1]."""
        p, config = self.preprocessing, self.config
        change = make_corruption(config.corruption, config.strength, p.mean, p.std)
        return change(key, pixels)

    def stage(self, steps: int) -> Stage:
        """One phase in which everything learns."""
        term = Term(name="loss", fn=self._loss, reads=("train/measured",))
        phase = Phase(
            name="pretrain",
            terms=(term,),
            groups=EVERYTHING,
            steps=steps,
            options=self.config,
        )
        return Stage(phases=(phase,), supply=self._supply)

    def _loss(self, view: View) -> TermResult:
        values, measures = view["train/measured"]
        means = {name: jnp.mean(v, axis=0) for name, v in measures.items()}
        return values, self.summarise(means)

    def _supply(self, params, stats, batch, key, step, moving):
        """`train/view`, the augmented pixels, and what a pass of them gave."""
        del moving
        augment_key, key = jax.random.split(key)

        def view(_: Context) -> Array:
            augment = make_augment(self.config.augment)
            return augment(augment_key, to_pixels(batch["image"]))

        def passed(ctx: Context) -> Pass:
            return self._pass(params, stats, ctx["train/view"], key, step)[0]

        return {
            "train/view": view,
            "train/pass": passed,
            "train/measured": lambda ctx: self._measured(
                ctx["train/pass"], ctx["train/view"]
            ),
            "stats/next": lambda ctx: ctx["train/pass"].stats,
        }

    def look(
        self, params: Tree, stats: Tree, images: UInt8[Array, "b h w c"], key: Array
    ) -> tuple[dict[str, Array], tuple[Array, ...]]:
        """(loss and measures of each image, one picture each for every row).

        Nothing is augmented or learned.
        """
        pixels = to_pixels(images)
        found, corrupted = self._pass(params, stats, pixels, key, None)
        values, measures = self._measured(found, pixels)
        shown, output = corrupted, self.loss.pictures(found.output, pixels)
        if found.mask is not None:
            mask = found.mask[..., None]
            shown = jnp.where(mask, _GREY, corrupted)
            output = jnp.where(mask, output, pixels)
        rows = (pixels, shown, output) if len(self.rows) > 2 else (pixels, output)
        return {"loss": values} | measures, rows

    @property
    def rows(self) -> tuple[str, ...]:
        """What the pictures of `look` are called."""
        if self.config.objective == "masked":
            return "input", "masked", "reconstruction"
        if self.config.corruption != "none":
            return "input", "corrupted", "reconstruction"
        return "input", "reconstruction"

    def samples(self, params: Tree, stats: Tree, pixels: Array, key: Array):
        """As many pictures as `pixels` without an input; None where there are none.

        What the loss leaves open (brightness, contrast) is that of `pixels`.
        """
        count = len(pixels)
        output = self.objective.samples(self.network, params, stats, key, count)
        return None if output is None else self.loss.pictures(output, pixels)

    def summarise(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics from the means of the measures; scalars."""
        means = dict(means)
        shared = {k: means.pop(k) for k in _SHARED if k in means}
        return shared | self.objective.summarise(means)

    def _pass(
        self, params: Tree, stats: Tree, pixels: Array, key: Array, step: Array | None
    ) -> tuple[Pass, Array]:
        """What the objective gave, and the pixels that its encoder was given."""
        corrupted = self.corrupt(key, pixels)
        inputs = self.preprocessing.normalise(corrupted)
        key = jax.random.fold_in(key, 1)
        found = self.objective.forward(self.network, params, stats, inputs, key, step)
        return found, corrupted

    def _measured(self, found: Pass, pixels: Array) -> tuple[Array, dict[str, Array]]:
        """The loss of each image, and all its measures."""
        target = self.loss.targets(pixels)
        values = self.loss.per_image(found.output, target, found.mask)
        measures = dict(found.measures)
        if found.mask is not None:
            visible = self.loss.per_image(found.output, target, ~found.mask)
            measures["visible_loss"] = visible
        if found.penalty is not None:
            measures["reconstruction"] = values
            values = values + found.penalty
        return values, measures


_SHARED = ("reconstruction", "visible_loss")
"""Measures that every objective may have: their mean is the metric."""
