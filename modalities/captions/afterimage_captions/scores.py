"""The loss of pairs, and how well images find their texts and texts their images."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

KS = (1, 5, 10)
LARGEST_SCALE = 100.0
FIRST_SCALE = math.log(1 / 0.07)
"""The logarithm of the first scale of the cosines, and the largest scale: CLIP's."""
_DIGITS = 6
"""Decimals of a cosine; cosines equal to this precision are ties."""
_BLOCK = 2**24
"""Cosines held at once."""


def unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Rows scaled to length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def contrastive(
    images: Float[Array, "b d"],
    texts: Float[Array, "b d"],
    same: Bool[Array, "b b"],
    scale: Float[Array, ""],
) -> Float[Array, " b"]:
    """The mean of both directions' cross-entropy for each pair, in nats.

    With unit vectors u of images and v of texts: -Σ_j q_ij log softmax_j(scale u_i·v_j)
    and the same with images and texts exchanged. q_i is uniform over the pairs with the
    text of pair i (`same`), which are so no wrong answers: UniCL (Yang et al. 2022). If
    no two texts are equal, it is CLIP's loss (Radford et al. 2021).
    """
    cosines = jnp.matmul(images, texts.T, precision="highest")
    right = same / same.sum(1, keepdims=True)

    def one_way(logits: Float[Array, "b b"]) -> Float[Array, " b"]:
        return -(right * jax.nn.log_softmax(logits)).sum(1)

    return (one_way(scale * cosines) + one_way(scale * cosines.T)) / 2


def retrieval(
    images: Float[np.ndarray, "n d"],
    text: Int[np.ndarray, " n"],
    vectors: Float[np.ndarray, "t d"],
) -> dict[str, Any]:
    """Both ways between images and the different texts among `vectors[text]`.

    A text is the right answer for every image that has it, and each of these images for
    the text. Among equal cosines the order is random: recall@k is the probability that
    a right answer is among the first k, a rank the mean rank of the first right one.
    `chance` is the same for cosines that are all equal.
    """
    own, place = np.unique(text, return_inverse=True)
    texts, numbers = vectors[own], np.arange(len(own))
    ways = {
        "image_to_text": _counts(images, texts, place, numbers),
        "text_to_image": _counts(texts, images, numbers, place),
    }
    each = np.bincount(place)
    none = np.zeros_like(each)
    chance = {
        "image_to_text": np.array([[0], [len(own) - 1], [1]]),
        "text_to_image": np.stack([none, len(place) - each, each]),
    }
    found = {name: _summary(*counts) for name, counts in ways.items()}
    return {
        "images": len(images),
        "texts": len(own),
        "mrr": float(np.mean([way["mrr"] for way in found.values()])),
        **found,
        "chance": {name: _summary(*counts) for name, counts in chance.items()},
    }


def _counts(
    queries: np.ndarray, among: np.ndarray, wanted: np.ndarray, found: np.ndarray
) -> Int[np.ndarray, "3 q"]:
    """For each query: wrong answers above its best right one; wrong and right ties.

    `wanted` and `found` are the numbers of the texts of queries and answers.
    """
    parts, rows = [], max(1, _BLOCK // len(among))
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        cosines = np.round(queries[part] @ among.T, _DIGITS)
        right = wanted[part][:, None] == found[None]
        best = np.where(right, cosines, -np.inf).max(1, keepdims=True)
        equal = cosines == best
        every = ((cosines > best) & ~right, equal & ~right, equal & right)
        parts.append(np.stack([each.sum(1) for each in every]))
    return np.concatenate(parts, 1)


def _summary(
    above: np.ndarray, wrong: np.ndarray, right: np.ndarray
) -> dict[str, float]:
    """Recall at k, the median rank, and the mean of 1 / rank."""
    rank = above + (wrong + right + 1) / (right + 1)
    recalls = {}
    for k in KS:
        missed = np.ones(len(above))
        for drawn in range(k):  # without replacement, from the ties
            left = np.maximum(wrong - drawn, 0) / np.maximum(wrong + right - drawn, 1)
            missed = np.where(drawn < k - above, missed * left, missed)
        recalls[f"recall@{k}"] = float(1 - missed.mean())
    return {
        **recalls,
        "median_rank": float(np.median(rank)),
        "mrr": float((1 / rank).mean()),
    }
