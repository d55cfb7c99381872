"""Terms and their context, against values computed by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterimage.errors import UserError
from afterimage.finetune.losses import balanced_weights, cross_entropy
from afterimage.training.stage import Context, Term, UnknownName

LOGITS = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]]))


def run(term, logits, labels, step=0):
    context = Context(
        {
            "train/logits/classes": lambda _: jnp.asarray(logits, jnp.float32),
            "train/label": lambda _: jnp.asarray(labels, jnp.int32),
        }
    )
    return term.value(context, jnp.int32(step))


def test_cross_entropy_by_hand():
    value, metrics = run(cross_entropy(3), LOGITS, [0, 1, 0])
    expected = -(math.log(0.7) + math.log(0.8) + math.log(0.25)) / 3
    assert float(value) == pytest.approx(expected, rel=1e-6)
    assert float(metrics["cross_entropy"]) == pytest.approx(expected, rel=1e-6)
    assert float(metrics["accuracy"]) == pytest.approx(2 / 3)


def test_label_smoothing_by_hand():
    value, _ = run(cross_entropy(3, label_smoothing=0.3), LOGITS[:1], [0])
    # t = 0.7 · (1, 0, 0) + 0.1 · (1, 1, 1)
    expected = -(0.8 * math.log(0.7) + 0.1 * math.log(0.2) + 0.1 * math.log(0.1))
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_class_weights_by_hand():
    term = cross_entropy(3, class_weights=[1.0, 2.0, 0.5])
    value, _ = run(term, LOGITS, [0, 1, 2])
    expected = -(math.log(0.7) + 2 * math.log(0.8) + 0.5 * math.log(0.5)) / 3
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_unlabelled_examples_cost_nothing():
    some, found = run(cross_entropy(3), LOGITS, [0, -1, 2])
    alone, metrics = run(cross_entropy(3), LOGITS[[0, 2]], [0, 2])
    assert float(some) == pytest.approx(float(alone), rel=1e-6)
    assert float(found["accuracy"]) == float(metrics["accuracy"])
    nothing, _ = run(cross_entropy(3), LOGITS, [-1, -1, -1])
    assert float(nothing) == 0.0


def test_weight_may_be_a_schedule():
    term = cross_entropy(3, weight=lambda step: 0.5 * step)
    at_two, metrics = run(term, LOGITS, [0, 1, 0], step=2)
    at_three, _ = run(term, LOGITS, [0, 1, 0], step=3)
    assert float(at_three) == pytest.approx(1.5 * float(at_two))
    assert float(metrics["cross_entropy"]) == pytest.approx(float(at_two))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_out_of_range(smoothing):
    with pytest.raises(UserError, match="label_smoothing"):
        cross_entropy(3, label_smoothing=smoothing)


def test_balanced_weights_by_hand():
    labels = np.array([0, 0, 0, 1, -1, -1])
    # N = 4 labelled, C = 2: 4 / (2 · 3), 4 / (2 · 1)
    assert balanced_weights(labels, 2) == pytest.approx((2 / 3, 2.0))


def test_balanced_weights_name_empty_classes():
    with pytest.raises(UserError, match=r"\[1, 3\] have none"):
        balanced_weights(np.array([0, 2, 2]), 4)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_balanced_weights_average_to_one(drawn):
    labels = np.array([0, 1, 2, 3, *drawn])
    weights = np.array(balanced_weights(labels, 4))
    assert weights[labels].mean() == pytest.approx(1.0)


def test_each_name_is_computed_once():
    calls = []

    def features(context):
        calls.append(1)
        return context["image"] * 2

    context = Context({"image": lambda _: 3, "features": features})
    assert context["features"] + context["features"] == 12
    assert len(calls) == 1
    assert not Context({"image": lambda _: 3}).read("image")
    assert context.read("image")


def test_unknown_name_offers_the_nearest():
    context = Context({"train/logits/classes": lambda _: 0})
    with pytest.raises(UnknownName, match="did you mean 'train/logits/classes'"):
        context["train/logit/classes"]


def test_a_term_reads_only_what_it_declares():
    def greedy(view):
        return view["train/label"], {}

    term = Term(name="greedy", fn=greedy, reads=("train/logits/classes",))
    with pytest.raises(UnknownName, match="'greedy' reads 'train/label'"):
        run(term, LOGITS, [0, 1, 2])


def test_gradient_is_unbiased_by_what_a_batch_holds():
    """The mean of two half-batches' gradients is the whole batch's gradient."""
    term = cross_entropy(3, class_weights=[5.0, 1.0, 0.2])
    labels = jnp.array([0, 0, 1, 2])
    logits = jax.random.normal(jax.random.key(0), (4, 3))

    def loss(logits, labels):
        return run(term, logits, labels)[0]

    whole = jax.grad(loss)(logits, labels)
    halves = [jax.grad(loss)(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(np.concatenate(halves) / 2, whole, rtol=1e-5)
