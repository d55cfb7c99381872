"""Which pixels the encoder does not see; drawn anew for every image and step."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, UInt32

from afterimage.models.pooling import upsample_nearest
from afterimage.pretrain.options import ObjectiveOptions

# Rectangles a block mask grows from, and the range of their height over width (as in
# Bao et al. 2022, Algorithm 1).
_BLOCKS, _ASPECT = 4, 10 / 3


def patch_size(options: ObjectiveOptions, image_size: tuple[int, int]) -> int:
    """Pixels a side of a masked patch: as set, else a seventh of the image at most.

    The default is a power of two, at least 2: 4 for 28 and 32 pixels, 32 for 224, where
    it is what SparK and MAE-like methods use.
    """
    usual = max(2, 2 ** int(math.log2(min(image_size) / 7)))
    return options.mask_patch or usual


def draw_mask(
    key: Array, batch: int, image_size: tuple[int, int], options: ObjectiveOptions
) -> Bool[Array, "b h w"]:
    """True at masked pixels: whole patches on a grid from the top left corner.

    Of n patches exactly round(ratio * n) are masked, but at least one, and one stays.
    `ratio` is `mask_ratio`, or uniform in [mask_ratio, mask_ratio_max] for each image.
    A last patch that sticks out of the image is cut.

    `random`: every patch alike. `block`: the patches nearest to four random centres, in
    the distance whose circles are rectangles of an aspect ratio drawn for each: a union
    of rectangles as in Bao et al. 2022 (BEiT), section 2.3, but of exact share.
    """
    height, width = image_size
    patch = patch_size(options, image_size)
    rows, columns = -(-height // patch), -(-width // patch)
    n = rows * columns
    ratio_key, place_key = jax.random.split(key)
    low = options.mask_ratio
    high = options.mask_ratio_max or low
    ratios = jax.random.uniform(ratio_key, (batch,), minval=low, maxval=high)
    ratios = ratios if high > low else jnp.full(batch, low)
    counts = jnp.clip(jnp.round(ratios * n), 1, n - 1).astype(jnp.int32)
    if options.mask == "block":
        scores = _block_scores(place_key, batch, rows, columns)
    else:
        scores = jax.random.bits(place_key, (batch, n), jnp.uint32)
    grid = lowest(scores, counts).reshape(batch, rows, columns, 1)
    return upsample_nearest(grid, patch)[:, :height, :width, 0]


def lowest(
    scores: UInt32[Array, "b n"], count: Int32[Array, " b"]
) -> Bool[Array, "b n"]:
    """True at exactly `count` of the lowest scores of each row.

    A threshold at the count-th smallest, instead of two sorts. Scores are made distinct
    with certainty: their low bits hold the index.
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
