"""Distances between two samples of features: MMD, JMMD, CORAL; and terms of them.

They compare pairs of examples, so a term of them is a scalar of the batch. All are
zero for equal samples and never negative.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.training.terms import Term, TermResult, View

ALPHAS = tuple(2.0**k for k in range(-3, 2))
JOINT_SIGMA = 0.92


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

    The bandwidth rule of DAN's multi-kernel MMD (Long et al. 2015), as the authors'
    library has it.
    """
    mean = jnp.maximum(jax.lax.stop_gradient(jnp.mean(square)), 1e-12)
    kernels = [jnp.exp(-square / (2 * alpha * mean)) for alpha in alphas]
    return sum(kernels[1:], kernels[0])


def _statistic(kernel: Array, n: int) -> Array:
    """mean k_ss + mean k_tt − 2 mean k_st of the kernel matrix of [s; t], s first."""
    within = jnp.mean(kernel[:n, :n]) + jnp.mean(kernel[n:, n:])
    # Rounding may leave −1e-8 where it is zero.
    return jnp.maximum(within - 2 * jnp.mean(kernel[:n, n:]), 0.0)


def mmd(
    source: Float[Array, "n d"],
    target: Float[Array, "m d"],
    alphas: Sequence[float] = ALPHAS,
) -> Float[Array, ""]:
    """MMD² = E k(s, s') + E k(t, t') − 2 E k(s, t), k a sum of Gaussians.

    The V-statistic (Gretton et al. 2012): means over all pairs, i = j too, so that it
    is a squared norm and cannot become negative.
    """
    both = jnp.concatenate([source, target])
    return _statistic(gaussians(square_distances(both, both), alphas), len(source))


def jmmd(
    source: Sequence[Float[Array, "n _d"]], target: Sequence[Float[Array, "m _d"]]
) -> Float[Array, ""]:
    """JMMD² of the joint distribution of (features, class probabilities).

    As `mmd` with k = k_features · k_probabilities (Long et al. 2017, "Deep transfer
    learning with joint adaptation networks"): Gaussians by the rule of `gaussians` on
    the features, one with σ = 0.92 on the probabilities.
    """
    features, probabilities = (jnp.concatenate(p) for p in zip(source, target))
    square = square_distances(probabilities, probabilities)
    kernel = gaussians(square_distances(features, features))
    kernel = kernel * jnp.exp(-square / (2 * JOINT_SIGMA**2))
    return _statistic(kernel, len(source[0]))


def coral(source: Float[Array, "n d"], target: Float[Array, "m d"]) -> Float[Array, ""]:
    """‖C_s − C_t‖²_F / 4d², C the covariance with n − 1 (Sun & Saenko 2016)."""

    def covariance(x: Array) -> Array:
        x = x - x.mean(0, keepdims=True)
        return x.T @ x / max(len(x) - 1, 1)

    difference = covariance(source) - covariance(target)
    return jnp.sum(jnp.square(difference)) / (4 * source.shape[1] ** 2)


def _features(head: str, target: str) -> tuple[str, str]:
    return f"train/features/{head}", f"{target}/features/{head}"


def mmd_term(weight: float = 1.0, *, head: str, target: str = "target") -> Term:
    """`mmd` between what the head reads of either stream."""
    reads = _features(head, target)

    def fn(view: View) -> TermResult:
        return mmd(view[reads[0]], view[reads[1]]), {}

    return Term(name="mmd", fn=fn, reads=reads, weight=weight, encoder_only=True)


def coral_term(weight: float = 1.0, *, head: str, target: str = "target") -> Term:
    """`coral` between what the head reads of either stream."""
    reads = _features(head, target)

    def fn(view: View) -> TermResult:
        return coral(view[reads[0]], view[reads[1]]), {}

    return Term(name="coral", fn=fn, reads=reads, weight=weight, encoder_only=True)


def jmmd_term(weight: float = 1.0, *, head: str, target: str = "target") -> Term:
    """`jmmd` between what the head reads and says of either stream."""
    names = _features(head, target)
    logits = f"train/logits/{head}", f"{target}/logits/{head}"

    def fn(view: View) -> TermResult:
        source, target = (
            (view[name], jax.nn.softmax(view[scores]))
            for name, scores in zip(names, logits)
        )
        return jmmd(source, target), {}

    return Term(
        name="jmmd", fn=fn, reads=(*names, *logits), weight=weight, encoder_only=True
    )
