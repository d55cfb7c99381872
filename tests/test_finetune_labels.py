"""Which labels are used for what, and that nothing else is."""

import re

import numpy as np
import pytest

from afterimage.data import Splits, array_set
from afterimage.errors import DataError
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.data import matched, split_labels

NAMES = ("ant", "bee", "cow")


def images(count, name="train", names=NAMES, unlabelled=0):
    labels = (np.arange(count) % len(names)).astype(np.int32)
    labels[:unlabelled] = -1
    pixels = np.zeros((count, 8, 8, 1), np.uint8)
    return array_set(pixels, labels, names, name, [f"{name}{i}" for i in range(count)])


def config(**settings):
    return FinetuneConfig(from_="a", out="b", data="digits", **settings)


@pytest.mark.parametrize(
    ("settings", "count", "given", "rule", "sizes"),
    [
        ({}, 1500, None, "best accuracy on 150 validation images cut", (1350, 150)),
        ({}, 900, None, "last step .too few.*: 90 of", (900, None)),
        ({}, 60, 30, "best accuracy on the data's 30 validation", (60, 30)),
        ({"labels": 30}, 900, 90, "last step .too few", (30, None)),
        ({"labels": 1200}, 1500, 90, "120 validation images cut", (1080, 120)),
        ({"labels_per_class": 4}, 90, None, "last step", (12, None)),
        ({"select": "last"}, 1500, 30, "last step .select='last'", (1500, None)),
        (
            {"select": "validation", "labels": 30, "select_by": "loss"},
            900,
            None,
            "best loss on 3 validation images cut from the 30",
            (27, 3),
        ),
    ],
)
def test_how_the_step_is_chosen(settings, count, given, rule, sizes):
    validation = None if given is None else images(given, "validation")
    splits = Splits(images(count), validation, images(9, "test"))
    chosen = split_labels(config(**settings), splits)
    assert re.search(rule, chosen.rule)
    found = (len(chosen.train), chosen.validation and len(chosen.validation))
    assert found == sizes
    assert len(chosen.test) == 9


def test_a_limit_is_a_limit():
    """With limited labels no other is read, a given validation split's neither."""
    settings = config(labels=1200)
    splits = Splits(images(1500), images(90, "validation"), images(9, "test"))
    chosen = split_labels(settings, splits)
    used = {*chosen.train.ids, *chosen.validation.ids}
    assert len(used) == 1200
    assert all(name.startswith("train") for name in used)
    record = chosen.record(settings)
    assert {i for ids in record["train"].values() for i in ids} == set(chosen.train.ids)
    assert record["rule"] == chosen.rule
    assert list(record["train"]) == list(NAMES)


def test_without_a_test_split_a_share_of_each_class_is_held_out():
    """Not trained on, the same by the same seed, and said."""
    splits = Splits(images(300))
    chosen = split_labels(config(), splits)
    assert np.bincount(chosen.test.labels).tolist() == [20, 20, 20]
    assert (len(chosen.train), chosen.validation) == (240, None)
    assert not set(chosen.test.ids) & set(chosen.train.ids)
    assert re.search("60 of 300 labelled images, held out by seed 0", chosen.held_out)
    again, other = (split_labels(config(seed=seed), splits) for seed in (0, 1))
    assert again.test.ids == chosen.test.ids != other.test.ids
    record = chosen.record(config())
    listed = {name for names in record["held_out"].values() for name in names}
    assert listed == set(chosen.test.ids)
    none = split_labels(config(hold_out=0.0), splits)
    assert (len(none.train), none.test, none.held_out) == (300, None, None)
    given = split_labels(config(), Splits(images(300), None, images(9, "test")))
    assert (len(given.train), len(given.test), given.held_out) == (300, 9, None)


def test_of_few_labels_all_train_and_the_others_test():
    """The choice is that of a run with a test split."""
    few = config(labels_per_class=10)
    chosen = split_labels(few, Splits(images(300, unlabelled=30)))
    with_test = split_labels(few, Splits(images(300, unlabelled=30), None, images(9)))
    assert chosen.train.ids == with_test.train.ids
    assert (len(chosen.train), len(chosen.test)) == (30, 240)
    assert not set(chosen.test.ids) & set(chosen.train.ids)
    assert "240 labelled images that were not chosen" in chosen.held_out
    rest = config(labels_per_class=10, methods=["pseudo-labels"])
    text = split_labels(rest, Splits(images(300))).held_out
    assert "read without their labels" in text
    every = split_labels(config(labels_per_class=10), Splits(images(30)))
    assert (every.test, every.held_out) == (None, None)


def test_unlabelled_images_are_left_out():
    splits = Splits(images(30, unlabelled=9), None, images(12, "test", unlabelled=6))
    chosen = split_labels(config(), splits)
    assert (len(chosen.train), len(chosen.test)) == (21, 6)
    assert (chosen.train.labels >= 0).all()


def test_classes_are_matched_by_name():
    found = matched(images(6, names=("cow", "ant")), NAMES)
    assert found.labels.tolist() == [2, 0, 2, 0, 2, 0]
    assert found.class_names == NAMES


def test_unknown_classes_are_named_and_absent_ones_allowed():
    with pytest.raises(DataError, match="not trained on: dog, elk"):
        matched(images(8, names=("ant", "dog", "elk")), NAMES)
    # A class that is only listed, with no image, is no reason to refuse.
    unused = images(1, names=("ant", "dog"))
    assert matched(unused, NAMES).labels.tolist() == [0]


def test_no_labels_to_score_by():
    with pytest.raises(DataError, match="no labels"):
        matched(images(3, unlabelled=3), NAMES)
