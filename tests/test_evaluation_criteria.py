"""Label-free criteria: known values, and what they must not depend on."""

import numpy as np
import pytest

from afterimage.errors import UserError
from afterimage.evaluation.criteria import (
    CRITERIA,
    alignment,
    label_free_report,
    neighbour_agreement,
    own_view_retrieval,
    spectral_decay,
    uniformity,
)


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_the_decay_is_the_exponent_of_a_power_law(alpha):
    rows = np.linalg.qr(normal(200, 64) - normal(200, 64).mean(0))[0]
    rows -= rows.mean(0)  # singular vectors stay almost orthogonal
    scales = np.arange(1, 65) ** (-alpha / 2)
    assert spectral_decay(100 * rows * scales + 5) == pytest.approx(alpha, abs=0.03)


def test_a_decay_needs_two_directions():
    assert np.isnan(spectral_decay(np.outer(np.arange(9.0), np.ones(4))))


def test_alignment_is_the_squared_distance_of_unit_vectors():
    a = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert alignment(a, 3 * a) == pytest.approx(0, abs=1e-6)
    assert alignment(a, -a) == pytest.approx(4)
    assert alignment(a, a[::-1]) == pytest.approx(2)


def test_uniformity_of_known_points():
    assert uniformity(np.ones((5, 3))) == pytest.approx(0, abs=1e-6)
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(opposite) == pytest.approx(-8)
    # On a high-dimensional sphere all pairs are at distance √2.
    assert uniformity(normal(400, 1000)) == pytest.approx(-4, abs=0.05)


def test_neighbours_agree_with_a_copy_and_hardly_with_noise():
    a = normal(300, 20)
    assert neighbour_agreement(a, 2 * a) == 1
    assert own_view_retrieval(a, 2 * a) == 1
    assert neighbour_agreement(a, normal(300, 20, seed=1)) < 0.1
    assert own_view_retrieval(a, normal(300, 20, seed=1)) < 0.05
    assert neighbour_agreement(a[:3], a[:3], k=50) == 1  # k is cut to the others


def test_every_criterion_prefers_varied_features_whose_views_agree():
    plain = normal(200, 16) * np.arange(1, 17) ** -0.5
    near, far = 0.1 * normal(200, 16, 1), 3 * normal(200, 16, 2)
    good = label_free_report(plain, plain, plain + near)
    bad = label_free_report(plain[:, :1] * np.ones(16), plain, plain + far)
    assert set(good) == set(CRITERIA)
    for name, value in good.items():
        if np.isfinite(bad[name]):  # a single direction has no decay
            assert value > bad[name], name


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (normal(4, 3), "one vector"),
        (np.full((5, 3), np.nan, np.float32), "finite"),
    ],
)
def test_views_that_do_not_match_are_refused(second, why):
    with pytest.raises(UserError, match=why):
        alignment(normal(5, 3), second)
