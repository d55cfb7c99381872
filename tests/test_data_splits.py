"""Splits and choices: stratified, balanced, seeded; labels as they come."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.data import (
    Splits,
    array_set,
    check_classes,
    choose_labels,
    hold_out,
    open_data,
)
from afterimage.errors import DataError, UserError


def image_set(labels, names=None):
    labels = None if labels is None else np.asarray(labels, np.int32)
    count = 10 if labels is None else len(labels)
    if names is None and labels is not None:
        names = tuple("abcdefgh"[: labels.max() + 1])
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return array_set(images, labels, names, "set")


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(-1, 3), min_size=2, max_size=60),
    fraction=st.floats(0.05, 0.6),
    seed=st.integers(0, 100),
)
def test_hold_out_parts_the_set_and_keeps_the_proportions(labels, fraction, seed):
    images = image_set(labels, tuple("abcd"))
    if len(set(labels)) == len(labels):
        with pytest.raises(DataError, match="too few"):
            hold_out(images, fraction, seed)
        return
    train, held = hold_out(images, fraction, seed)
    assert sorted([*train.ids, *held.ids], key=int) == list(images.ids)
    for label in set(labels):
        count, kept = labels.count(label), int((held.labels == label).sum())
        assert abs(kept - fraction * count) <= 1 or kept == count - 1
        assert kept < count
    again = hold_out(images, fraction, seed)[1]
    assert (again.ids, again.fingerprint) == (held.ids, held.fingerprint)


@settings(deadline=None)
@given(labels=st.integers(3, 30), seed=st.integers(0, 100))
def test_choices_are_balanced_and_nested(labels, seed):
    images = image_set(np.arange(60) % 3)
    chosen = choose_labels(images, labels=labels, seed=seed)
    counts = np.bincount(images.labels[chosen], minlength=3)
    assert len(set(chosen.tolist())) == labels
    assert counts.max() - counts.min() <= 1
    assert set(chosen) <= set(choose_labels(images, labels=labels + 1, seed=seed))


def test_per_class_and_seed():
    images = image_set(np.arange(60) % 3)
    chosen = choose_labels(images, per_class=5, seed=0)
    assert np.bincount(images.labels[chosen]).tolist() == [5, 5, 5]
    assert not np.array_equal(chosen, choose_labels(images, per_class=5, seed=1))


def test_of_some_classes_the_same_as_of_all():
    """Also where a class that is not asked for has too few."""
    labels = [0, 1, 2] * 15
    images, few = image_set(labels), image_set([0, 1] * 15 + [2])
    chosen = choose_labels(images, per_class=5, seed=3)
    of_two = choose_labels(images, per_class=5, classes=[0, 1], seed=3)
    np.testing.assert_array_equal(of_two, chosen[images.labels[chosen] < 2])
    assert len(choose_labels(few, per_class=5, classes=[0, 1], seed=3)) == 10
    with pytest.raises(DataError, match="'b' has 15, 20 requested"):
        choose_labels(few, per_class=20, classes=[1], seed=3)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 0, 1], {"per_class": 2}, "'b' has 1, 2 requested"),
        ([0, 0, -1, 1], {"labels": 1}, "at least 2 labels"),
        (None, {"labels": 4}, "no labels"),
        ([0, 1], {}, "labels or per_class"),
        ([0, 1], {"labels": 2, "per_class": 1}, "labels or per_class"),
    ],
)
def test_choices_that_cannot_be(labels, options, message):
    with pytest.raises(UserError, match=message):
        choose_labels(image_set(labels), seed=0, **options)


def npz(tmp_path, **arrays):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


IMAGES = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)


@pytest.mark.parametrize(
    ("given", "indices", "names"),
    [
        ([7, 3, 3, 10], [1, 0, 0, 2], ("3", "7", "10")),
        (["dog", "cat", "cat", "dog"], [1, 0, 0, 1], ("cat", "dog")),
        ([0, -1, 1, -1], [0, -1, 1, -1], ("0", "1")),
        ([[1], [0], [1], [0]], [1, 0, 1, 0], ("0", "1")),
        (np.array([1.0, 2.0, 1.0, 2.0]), [0, 1, 0, 1], ("1", "2")),
        ([True, False, True, True], [1, 0, 1, 1], ("0", "1")),
    ],
)
def test_labels_with_gaps_and_names_are_closed_up(tmp_path, given, indices, names):
    found = open_data(npz(tmp_path, images=IMAGES, labels=given)).train
    assert (found.labels.tolist(), found.class_names) == (indices, names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0, -2, 1, 1], "only -1"),
        ([0.5, 1, 1, 1], "0.5"),
        ([np.nan, 1, 1, 1], "nan"),
        (np.eye(4), "one-hot"),
        ([0, 1], "2 labels"),
    ],
)
def test_labels_that_make_no_sense(tmp_path, given, message):
    with pytest.raises(DataError, match=message):
        open_data(npz(tmp_path, images=IMAGES, labels=given))


def test_missing_labels_are_no_labels(tmp_path):
    found = open_data(npz(tmp_path, images=IMAGES)).train
    assert found.labels is None
    assert found.class_names is None
    with pytest.raises(DataError, match="no labels"):
        check_classes(Splits(found))


def test_one_class_and_foreign_classes_are_named_together():
    train, test = image_set([0, 0], ("a", "b")), image_set([0, 1], ("a", "b"))
    with pytest.raises(DataError, match=r"1 class \(a.*training images: b"):
        check_classes(Splits(train, test=test))
    check_classes(Splits(test, test=train))


def test_a_subset_shares_and_names_its_rows():
    images = image_set([0, 1, 0, 1])
    part = images.subset([3, 1]).subset([1])
    assert part.ids == ["1"]
    assert part.gather([0])[0, 0, 0, 0] == 1
    assert np.asarray(part.images).shape == (1, 1, 1, 1)
    assert part.fingerprint != images.fingerprint
