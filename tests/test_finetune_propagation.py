"""Label propagation: the graph by hand, and the term that asks it."""

import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.data import array_set
from afterimage.finetune import neighbours
from afterimage.finetune.methods import _propagation as propagation
from afterimage.finetune.methods._propagation import propagate, propagated
from afterimage.finetune.methods.pseudo_labels import pseudo_labels
from afterimage.finetune.neighbours import PrincipalFeatures, nearest
from tests.test_finetune_unlabelled import given


def arc(first, last, count, plane=(0, 1)):
    """Directions in a plane of three dimensions, degrees."""
    angles, points = np.radians(np.linspace(first, last, count)), np.zeros((count, 3))
    points[:, plane[0]], points[:, plane[1]] = np.cos(angles), np.sin(angles)
    return points


def test_a_label_spreads_along_its_cluster_past_a_nearer_label_of_another():
    """The last point of the first arc is 12 degrees from the other arc's label and 60
    from its own."""
    x = np.concatenate([arc(0, 60, 40), arc(72, 90, 20)])
    labels = np.full(60, -1)
    labels[[0, 40]] = 0, 1
    found = propagate(x, labels, 2)
    np.testing.assert_array_equal(found, np.repeat([0, 1], [40, 20]))
    np.testing.assert_array_equal(propagate(5.0 * x, labels, 2), found)  # unit length


def test_what_no_label_reaches_has_none():
    x = np.concatenate([arc(0, 20, 15), arc(160, 180, 15, plane=(0, 2))])
    labels = np.full(30, -1)
    labels[0] = 1
    found = propagate(x, labels, 3)
    np.testing.assert_array_equal(found, np.repeat([1, -1], 15))


def test_of_a_large_set_the_others_have_the_class_of_the_nearest(monkeypatch):
    """Of 60 images 20 are in the graph; all 60 are told by their arc."""
    monkeypatch.setattr(propagation, "_MOST", 20)
    # Alternating, so that the evenly spaced ones are of both arcs.
    arcs = np.stack([arc(0, 60, 30), arc(100, 160, 30, plane=(1, 2))], 1).reshape(60, 3)

    class Project(PrincipalFeatures):
        """Features by the number that an image shows."""

        def __init__(self):
            pass

        def fit(self, images):
            assert len(images) == 60

        def __call__(self, images):
            return arcs[images.gather(np.arange(len(images)))[:, 0, 0, 0]]

    pixels = np.arange(60, dtype=np.uint8)[:, None, None, None]
    images = array_set(pixels, None, None, "all")
    known = array_set(pixels[:2], np.array([0, 1], np.int32), ("a", "b"), "known")
    found = propagated(Project(), known, images, 2)
    assert (found == np.tile([0, 1], 30)).mean() > 0.9


def test_the_term_counts_what_both_say_and_later_what_the_classifier_says():
    """Both images are sure; propagation says the same of the first alone."""
    weak = jnp.log(jnp.array([[0.99, 0.01], [0.99, 0.01]]))
    strong = jnp.log(jnp.array([[0.5, 0.5], [0.2, 0.8]]))
    term = pseudo_labels(propagation=0.5)
    values = {
        "unlabelled__logits__classes": weak,
        "strong__logits__classes": strong,
        "unlabelled__propagated": jnp.array([0, 1]),
    }
    early, metrics = term.value(given(**values, progress=0.49), jnp.int32(0))
    assert float(early) == pytest.approx(-np.log(0.5) / 2)
    assert float(metrics["pseudo_labels_sure"]) == 0.5
    late, _ = term.value(given(**values, progress=0.5), jnp.int32(0))
    assert float(late) == pytest.approx((-np.log(0.5) - np.log(0.2)) / 2)


def test_neighbours_are_the_others_also_where_many_are_equal(monkeypatch):
    """Against sklearn's own leaving out, in rows of 7; equal rows have each other."""
    from sklearn.neighbors import NearestNeighbors

    monkeypatch.setattr(neighbours, "_ROWS", 7)
    x = np.random.default_rng(0).normal(size=(50, 3))
    distance, index = nearest(x, 4)
    wanted, rows = NearestNeighbors(n_neighbors=4).fit(x).kneighbors()
    np.testing.assert_array_equal(index, rows)
    np.testing.assert_allclose(distance, wanted)
    distance, index = nearest(np.ones((50, 3)), 4)
    assert not distance.any()
    assert (index != np.arange(50)[:, None]).all()
