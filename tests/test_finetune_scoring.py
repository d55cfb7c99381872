import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.evaluation.classification import measures
from afterimage.models.classifier import over_views
from afterimage.models.heads import VIEWS

IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (5, 56, 28, 1), "u1"))


def columns(params, stats, images):
    """Logits that tell where an image is bright."""
    return images[:, :, ::4, 0].mean(1) / 4


def test_one_view_is_the_image_as_it_is():
    assert over_views(columns, "none") is columns


def test_views_are_the_image_moved_and_mirrored():
    shifted = VIEWS["shift"](IMAGES)
    assert shifted.shape == (9, *IMAGES.shape)
    assert len({view.tobytes() for view in np.asarray(shifted)}) == 9
    np.testing.assert_array_equal(shifted[4], IMAGES)
    # By a twenty-eighth: two of 56 rows down, one of 28 columns to the right.
    np.testing.assert_array_equal(shifted[0][:, 2:, 1:], IMAGES[:, :-2, :-1])
    np.testing.assert_array_equal(shifted[8][:, :-2, :-1], IMAGES[:, 2:, 1:])
    np.testing.assert_array_equal(VIEWS["flip"](IMAGES)[1], IMAGES[:, :, ::-1])
    both = VIEWS["shift-flip"](IMAGES)
    assert both.shape == (18, *IMAGES.shape)
    np.testing.assert_array_equal(both[13], IMAGES[:, :, ::-1])


@pytest.mark.parametrize("name", ["flip", "shift", "shift-flip"])
def test_logits_are_the_log_of_the_mean_of_the_views_probabilities(name):
    found = jax.jit(over_views(columns, name))(None, None, IMAGES)
    each = [jax.nn.softmax(columns(None, None, view)) for view in VIEWS[name](IMAGES)]
    np.testing.assert_allclose(np.exp(found), np.mean(each, axis=0), rtol=1e-4)
    assert not np.allclose(np.exp(found), each[0])


def test_weighted_measures_are_those_of_examples_repeated():
    """A weight of n is n copies; a scale of all weights changes nothing."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 3)).astype(np.float32)
    labels, copies = rng.integers(0, 3, 40), rng.integers(0, 4, 40)
    again = np.repeat(np.arange(40), copies)
    expected = measures(logits[again], labels[again])
    for scale in (1.0, 0.01):
        found = measures(logits, labels, scale * copies)
        assert found == pytest.approx(expected, rel=1e-9)
    assert found != pytest.approx(measures(logits, labels), rel=1e-3)


def test_weighting_turns_the_source_risk_into_the_targets():
    """Sugiyama et al. 2007: of a source N(0, 1) and a target N(1, 1), the weights
    e^(x - 1/2) choose the classifier that errs less in the target."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=200_000)
    weights, labels = np.exp(x - 0.5), (x > 1).astype(int)
    near, far = (np.stack([np.zeros_like(x), where], 1) for where in (x + 0.2, x - 1.4))
    plain = [measures(logits, labels)["accuracy"] for logits in (near, far)]
    weighted = [measures(logits, labels, weights)["accuracy"] for logits in (near, far)]
    moved = x + 1
    truth = [np.mean((moved > edge) == (moved > 1)) for edge in (-0.2, 1.4)]
    np.testing.assert_allclose(weighted, truth, atol=0.02)
    assert plain[0] < plain[1]
