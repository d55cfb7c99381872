"""The contrastive loss and the measures of retrieval, against their definitions."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from afterimage_captions.scores import contrastive, retrieval


def units(rng, n, d=4):
    x = rng.normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_without_equal_texts_the_loss_is_clips():
    rng = np.random.default_rng(0)
    u, v = units(rng, 5), units(rng, 5)
    logits = 7.0 * u @ v.T
    rows, columns = np.exp(logits), np.exp(logits.T)
    wanted = -np.log(np.diag(rows) / rows.sum(1)) - np.log(
        np.diag(columns) / columns.sum(1)
    )
    found = contrastive(
        jnp.asarray(u), jnp.asarray(v), jnp.eye(5, dtype=bool), jnp.float32(7)
    )
    np.testing.assert_allclose(found, wanted / 2, rtol=1e-5)


def test_equal_texts_are_not_each_others_wrong_answers():
    """Two images on their one text and a third on its own: only that entropy is left,
    while images at each other's texts cost the whole scale."""
    v = jnp.eye(3, dtype=jnp.float32)[jnp.array([0, 0, 1])]
    same = v @ v.T > 0.5
    exact = contrastive(v, v, same, jnp.float32(100))
    np.testing.assert_allclose(exact, [np.log(2), np.log(2), 0], atol=1e-5)
    swapped = contrastive(v[jnp.array([2, 1, 0])], v, same, jnp.float32(100))
    assert float(swapped[0]) > 50


def by_enumeration(cosines, right, k):
    """(recall@k, rank) of one query: the mean over all orders of equal cosines."""
    hits, ranks, orders = 0, 0.0, 0
    for order in itertools.permutations(range(len(cosines))):
        if any(cosines[a] < cosines[b] for a, b in itertools.pairwise(order)):
            continue
        first = next(n for n, item in enumerate(order) if right[item])
        hits, ranks, orders = hits + (first < k), ranks + first + 1, orders + 1
    return hits / orders, ranks / orders


def test_recall_counts_equal_texts_and_ties_as_all_orders_do():
    rng = np.random.default_rng(3)
    vectors = units(rng, 4)
    vectors[3] = vectors[2]  # two texts with one vector
    text = np.array([0, 0, 1, 2, 3, 1])
    images = vectors[[1, 0, 1, 2, 2, 0]]  # some equal to each other
    found = retrieval(images, text, vectors)
    cosines = np.round(images @ vectors.T, 5)
    to_text = [by_enumeration(cosines[n], np.arange(4) == text[n], 1) for n in range(6)]
    to_image = [by_enumeration(cosines[:, t], text == t, 1) for t in range(4)]
    for way, wanted in (("image_to_text", to_text), ("text_to_image", to_image)):
        recalls, ranks = np.array(wanted).T
        assert found[way]["recall@1"] == pytest.approx(recalls.mean())
        assert found[way]["median_rank"] == pytest.approx(np.median(ranks))
        assert found[way]["recall@10"] == 1
    five = [by_enumeration(np.zeros(6), text == t, 5)[0] for t in range(4)]
    assert found["chance"]["text_to_image"]["recall@5"] == pytest.approx(np.mean(five))


def test_equal_scores_are_chance():
    text = np.array([0, 1, 2, 2, 3])
    images, vectors = np.ones((5, 2), np.float32), np.ones((4, 2), np.float32)
    found = retrieval(images, text, vectors)
    for way in ("image_to_text", "text_to_image"):
        assert found[way] == found["chance"][way]
