"""Corruptions for denoising autoencoders; drawn anew for every image and step.

A corruption is `(key, pixels) -> pixels` on float images in [0, 1], pure, inside jit.
Only the encoder's input is corrupted: the reconstruction is compared with the clean
image (Vincent et al., "Extracting and Composing Robust Features with Denoising
Autoencoders", ICML 2008).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.errors import UserError

Corruption = Literal["none", "gaussian", "salt-and-pepper", "erasing"]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)

Images = Float[Array, "b h w c"]
Corrupt = Callable[[Array, Array], Array]

# The range of the aspect ratio height/width of an erased rectangle, as in Zhong et al.
_ASPECT = 10 / 3


USUAL_STRENGTH = {
    "none": 0.0,
    "gaussian": 1.0,
    "salt-and-pepper": 0.25,
    "erasing": 0.25,
}
"""The default strengths."""


def corruption_problems(name: str, strength: float | None) -> list[str]:
    """What is wrong with these settings, one sentence each; empty if nothing."""
    if strength is None:
        strength = USUAL_STRENGTH.get(name, 0.0)
    elif name == "none":
        return [
            f"corruption_strength={strength} needs a corruption; choose one, e.g. "
            "corruption='gaussian'"
        ]
    if name not in CORRUPTIONS:
        return [f"corruption={name!r}: must be one of {', '.join(CORRUPTIONS)}."]
    if name == "gaussian" and not (math.isfinite(strength) and strength > 0):
        return [
            f"corruption_strength={strength}: with 'gaussian' it is sigma, in "
            "standard deviations of the data, and must be greater than 0 (1.0 is "
            "common)."
        ]
    if name in ("salt-and-pepper", "erasing") and not 0 < strength < 1:
        meaning = {
            "salt-and-pepper": "the probability that a pixel is replaced",
            "erasing": "the share of the image's area that is erased",
        }[name]
        return [
            f"corruption_strength={strength}: with {name!r} it is {meaning}, and must "
            "be between 0 and 1 (0.25 is common)."
        ]
    return []


def make_corruption(
    name: str,
    strength: float | None,
    mean: Sequence[float],
    std: Sequence[float],
) -> Corrupt:
    """The corruption with this name; `mean` and `std` are the data's, per channel.

    Without a strength, the default is used.

    `gaussian`: strength = σ in standard deviations of the data. `salt-and-pepper`:
    strength = the probability that a pixel turns black or white. `erasing`: strength =
    the share of each image's area filled with the data's mean. Raises UserError for an
    unknown name or an invalid strength.
    """
    problems = corruption_problems(name, strength)
    if problems:
        raise UserError("\n".join(problems))
    strength = USUAL_STRENGTH.get(name, 0.0) if strength is None else strength
    if name == "gaussian":
        return lambda key, pixels: gaussian(key, pixels, strength, std)
    if name == "salt-and-pepper":
        return lambda key, pixels: salt_and_pepper(key, pixels, strength)
    if name == "erasing":
        return lambda key, pixels: erase(key, pixels, strength, mean)
    return lambda key, pixels: pixels


def gaussian(key: Array, pixels: Images, sigma: float, std: Sequence[float]) -> Images:
    """Add `sigma * std[c] * N(0, 1)` to every value; not clipped to [0, 1].

    Clipping would reduce the noise where images are black or white.
    """
    scale = sigma * jnp.asarray(std, pixels.dtype).reshape(1, 1, 1, -1)
    return pixels + scale * jax.random.normal(key, pixels.shape, pixels.dtype)


def salt_and_pepper(key: Array, pixels: Images, probability: float) -> Images:
    """Turn each pixel black or white (all channels), each with `probability / 2`."""
    batch, height, width, _ = pixels.shape
    draw = jax.random.uniform(key, (batch, height, width, 1))
    value = (draw < probability / 2).astype(pixels.dtype)
    return jnp.where(draw < probability, value, pixels)


def erase(key: Array, pixels: Images, share: float, fill: Sequence[float]) -> Images:
    """Fill one rectangle per image with `fill`; it covers `share` of the area.

    The aspect ratio is log-uniform in [0.3, 3.3], the position uniform over those
    inside the image; a rectangle that would be wider or higher than the image gets the
    image's width or height. Rounding to whole pixels moves the area by at most half a
    side. After Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020), with a
    fixed share and exactly one rectangle. Three random draws per image, whatever its
    size.
    """
    batch, height, width, _ = pixels.shape
    draws = jax.random.uniform(key, (3, batch))
    aspect = jnp.exp((2 * draws[0] - 1) * math.log(_ASPECT))
    area = share * height * width
    # Below this height, the width needed for the area would not fit.
    lowest = math.ceil(area / width)
    tall = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), max(lowest, 1), height)
    wide = jnp.clip(jnp.round(area / tall), 1, width)
    top = jnp.floor(draws[1] * (height - tall + 1))
    left = jnp.floor(draws[2] * (width - wide + 1))

    rows, columns = jnp.arange(height), jnp.arange(width)
    in_rows = (rows[None] >= top[:, None]) & (rows[None] < (top + tall)[:, None])
    in_columns = (columns[None] >= left[:, None]) & (
        columns[None] < (left + wide)[:, None]
    )
    inside = in_rows[:, :, None, None] & in_columns[:, None, :, None]
    colour = jnp.asarray(fill, pixels.dtype).reshape(1, 1, 1, -1)
    return jnp.where(inside, colour, pixels)
