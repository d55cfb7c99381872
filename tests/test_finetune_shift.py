"""Density ratios, label shift and label-free selection against closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.data import array_set
from afterimage.errors import DataError
from afterimage.finetune.methods.density_ratio import (
    _project,
    density_ratio,
    effective_size,
)
from afterimage.finetune.methods.label_shift import (
    bbse,
    em,
    frequencies,
    logit_shift,
)
from afterimage.finetune.scoring import softmax
from afterimage.finetune.selection import (
    label_free,
    mixed_agreement,
    soft_neighbourhood_density,
)


def gaussians(count=800, shift=0.8, d=2, seed=0):
    """Source N(0, I), target N(shift·e₁, I): w(x) = exp(shift·x₁ − shift²/2)."""
    rng = np.random.default_rng(seed)
    source, target = rng.normal(size=(2, count, d))
    target[:, 0] += shift
    return source, target, np.exp(shift * source[:, 0] - shift**2 / 2)


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [
        ("classifier", 0.15),
        ("kmm", 0.6),
        pytest.param("ulsif", 0.4, marks=pytest.mark.slow),
    ],
)
def test_density_ratio_of_two_gaussians(method, tolerance):
    source, target, true = gaussians()
    true = np.minimum(true / true.mean(), 10.0)
    found = density_ratio(method, source, target)
    assert found.mean() == pytest.approx(1.0)
    # The right way round: weighting moves the source's mean to the target's.
    assert (found * source[:, 0]).mean() == pytest.approx(0.8, abs=0.2)
    assert np.corrcoef(found, true)[0, 1] > 0.65
    assert np.abs(found - true).mean() < tolerance


@pytest.mark.parametrize(
    ("method", "share"),
    [
        ("classifier", 0.9),
        ("kmm", 0.3),
        pytest.param("ulsif", 0.8, marks=pytest.mark.slow),
    ],
)
def test_equal_domains_weigh_alike(method, share):
    """KMM matches this very sample, and so keeps its noise."""
    rng = np.random.default_rng(1)
    found = density_ratio(method, *rng.normal(size=(2, 500, 3)))
    assert effective_size(found) > share * 500


def test_covariate_shift_moves_a_regression_to_the_target():
    """A straight line fitted to a parabola: weighted, it is the target's line."""
    source, target, _ = gaussians(2000, shift=1.0, d=1)

    def line(x, w):
        design = np.stack([x, np.ones_like(x)], 1)
        return np.linalg.solve(design.T @ (w[:, None] * design), design.T @ (w * x**2))

    weights = density_ratio("classifier", source, target, cap=50.0)
    plain = line(source[:, 0], np.ones(len(source)))
    weighted, best = line(source[:, 0], weights), line(target[:, 0], np.ones(2000))
    assert abs(plain[0] - best[0]) > 1.5
    assert abs(weighted[0] - best[0]) < 0.5


def test_cap_holds_and_units_do_not_matter():
    source, target, _ = gaussians(shift=2.0)
    found = density_ratio("classifier", source, target, cap=3.0)
    assert found.max() <= 3.0 + 1e-3
    scaled = density_ratio("classifier", 100 * source + 5, 100 * target + 5, cap=3.0)
    np.testing.assert_allclose(found, scaled, rtol=1e-3, atol=1e-4)


def test_effective_size_by_hand():
    assert effective_size(np.array([1.0, 1.0, 1.0, 1.0])) == pytest.approx(4)
    assert effective_size(np.array([2.0, 0.0])) == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0.5, 4))
def test_projection_is_the_nearest_feasible_point(values, high):
    w = np.array(values)
    found = _project(w, 0.4, high, most=1.5)
    assert (found >= 0).all()
    assert (found <= 1.5).all()
    assert 0.4 - 1e-6 <= found.sum() <= high + 1e-6
    rng = np.random.default_rng(0)
    for other in rng.dirichlet(np.ones(len(w)), 20) * 0.45:
        if (other <= 1.5).all():
            assert np.sum((w - found) ** 2) <= np.sum((w - other) ** 2) + 1e-6


def two_classes(rng, count, share):
    """x | y = N(±1, 1), with the exact p(y | x) of even classes."""
    labels = (rng.random(count) < share).astype(int)
    x = 2.0 * labels - 1 + rng.normal(size=count)
    return softmax(np.stack([-x, x], 1)), labels


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_label_shift_is_found_and_corrected(share):
    rng = np.random.default_rng(0)
    source, labels = two_classes(rng, 4000, 0.5)
    target, truth = two_classes(rng, 4000, share)
    known = frequencies(labels, 2)
    for estimate in (bbse(source, labels, target), em(target, known)):
        assert estimate[1] == pytest.approx(share, abs=0.03)
        corrected = np.log(target) + logit_shift(estimate, known)
        plain = (target.argmax(1) == truth).mean()
        better = (corrected.argmax(1) == truth).mean()
        assert better >= plain - 0.005
        if share != 0.5:
            assert better > plain + 0.03


def test_bbse_by_hand():
    """Confusions of 90 and 80 %: C w = μ solved on paper gives q = (½, ½) · w."""
    labels = np.repeat([0, 1], 100)
    predicted = np.concatenate(
        [np.repeat([0, 1], [90, 10]), np.repeat([0, 1], [20, 80])]
    )
    # q = (0.3, 0.7): P(predicted 0) = 0.3 · 0.9 + 0.7 · 0.2 = 0.41.
    target = np.eye(2)[np.repeat([0, 1], [41, 59])]
    found = bbse(np.eye(2)[predicted], labels, target)
    np.testing.assert_allclose(found, [0.3, 0.7], rtol=1e-9)


def test_label_shift_that_cannot_be_told():
    never = np.tile([[0.9, 0.1]], (10, 1))
    with pytest.raises(DataError, match="never predicted"):
        bbse(never, np.repeat([0, 1], 5), never)
    with pytest.raises(DataError, match=r"classes \[1\] have none"):
        frequencies(np.zeros(4, int), 2)


def test_label_free_measures_in_closed_form():
    sure = label_free(np.array([[40.0, 0.0], [0.0, 40.0]]))
    torn = label_free(np.zeros((2, 2)))
    one = label_free(np.array([[40.0, 0.0], [40.0, 0.0]]))
    assert sure["target_entropy"] == pytest.approx(0, abs=1e-6)
    assert torn["target_entropy"] == pytest.approx(np.log(2))
    assert sure["target_infomax"] == pytest.approx(np.log(2))
    # Everything in one class: entropy finds it perfect, infomax does not.
    assert one["target_entropy"] == pytest.approx(0, abs=1e-6)
    assert one["target_infomax"] == pytest.approx(0, abs=1e-6)


def test_soft_neighbourhood_density_in_closed_form():
    """All alike: uniform over the n − 1 others. Two tight pairs: one neighbour."""
    assert soft_neighbourhood_density(np.tile([0.3, 0.7], (5, 1))) == pytest.approx(
        np.log(4)
    )
    pairs = np.repeat(np.eye(2), 2, axis=0)
    assert soft_neighbourhood_density(pairs) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("bright", "threshold", "expected"),
    [
        pytest.param([0, 1] * 20, 100, 1.0, id="border in the middle"),
        # The mix of a darker heavier one, 90, is taken for the brighter.
        pytest.param([0, 1] * 20, 50, 0.75, id="border too near one class"),
        pytest.param([1] * 40, 100, 0.5, id="all in one class"),
        pytest.param([1], 100, 0.0, id="nothing to mix"),
    ],
)
def test_agreement_on_mixes_in_closed_form(bright, threshold, expected):
    pixels = np.full((len(bright), 4, 4, 1), 200, np.uint8)
    pixels *= np.array(bright, np.uint8)[:, None, None, None]
    images = array_set(pixels, None, None, "mixed")

    def predict(images):
        mean = images.gather(np.arange(len(images))).mean((1, 2, 3))
        return np.stack([threshold - mean, mean - threshold], 1)

    found = mixed_agreement(images, predict(images), predict)
    assert found == pytest.approx(expected)
