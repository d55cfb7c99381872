"""Kernels and distances shared by several discrepancies between two samples."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ALPHAS = tuple(2.0**k for k in range(-3, 2))


def square_distances(
    x: Float[Array, "n d"], y: Float[Array, "m d"]
) -> Float[Array, "n m"]:
    """‖x_i − y_j‖², never below zero."""
    cross = x @ y.T
    both = jnp.sum(x**2, -1)[:, None] + jnp.sum(y**2, -1)[None]
    return jnp.maximum(both - 2 * cross, 0.0)


def gaussians(
    square: Float[Array, "n n"], alphas: Sequence[float] = ALPHAS
) -> Float[Array, "n n"]:
    """Σ_α exp(−d² / 2σ²), σ² = α · mean d², the mean over all pairs, without gradient.

    The bandwidth rule of DAN's multi-kernel MMD (Long et al. 2015), as in the authors'
    library.
    """
    mean = jnp.maximum(jax.lax.stop_gradient(jnp.mean(square)), 1e-12)
    kernels = [jnp.exp(-square / (2 * alpha * mean)) for alpha in alphas]
    return sum(kernels[1:], kernels[0])


def statistic(kernel: Array, n: int) -> Array:
    """mean k_ss + mean k_tt − 2 mean k_st of the kernel matrix of [s; t], s first."""
    within = jnp.mean(kernel[:n, :n]) + jnp.mean(kernel[n:, n:])
    # Rounding can give −1e-8 instead of zero.
    return jnp.maximum(within - 2 * jnp.mean(kernel[:n, n:]), 0.0)
