"""Several sources as one set, their weights, and an adversary for each."""

import types
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.data import Joined, Labels, Splits, array_set
from afterimage.errors import DataError
from afterimage.finetune.data import LabelSplit
from afterimage.finetune.losses import cross_entropy
from afterimage.finetune.methods.mdan import MDAN, mdan
from afterimage.finetune.methods.sources import SOURCE, Sources, pool
from afterimage.training.optimiser import Group, make_optimiser, make_schedule
from afterimage.training.stage import Context, Phase, Stage
from afterimage.training.step import init_state, make_step
from tests.test_finetune_adaptation import OPTIONS, classify, encode, provide


def image_set(name, labels, classes, tasks=None, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (len(labels), 2, 2, 1)).astype(np.uint8)
    return array_set(images, np.array(labels, np.int32), classes, name, tasks=tasks)


def two():
    colour = Labels(np.array([1, -1, 0], np.int32), ("blue", "red"))
    first = image_set("a", [0, 1, 2], ("x", "y", "z"), {"colour": colour})
    second = image_set("b", [1, -1, 0, 0], ("x", "z"), seed=1)
    return first, second


def test_sources_are_matched_by_name_and_numbered():
    first, second = two()
    both = pool([Splits(train=first), Splits(train=second, test=second)], ("a", "b"))
    train = both.train
    assert train.labels.tolist() == [0, 1, 2, 2, -1, 0, 0]
    assert train.class_names == ("x", "y", "z")
    assert train.of_task(SOURCE).labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert train.of_task("colour").labels.tolist() == [1, -1, 0, -1, -1, -1, -1]
    assert len(set(train.ids)) == 7
    assert both.validation is None
    assert both.test.of_task(SOURCE).labels.tolist() == [1, 1, 1, 1]
    pixels = np.concatenate([first.gather([0, 1, 2]), second.gather([0, 1, 2, 3])])
    np.testing.assert_array_equal(train.gather(np.arange(7)), pixels)
    some = train.subset([5, 1])
    assert some.of_task(SOURCE).labels.tolist() == [1, 0]
    np.testing.assert_array_equal(some.gather([0, 1]), pixels[[5, 1]])
    other = pool([Splits(train=second), Splits(train=second)], ("a", "b")).train
    assert other.fingerprint != train.fingerprint


def test_classes_of_a_source_alone_are_named():
    first, _ = two()
    odd = image_set("odd", [0, 1], ("x", "w"))
    with pytest.raises(DataError, match="odd has classes that the first source lacks"):
        pool([Splits(train=first), Splits(train=odd)], ("a", "b"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 8), max_size=12), st.slices(9), st.integers(-9, 8))
def test_joined_images_are_one_array(rows, some, one):
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 255, (n, 2, 3, 1)).astype(np.uint8) for n in (4, 2, 3)]
    joined, whole = Joined(parts), np.concatenate(parts)
    index = np.array(rows, np.int64)
    np.testing.assert_array_equal(joined[index], whole[index])
    np.testing.assert_array_equal(joined[some], whole[some])
    np.testing.assert_array_equal(joined[one], whole[one])
    np.testing.assert_array_equal(np.asarray(joined), whole)
    assert joined.shape == whole.shape


def pooled():
    """The data of a run on both."""
    train = pool([Splits(train=part) for part in two()], ("c", "d")).train
    return types.SimpleNamespace(labels=LabelSplit(train, None, None, ""))


def test_weights_go_to_the_images_of_their_source():
    method = Sources(images=("d",), weights=(1.0, 4.0))
    setup = types.SimpleNamespace(data=pooled())
    found = method.example_weights(cast(Any, setup), ({}, {}), print)
    assert found["train"].tolist() == [1, 1, 1, 4, 4, 4, 4]


def bound(gamma, numbers, sources=3, weight=0.5):
    """(the term's value, cross-entropies) with discriminators that know nothing."""
    labelled = cross_entropy(2)
    term = mdan(labelled, 2, sources, weight, gamma=gamma, hidden=4)
    logits = jax.random.normal(jax.random.key(0), (6, 2))
    labels = jnp.array([0, 1, 1, 0, 1, 0])
    rules = {
        "params": lambda _: {"terms": {"mdan": jax.tree.map(jnp.zeros_like, own)}},
        "progress": lambda _: jnp.array(0.5),
        "train/features/classes": lambda _: jnp.ones((6, 2)),
        "target/features/classes": lambda _: jnp.ones((4, 2)),
        "train/label/source": lambda _: jnp.asarray(numbers),
        "train/logits/classes": lambda _: logits,
        "train/label": lambda _: labels,
    }
    own = dict(term.params)
    value, _ = term.value(Context(rules), jnp.zeros(()))
    each = -jax.nn.log_softmax(logits)[jnp.arange(6), labels]
    return float(value), np.asarray(each, np.float64)


@pytest.mark.parametrize("gamma", [0.01, 1.0, 10.0])
def test_mdan_is_the_smoothed_bound(gamma):
    """At chance d_k = 2 log 2; beside the mean cross-entropy stands the difference."""
    numbers = np.array([0, 0, 1, 1, 1, 2])
    value, each = bound(gamma, numbers)
    totals = [each[numbers == k].mean() + 0.5 * 2 * np.log(2) for k in range(3)]
    expected = np.log(np.mean(np.exp(gamma * np.array(totals)))) / gamma
    assert value == pytest.approx(expected - each.mean(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("method", "factor"), [(MDAN(), 0.01), (MDAN(weight=1.0), 1)])
def test_mdans_adversaries_weigh_what_their_authors_gave_them(method, factor):
    """μ = 0.01: of hanzhaoml/MDAN, main_amazon.py; another is given as it is asked."""
    config = types.SimpleNamespace(seed=0)
    parts = {"labelled": [cross_entropy(2)], "width": 2, "config": config}
    setup = types.SimpleNamespace(data=pooled(), **parts)
    terms = method.terms(cast(Any, setup))
    own = jax.tree.map(jnp.zeros_like, dict(terms[-1].params))
    rules = {
        "params": lambda _: {"terms": {"mdan": own}},
        "progress": lambda _: jnp.array(0.5),
        "train/features/classes": lambda _: jnp.ones((6, 2)),
        "target/features/classes": lambda _: jnp.ones((4, 2)),
        "train/label/source": lambda _: jnp.zeros(6, jnp.int32),
        "train/logits/classes": lambda _: jnp.zeros((6, 2)),
        "train/label": lambda _: jnp.zeros(6, jnp.int32),
    }
    value, _ = terms[-1].value(Context(rules), jnp.zeros(()))
    # One source alone, at chance: μ d = μ 2 log 2.
    assert float(value) == pytest.approx(factor * 2 * np.log(2), rel=1e-4)


def test_mdan_lies_between_the_mean_and_the_hardest_source():
    numbers = np.array([0, 0, 1, 1, 2, 2])
    (mean, each), (hardest, _) = bound(1e-3, numbers), bound(1e3, numbers)
    totals = [each[numbers == k].mean() for k in range(3)]
    assert mean == pytest.approx(np.log(2), abs=1e-3)
    assert hardest == pytest.approx(max(totals) + np.log(2) - each.mean(), abs=2e-3)


def test_a_source_without_an_image_in_the_batch_counts_nothing():
    numbers = np.array([0, 0, 0, 2, 2, 2])
    value, each = bound(1.0, numbers)
    totals = [each[numbers == k].mean() + np.log(2) for k in (0, 2)]
    expected = np.log(np.mean(np.exp(totals))) - each.mean()
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-6)


def drawn(rng, count, side):
    """The second coordinate tells the domain, and the first is moved with it."""
    labels = rng.integers(0, 2, count)
    first = 5.0 * labels - 2.5 + 1.25 * (side + 1.0) + 0.7 * rng.normal(size=count)
    second = side + 0.5 * rng.normal(size=count)
    return np.stack([first, second], 1).astype(np.float32), labels.astype(np.int32)


STEPS, SIDES = 300, (-1.0, -0.7)


def adapted(aligned):
    """Target accuracy of a linear feature learned from two sources at `SIDES`."""

    def more(params, stats, batch, *rest):
        rules = provide(params, stats, batch, *rest)
        return {**rules, "train/label/source": lambda _: batch["label.source"]}

    labelled = cross_entropy(2)
    terms = (labelled,)
    if aligned:
        terms += (mdan(labelled, 1, 2, 1.0, hidden=32, gamma=1.0),)
    params = {
        "encoder": {"linear": jnp.array([[0.5], [0.1]])},
        "heads": {
            "classes": {"kernel": jnp.array([[-0.1, 0.1]]), "bias": jnp.zeros(2)}
        },
    }
    own = {term.name: dict(term.params) for term in terms if term.params}
    params |= {"terms": own} if own else {}
    groups = (Group("all", ".*"),)
    phase = Phase(name="p", terms=terms, groups=groups, steps=STEPS, options=OPTIONS)
    stage, partition = Stage(phases=(phase,), providers=more), phase.partition(params)
    optimiser = make_optimiser(OPTIONS, partition)
    step = make_step(
        stage.loss(0, params),
        optimiser=optimiser,
        schedule=make_schedule(OPTIONS, STEPS, 0),
        partition=partition,
        options=OPTIONS,
    )
    rng = np.random.default_rng(0)
    sources = [drawn(rng, STEPS * 32, side) for side in SIDES]
    shape = (STEPS, 32, -1)
    batches = {
        "image": np.concatenate([x.reshape(shape) for x, _ in sources], 1),
        "label": np.concatenate([y.reshape(STEPS, 32) for _, y in sources], 1),
        "label.source": np.repeat([[0] * 32 + [1] * 32], STEPS, 0),
        "target/image": drawn(rng, STEPS * 64, 1.0)[0].reshape(STEPS, 64, 2),
    }
    state = init_state(
        params, {}, optimiser=optimiser, partition=partition, seed=0, ema=False
    )
    run = jax.jit(lambda s, b: jax.lax.scan(lambda s, b: step(s, b, {}), s, b))
    state, _ = run(state, batches)
    x, y = drawn(np.random.default_rng(9), 500, 1.0)
    found = classify(state["params"], encode(state["params"], x))
    return float((found.argmax(-1) == y).mean())


@pytest.mark.slow
def test_mdan_takes_the_shift_of_both_sources_out():
    assert adapted(aligned=False) < 0.85
    assert adapted(aligned=True) > 0.95
