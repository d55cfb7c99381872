"""NDCG and recall of rankings, as Liang et al. (2018) define them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

NAMES = {"ndcg100": "NDCG@100", "recall20": "Recall@20", "recall50": "Recall@50"}
_DEPTH = 100


def ranking(
    scores: Float[Array, "b n"], relevant: Bool[Array, "b n"], seen: Bool[Array, "b n"]
) -> dict[str, Float[Array, " b"]]:
    """{ndcg100, recall20, recall50} of each user; of users without a relevant item 0.

    Items are ranked by score without the `seen` ones; equal scores by their order. With
    R relevant items, recall@k = hits among the first k / min(k, R), and NDCG@k is the
    sum of 1 / log2(rank + 1) over the hits, divided by the largest it could be.
    """
    depth = min(_DEPTH, scores.shape[1])
    best, order = jax.lax.top_k(jnp.where(seen, -jnp.inf, scores), depth)
    hits = jnp.take_along_axis(relevant, order, 1) & (best > -jnp.inf)
    gain = 1 / jnp.log2(jnp.arange(2.0, depth + 2))[None]
    ideal = jnp.arange(depth)[None] < relevant.sum(1, keepdims=True)
    found = {"ndcg100": (hits * gain).sum(1) / jnp.maximum((ideal * gain).sum(1), 1.0)}
    for k in (20, 50):
        most = jnp.clip(relevant.sum(1), 1, k)
        found[f"recall{k}"] = hits[:, :k].sum(1) / most
    return found
