"""Staying near the source: terms and Fisher information by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.errors import UserError
from afterimage.finetune.losses import soft_kl
from afterimage.finetune.methods._fisher import fisher_diagonal
from afterimage.finetune.methods.delta import delta
from afterimage.finetune.methods.kl_to_source import kl_to_source
from afterimage.finetune.methods.l2_sp import l2, l2_sp
from afterimage.training.stage import Context

PARAMS = {
    "encoder": {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0]])},
    "heads": {"classes": {"kernel": jnp.array([[2.0, -1.0]])}},
}
START = {"encoder": {"a": jnp.array([0.0, 2.0]), "b": jnp.array([[1.0]])}}


def value(term, params=PARAMS, **rules):
    known = {"params": lambda _: params, "source/params": lambda _: START}
    known |= {name: (lambda _, v=v: v) for name, v in rules.items()}
    return term.value(Context(known), jnp.int32(0))[0]


def descend(slope, start, rate, steps=300):
    """Gradient descent, in one compiled loop."""

    def step(_, x):
        return jax.tree.map(lambda a, g: a - rate * g, x, slope(x))

    return jax.jit(lambda x: jax.lax.fori_loop(0, steps, step, x))(start)


def test_l2_sp_by_hand():
    # ½ ((1 − 0)² + (2 − 2)² + (3 − 1)²) = 2.5
    assert float(value(l2_sp(0.1))) == pytest.approx(0.25)
    slope = jax.grad(lambda p: value(l2_sp(0.1), p))(PARAMS)
    np.testing.assert_allclose(slope["encoder"]["a"], [0.1, 0.0])
    np.testing.assert_allclose(slope["heads"]["classes"]["kernel"], 0.0)


def test_l2_sp_pulls_back_to_the_start_alone():
    slope = jax.grad(lambda p: value(l2_sp(1.0), p))
    params = descend(slope, PARAMS, 0.1)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4),
        params["encoder"],
        START["encoder"],
    )


def test_fisher_weights_by_hand():
    fisher = {"a": jnp.array([4.0, 1.0]), "b": jnp.array([[0.5]])}
    found = value(l2_sp(1.0, fisher=True), **{"source/fisher": fisher})
    assert float(found) == pytest.approx(0.5 * (4 * 1 + 0 + 0.5 * 4))


def test_head_penalty_by_hand():
    assert float(value(l2(0.2))) == pytest.approx(0.2 * 2.5)


def test_a_source_of_another_shape_lists_every_leaf():
    params = {"encoder": {"a": jnp.zeros(3), "b": jnp.zeros((1, 1)), "c": jnp.zeros(2)}}
    with pytest.raises(UserError) as caught:
        value(l2_sp(1.0), params)
    for part in (
        "encoder/a is (3,), in the source it is (2,)",
        "encoder/c is (2,), in",
    ):
        assert part in str(caught.value)


def test_soft_kl_by_hand():
    teacher, student = np.log([[0.8, 0.2]]), np.log([[0.5, 0.5]])
    found = soft_kl(jnp.asarray(teacher), jnp.asarray(student), 1.0)
    expected = 0.8 * np.log(0.8 / 0.5) + 0.2 * np.log(0.2 / 0.5)
    assert float(found[0]) == pytest.approx(expected, rel=1e-5)
    # At T = 2: softmax(log p / 2) ∝ √p, times T² = 4.
    p = np.sqrt([0.8, 0.2]) / np.sqrt([0.8, 0.2]).sum()
    warm = soft_kl(jnp.asarray(teacher), jnp.asarray(student), 2.0)
    assert float(warm[0]) == pytest.approx(4 * (p * np.log(p / 0.5)).sum(), rel=1e-4)


def test_kl_holds_outputs_and_not_their_shift():
    logits = jnp.array([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]])
    term = kl_to_source(1.0)
    names = {"source/logits": logits, "train/logits/source": logits + 7.0}
    assert float(value(term, **names)) == pytest.approx(0.0, abs=1e-5)

    def moved(now):
        return value(term, **{**names, "train/logits/source": now})

    now = descend(jax.grad(moved), jnp.zeros((2, 3)), 1.0)
    np.testing.assert_allclose(jax.nn.softmax(now), jax.nn.softmax(logits), atol=1e-2)


def test_delta_by_hand():
    before = [jnp.zeros((2, 2, 2, 1)), jnp.ones((2, 1, 1, 3))]
    now = [jnp.full((2, 2, 2, 1), 2.0), jnp.ones((2, 1, 1, 3))]
    found = value(delta(0.5), **{"source/maps": before, "train/maps": now})
    assert float(found) == pytest.approx(0.5 * 0.5 * 4.0)


def test_fisher_of_logistic_regression_in_closed_form():
    """p = softmax(W x): F_cd = mean_x p_c (1 − p_c) x_d²."""
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
    examples = jnp.asarray(rng.normal(size=(20, 2)), jnp.float32)

    def log_probabilities(params, x):
        return jax.nn.log_softmax(params["w"] @ x)

    found = fisher_diagonal(log_probabilities, {"w": weights}, list(examples))["w"]
    p = np.asarray(jax.nn.softmax(examples @ weights.T))
    expected = (p * (1 - p)).T @ np.asarray(examples) ** 2 / 20
    np.testing.assert_allclose(found, expected, rtol=1e-4)
