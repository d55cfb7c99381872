"""The baselines of the benchmark are what their papers define."""

import numpy as np
import pytest

from benchmarks import ratings


@pytest.fixture
def train():
    """Random likes, float64 [users, items]."""
    return (np.random.default_rng(0).random((30, 8)) < 0.4).astype(np.float64)


def test_ease_is_the_best_linear_model_without_a_diagonal(train):
    for weight, scores in zip((3.0, 10.0), ratings.ease(train.T @ train)):
        found = scores(np.eye(8))
        assert (np.diag(found) == 0).all()
        for item in range(8):  # ridge regression of each item on the others
            others = np.delete(train, item, 1)
            gram = others.T @ others + weight * np.eye(7)
            best = np.linalg.solve(gram, others.T @ train[:, item])
            np.testing.assert_allclose(np.delete(found[:, item], item), best)


def test_als_prefers_what_similar_users_like(train):
    rows = np.kron(np.eye(2), np.ones((12, 6)))
    rows[::3, ::2] = 0  # not every user likes all of a taste
    for scores in ratings.als(rows, seed=0):
        found = scores(np.eye(12)[:1])[0]
        assert found[1:6].min() > found[6:].max()


def test_popularity_counts(train):
    (scores,) = ratings.popularity(train)
    np.testing.assert_array_equal(scores(train[:2]), train.sum(0)[None].repeat(2, 0))
