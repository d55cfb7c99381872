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
