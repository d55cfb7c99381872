"""Loss terms that look at more than one pixel; each is added with a weight of its own.

Both are linear in what they compare, so they take the error, prediction - target.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.models import pooling

_LEVELS = 5
_SMALLEST = 4  # pixels a side, of a map that is still halved

Error = Float[Array, "b h w c"]
PerImage = Float[Array, " b"]


def gradient(error: Error) -> PerImage:
    """Mean |difference of neighbours|, along rows plus along columns; [B], ≥ 0.

    Edges at the wrong place or blurred cost something that a mean shift does not:
    Mathieu et al., "Deep Multi-Scale Video Prediction Beyond Mean Square Error" (2016),
    section 3.2, with the signs of the differences kept. Sides of 2 pixels and more.
    """
    down = jnp.abs(error[:, 1:] - error[:, :-1])
    across = jnp.abs(error[:, :, 1:] - error[:, :, :-1])
    return jnp.mean(down, axis=(1, 2, 3)) + jnp.mean(across, axis=(1, 2, 3))


def laplacian(error: Error) -> PerImage:
    """The sum over the levels of a Laplacian pyramid of the mean |level|; [B], ≥ 0.

    A level is what is lost when a map is halved; the last is the smallest map itself.
    With means, every level weighs the same, as in Bojanowski et al., "Optimizing the
    Latent Space of Generative Networks" (2018), section 3.2 (Lap1). Halving is a mean
    of 2 x 2 pixels and doubling repeats them, in place of five taps.
    """
    total = jnp.zeros(len(error))
    for _ in range(_LEVELS):
        _, height, width, _ = error.shape
        if min(height, width) < _SMALLEST:
            break
        coarse = pooling.mean_pool(error)
        lost = error - pooling.upsample_nearest(coarse, 2)[:, :height, :width]
        total = total + jnp.mean(jnp.abs(lost), axis=(1, 2, 3))
        error = coarse
    return total + jnp.mean(jnp.abs(error), axis=(1, 2, 3))
