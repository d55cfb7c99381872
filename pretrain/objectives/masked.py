"""Masked autoencoding: reconstruct the patches that the encoder did not see.

loss = ℓ over the masked pixels, which every layer of the encoder excludes: Tian et al.,
"Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling"
(2023, SparK), sections 3.1-3.3; Woo et al., "ConvNeXt V2" (2023, FCMAE), section 3.1,
where masked dense layers replace sparse ones, as here.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, UInt32

from afterimage.fields import at_least_1
from afterimage.models import ModelConfig
from afterimage.models.ops import upsample_nearest
from afterimage.plugins import OBJECTIVES
from afterimage.pretrain.losses import ReconstructionLoss
from afterimage.pretrain.objective import Autoencoding, Forward, Pass

# Number of rectangles in a block mask, and the limit of their aspect ratio (as in Bao
# et al. 2022, Algorithm 1).
_BLOCKS, _ASPECT = 4, 10 / 3
_MASKS = 8
"""Masks of an image whose reconstruction errors are averaged."""


@OBJECTIVES.add("masked")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Masked(Autoencoding):
    """Reconstruct the patches that the encoder does not see."""

    masks: ClassVar[bool] = True
    default_decoder: ClassVar[str] = "block"

    target: Literal["data", "image", "patch", "hog"] = "data"  # pyright: ignore[reportIncompatibleVariableOverride]
    """What is reconstructed: images normalised by the data's statistics, or each image
    or patch by its own mean and standard deviation, so that brightness and contrast do
    not matter; or histograms of oriented gradients, so that only edges count."""

    pattern: Literal["random", "block"] = "random"
    """How patches are chosen: at random, or in a few blocks."""

    ratio: float = 0.6
    """Share of the patches that are masked."""

    ratio_max: float | None = None
    """Draw the ratio of each image between ratio and this. Default: always ratio."""

    patch: int | None = None
    """Side of a patch in pixels. Default: a power of two near a seventh of the image,
    i.e. 4 for 28 and 32 pixels, 32 for 224. Objective latent rounds it up to a multiple
    of the stride of the last map, often 8, and takes no other."""

    def problems(self, config: Any, model: ModelConfig) -> list[str]:
        found = super().problems(config, model)
        if not 0 < self.ratio < 1:
            found.append(f"ratio={self.ratio}: must be between 0 and 1")
        high = self.ratio_max
        if high is not None and not self.ratio <= high < 1:
            found.append(f"ratio_max={high}: must be at least ratio, and less than 1")
        found += at_least_1(self, "patch")
        if self.pattern not in ("random", "block"):
            found.append(f"pattern={self.pattern!r}: must be 'random' or 'block'")
        if self.target == "patch" and self.patch == 1:
            found.append("target='patch': needs patches of more than one pixel")
        return found

    def data_problems(self, model: ModelConfig) -> list[str]:
        height, width = model.image_size
        patch, found = self.target_patch(model), []
        if patch >= max(height, width):
            found.append(
                f"patch={patch}: images of {height}x{width} pixels would be one "
                "patch; use less than the longer side, or a larger image_size"
            )
        if self.target == "hog":
            from afterimage.pretrain.hog import cell_size

            if cell_size(patch) is None:
                found.append(
                    f"patch={patch}: target='hog' divides patches into cells of 3 to "
                    "8 pixels; use a multiple of one of these"
                )
        return found

    def target_patch(self, model: ModelConfig) -> int:
        return patch_size(self, model.image_size)

    def inputs(self, forward: Forward, pixels: Array) -> Float[Array, "b h w c"]:
        """Images normalised by the statistics of their visible pixels, if one by one:
        nothing of a masked pixel reaches the encoder."""
        visible = ~self.draw(forward, pixels)
        return forward.setup.preprocessing.normalise(pixels, visible)

    def forward(self, forward: Forward, inputs: Float[Array, "b h w c"]) -> Pass:
        mask = self.draw(forward, inputs)
        output, stats = forward(inputs, mask=mask)
        return Pass(output, stats, mask=mask)

    def errors(
        self, forward: Forward, scores: ReconstructionLoss, pixels: Array
    ) -> Float[Array, "b h w"]:
        """Of the masked pixels, means over several masks, the same for every image.

        After Zavrtanik et al., "Reconstruction by Inpainting for Visual Anomaly
        Detection" (2021, RIAD), section 3, with random masks. Pixels that no mask hides
        have no error.
        """

        def one(number: Array) -> tuple[Array, Array]:
            key = jax.random.fold_in(forward.key, number)
            drawn = self.draw(dataclasses.replace(forward, key=key), pixels[:1])
            mask = jnp.broadcast_to(drawn, pixels.shape[:3])
            inputs = forward.setup.preprocessing.normalise(pixels, ~mask)
            found = scores.squared_errors(forward(inputs, mask=mask)[0], pixels)
            return jnp.where(mask, found, 0), drawn

        errors, masks = jax.lax.map(one, jnp.arange(_MASKS))
        return errors.sum(0) / jnp.maximum(masks.sum(0), 1)

    def draw(
        self, forward: Forward, images: Float[Array, "b h w c"]
    ) -> Bool[Array, "b h w"]:
        """True at the pixels that the encoder must not see; by `forward.key`."""
        batch, height, width, _ = images.shape
        # Training views may be smaller than the images of an evaluation.
        patch = self.target_patch(forward.setup.model)
        masking = dataclasses.replace(self, patch=patch)
        return draw_mask(forward.key, batch, (height, width), masking)

    @property
    def rows(self) -> tuple[str, ...]:
        return "input", "masked", "reconstruction"


def patch_size(masking: Masked, image_size: tuple[int, int]) -> int:
    """Side of a masked patch in pixels: as set, else at most a seventh of the image.

    The default is a power of two, at least 2: 4 for 28 and 32 pixels, 32 for 224, as
    used by SparK and MAE-like methods.
    """
    usual = max(2, 2 ** int(math.log2(min(image_size) / 7)))
    return masking.patch or usual


def draw_mask(
    key: Array, batch: int, image_size: tuple[int, int], masking: Masked
) -> Bool[Array, "b h w"]:
    """True at masked pixels: whole patches on a grid from the top left corner.

    Of n patches exactly round(ratio * n) are masked, but at least one, and at least one
    stays visible. `ratio` is the setting, or uniform in [ratio, ratio_max] for each
    image. A last patch that extends beyond the image is cropped.

    `random`: every patch is equally likely. `block`: the patches nearest to four random
    centres, in the distance whose circles are rectangles of an aspect ratio drawn for
    each: a union of rectangles as in Bao et al. 2022 (BEiT), section 2.3, but with an
    exact share.
    """
    height, width = image_size
    patch = patch_size(masking, image_size)
    rows, columns = -(-height // patch), -(-width // patch)
    n = rows * columns
    ratio_key, place_key = jax.random.split(key)
    low = masking.ratio
    high = masking.ratio_max or low
    ratios = jax.random.uniform(ratio_key, (batch,), minval=low, maxval=high)
    ratios = ratios if high > low else jnp.full(batch, low)
    counts = jnp.clip(jnp.round(ratios * n), 1, n - 1).astype(jnp.int32)
    if masking.pattern == "block":
        scores = _block_scores(place_key, batch, rows, columns)
    else:
        scores = jax.random.bits(place_key, (batch, n), jnp.uint32)
    grid = lowest(scores, counts).reshape(batch, rows, columns, 1)
    return upsample_nearest(grid, patch)[:, :height, :width, 0]


def lowest(
    scores: UInt32[Array, "b n"], count: Int32[Array, " b"]
) -> Bool[Array, "b n"]:
    """True at exactly `count` of the lowest scores of each row.

    Uses a threshold at the count-th smallest instead of two sorts. The low bits of the
    scores hold the index, so scores are always distinct.
    """
    n = scores.shape[1]
    low = max(1, (n - 1).bit_length())
    scores = (scores >> low << low) | jnp.arange(n, dtype=jnp.uint32)[None]
    place = jnp.maximum(count - 1, 0)[:, None]
    threshold = jnp.take_along_axis(jnp.sort(scores, axis=-1), place, axis=1)
    return (scores <= threshold) & (count > 0)[:, None]


def _block_scores(key: Array, batch: int, rows: int, columns: int) -> Array:
    """Distance to the nearest centre, as uint32 below 2^31; ties broken by index."""
    draws = jax.random.uniform(key, (3, batch, _BLOCKS, 1, 1))
    stretch = jnp.exp((draws[0] - 0.5) * math.log(_ASPECT))

    def away(positions: Array, centre: Array, sides: int) -> Array:
        return jnp.abs(positions - (centre * sides - 0.5))

    down = away(jnp.arange(rows).reshape(1, 1, -1, 1), draws[1], rows) / stretch
    across = away(jnp.arange(columns).reshape(1, 1, 1, -1), draws[2], columns) * stretch
    distance = jnp.maximum(down, across).min(1).reshape(batch, -1)
    farthest = 2.0 * max(rows, columns)
    return (distance / farthest * 2.0**31).astype(jnp.uint32)
