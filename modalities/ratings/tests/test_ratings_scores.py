"""NDCG and recall: cases computed by hand, and the definition written another way."""

import math

import numpy as np
import pytest
from afterimage_ratings.networks import Model, moved
from afterimage_ratings.scores import ranking


def one(scores, relevant, seen=()):
    size = len(scores)
    marks = [np.isin(np.arange(size), list(some))[None] for some in (relevant, seen)]
    found = ranking(np.array([scores], np.float32), *marks)
    return {name: float(value[0]) for name, value in found.items()}


@pytest.mark.parametrize(
    ("relevant", "seen", "ndcg"),
    [
        ({0}, (), 1.0),
        ({1}, (), 1 / math.log2(3)),
        ({1}, {0}, 1.0),  # what was seen leaves the ranking
        ({0, 3}, (), (1 + 1 / math.log2(5)) / (1 + 1 / math.log2(3))),
        ({2, 3}, {0, 1}, 1.0),
        ({2}, {2}, 0.0),  # seen, so never recommended
        (set(), (), 0.0),
    ],
)
def test_ndcg_by_hand(relevant, seen, ndcg):
    assert one([9, 7, 5, 3], relevant, seen)["ndcg100"] == pytest.approx(ndcg)


def test_recall_by_hand():
    scores = np.arange(200, 0, -1)
    # Ranks 1, 20, 21, 50 and 101: two of the first 20, four of the first 50.
    found = one(scores, {0, 19, 20, 49, 100})
    assert found["recall20"] == pytest.approx(2 / 5)
    assert found["recall50"] == pytest.approx(4 / 5)
    # Of 40 relevant items at most 20 fit among the first 20.
    assert one(scores, range(10, 50))["recall20"] == pytest.approx(10 / 20)


def test_equal_scores_keep_the_order_of_the_items():
    assert one([1, 1, 1], {0})["ndcg100"] == 1
    assert one([1, 1, 1], {2})["ndcg100"] == pytest.approx(1 / 2)


def test_the_definition_written_another_way():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, 300)).astype(np.float32)
    relevant, seen = rng.random((2, 6, 300)) < np.array([0.5, 0.2])[:, None, None]
    found = ranking(scores, relevant & ~seen, seen)
    for user in range(6):
        order = [i for i in np.argsort(-scores[user]) if not seen[user, i]]
        good = set(np.flatnonzero(relevant[user] & ~seen[user]))
        gains = [1 / math.log2(r + 2) for r, i in enumerate(order[:100]) if i in good]
        best = sum(1 / math.log2(r + 2) for r in range(min(100, len(good))))
        assert found["ndcg100"][user] == pytest.approx(sum(gains) / best, rel=1e-5)
        hits = len(good & set(order[:50]))
        assert found["recall50"][user] == pytest.approx(hits / min(50, len(good)))


def test_losses_of_mult_vae_are_its_formulas():
    import jax

    model = Model("mult-vae", width=4, latent=2, like=4.0)
    params = model.fresh(5, seed=1)
    ratings = np.array([[5, np.nan, 2, 4, np.nan]], np.float32)
    x = np.array([[1, 0, 0, 1, 0]])
    found = model.losses(params, ratings, jax.random.key(0), 0.0)
    items, inner = params["items"], params["inner"]
    h = np.tanh(x / np.sqrt(2) @ items["input"]["kernel"])
    code = h @ inner["code"]["kernel"]
    mean, logvar = code[:, :2], code[:, 2:]
    kl = 0.5 * (np.exp(logvar) + mean**2 - 1 - logvar).sum()
    assert found["kl"][0] == pytest.approx(kl, rel=1e-4)
    h = np.tanh(mean @ inner["decoder"]["kernel"])
    logits = (h @ items["output"]["kernel"].T)[0]
    logs = logits - np.log(np.exp(logits).sum())
    scores = np.asarray(model.scores(params, ratings))[0]
    np.testing.assert_allclose(scores, logs, atol=1e-5)
    assert 0 < found["nll"][0] < 10 * -logs[[0, 3]].sum()


def test_dropout_hides_ratings_from_the_network_only():
    import jax

    model = Model("mult-vae", width=4, latent=2, like=None)
    params = model.fresh(30, seed=0)
    ratings = np.ones((8, 30), np.float32)
    whole, some = (
        model.losses(params, ratings, jax.random.key(0), p) for p in (0.0, 0.9)
    )
    assert not np.allclose(whole["kl"], some["kl"])
    # All items count in the likelihood, however few are seen.
    assert (np.asarray(some["nll"]) > 30 * np.log(30) * 0.8).all()


def test_autorec_learns_from_known_ratings_alone():
    import jax

    model = Model("autorec", width=3, latent=1, like=None, mean=3.0, std=1.5)
    params = model.fresh(4, seed=0)
    ratings = np.array([[5, np.nan, 1, np.nan]], np.float32)

    def loss(p):
        return model.losses(p, ratings, jax.random.key(0), 0.5)["squared_error"]

    wrong = (np.asarray(model.scores(params, ratings)) - ratings)[0, [0, 2]] / 1.5
    assert loss(params) == pytest.approx(np.mean(wrong**2), rel=1e-4)
    steep = jax.grad(loss)(params)["items"]
    for layer in (steep["input"]["kernel"], steep["output"]["kernel"]):
        assert (np.asarray(layer)[[1, 3]] == 0).all()
        assert (np.asarray(layer)[[0, 2]] != 0).any()


def test_moving_keeps_inner_layers_and_the_rows_of_known_items():
    model = Model("mult-vae", width=4, latent=2, like=None)
    old = model.fresh(3, seed=1)
    new, shared = moved(old, ["a", "b", "c"], ["c", "d", "a", "e"])
    assert shared == 2
    assert new["inner"] is old["inner"]
    for layer, kind in (("input", "kernel"), ("output", "kernel"), ("output", "bias")):
        was, now = (tree["items"][layer][kind] for tree in (old, new))
        np.testing.assert_array_equal(now[[0, 2]], was[[2, 0]])
        for new_item in now[[1, 3]]:
            np.testing.assert_allclose(new_item, was.mean(0), atol=1e-6)
