"""Fisher information, and penalties weighted by it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from afterimage import runtime
from afterimage.data import ImageSet
from afterimage.training.batches import subsample

MOST_FISHER = 256


def quadratic(now: Any, start: Any, importance: Any | None = None) -> Array:
    """½ Σ_j F_j (θ_j − θ⁰_j)² over trees of one structure; F = 1 where not given."""
    squares = jax.tree.map(lambda x, y: jnp.square(x - y), now, start)
    if importance is not None:
        squares = jax.tree.map(jnp.multiply, importance, squares)
    return 0.5 * sum((jnp.sum(x) for x in jax.tree.leaves(squares)), jnp.zeros(()))


def fisher_diagonal(
    log_probabilities: Callable[[Any, Any], Array], params: Any, examples: Any
) -> Any:
    """F_j = (1/N) Σ_i Σ_c p_c(x_i) (∂ log p_c(x_i) / ∂θ_j)², exact over the classes.

    `log_probabilities(params, example)` gives [C] for one of the iterable `examples`.
    They are processed one at a time: the square of a batch's mean gradient is a
    different, much smaller quantity (Kirkpatrick et al. 2017; van de Ven et al. 2022).
    """

    @runtime.jit
    def squares(params, example):
        logp = log_probabilities(params, example)
        rows = jax.jacrev(log_probabilities)(params, example)
        return jax.tree.map(
            lambda row: jnp.tensordot(jnp.exp(logp), jnp.square(row), 1), rows
        )

    total, count = jax.tree.map(jnp.zeros_like, params), 0
    for example in examples:
        total = jax.tree.map(jnp.add, total, squares(params, example))
        count += 1
    return jax.tree.map(lambda leaf: leaf / max(count, 1), total)


def fisher_of(
    logits: Callable[[Any, Array], Array], params: Any, images: ImageSet
) -> Any:
    """`fisher_diagonal` on at most 256 of the images.

    `logits(params, images)` gives [b, C] in evaluation mode.
    """

    def log_probabilities(params: Any, image: Array) -> Array:
        return jax.nn.log_softmax(logits(params, image[None]))[0]

    some = subsample(images, MOST_FISHER)
    each = (jnp.asarray(some.gather([i])[0]) for i in range(len(some)))
    return fisher_diagonal(log_probabilities, params, each)
