"""Domain distances and adversaries against values computed by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.finetune.methods import _adversarial as adv
from afterimage.finetune.methods import cdan as conditional
from afterimage.finetune.methods import jdot as transport
from afterimage.finetune.methods.cdan import cdan
from afterimage.finetune.methods.coral import coral
from afterimage.finetune.methods.dann import dann
from afterimage.finetune.methods.jmmd import jmmd
from afterimage.finetune.methods.mmd import mmd
from afterimage.training.stage import Context


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_mmd_of_single_points_by_hand():
    # Pairs' d²: 0, 4, 4, 0; their mean is 2. One kernel of α = 1: exp(−4 / 4).
    found = mmd(jnp.array([[0.0]]), jnp.array([[2.0]]), alphas=(1.0,))
    assert float(found) == pytest.approx(2 - 2 * np.exp(-1.0), rel=1e-6)


def test_mmd_tells_a_shift_from_none():
    same = mmd(normal(0, 200, 3), normal(1, 200, 3))
    moved = mmd(normal(0, 200, 3), normal(1, 200, 3) + 1.0)
    assert float(moved) > 10 * float(same)
    assert float(mmd(normal(0, 9, 3), normal(0, 9, 3))) == pytest.approx(0, abs=1e-6)


@jax.jit
def distances(a, p, b, q):
    return mmd(a, b), coral(a, b), jmmd((a, p), (b, q))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_distances_are_never_negative_and_symmetric(seed):
    a, b = normal(seed, 8, 4), 2 * normal(seed + 1, 8, 4)
    p, q = jax.nn.softmax(a), jax.nn.softmax(b)
    for one, other in zip(distances(a, p, b, q), distances(b, q, a, p)):
        assert float(one) >= 0
        assert float(one) == pytest.approx(float(other), rel=1e-3, abs=1e-6)


def test_jmmd_with_one_prediction_for_all_is_mmd():
    a, b, p = normal(0, 6, 3), normal(1, 6, 3) + 1, jnp.full((6, 2), 0.5)
    joint = jmmd((a, p), (b, p))
    assert float(joint) == pytest.approx(float(mmd(a, b)), rel=1e-5)


def test_jmmd_sees_classes_that_swapped_places():
    """Equal marginals of features and of predictions, another joint distribution."""
    x = jnp.concatenate([normal(0, 50, 1) - 3, normal(1, 50, 1) + 3])
    left = jnp.repeat(jnp.eye(2), 50, axis=0)
    assert float(mmd(x, x)) == pytest.approx(0, abs=1e-6)
    assert float(jmmd((x, left), (x, left[::-1]))) > 0.1


def test_coral_by_hand():
    # Covariances diag(2, 0) and diag(0, 8): ‖·‖² = 4 + 64, over 4 · 2².
    source = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    target = jnp.array([[5.0, 2.0], [5.0, -2.0]])
    assert float(coral(source, target)) == pytest.approx(68 / 16)
    assert float(coral(source, source + 7.0)) == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_assignment_costs_what_the_best_permutation_costs(seed):
    cost = normal(seed, 5, 5)
    partner = np.asarray(jax.jit(transport.assignment)(cost))
    costs = [
        sum(float(cost[i, j]) for i, j in enumerate(order))
        for order in itertools.permutations(range(5))
    ]
    assert sorted(partner) == list(range(5))
    assert float(cost[np.arange(5), partner].sum()) == pytest.approx(min(costs))


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_partial_assignment_costs_what_the_best_partial_one_costs(seed, apart):
    cost = normal(seed, 5, 5)
    assign = jax.jit(transport.assignment, static_argnums=1)
    partner = np.asarray(assign(cost, apart))
    rows = np.flatnonzero(partner < 5)
    costs = [
        sum(float(cost[i, j]) for i, j in zip(kept, order))
        for kept in itertools.combinations(range(5), 5 - apart)
        for order in itertools.permutations(range(5), 5 - apart)
    ]
    assert len(rows) == len(set(partner[rows])) == 5 - apart
    assert set(partner) - set(partner[rows]) == {5}
    assert float(cost[rows, partner[rows]].sum()) == pytest.approx(min(costs))


@pytest.mark.slow
def test_joint_transport_of_a_part_leaves_alone_what_has_no_partner_of_its_class():
    # Three noughts and a one against a nought and three ones: two pairs are of a class.
    features = jnp.array([[0.0], [0.1], [0.2], [5.0]])
    target = jnp.array([[0.0], [5.0], [5.1], [5.2]])
    given = {
        "train/features/classes": features,
        "train/label": jnp.array([0, 0, 0, 1]),
        "target/features/classes": target,
        "target/logits/classes": 9.0 * jax.nn.one_hot(jnp.array([0, 1, 1, 1]), 2),
    }

    def loss(target, mass):
        parts = {**given, "target/features/classes": target}
        context = Context({name: lambda _, v=v: v for name, v in parts.items()})
        term = transport.jdot_term(mass=mass)
        value, metrics = term.value(context, jnp.int32(0))
        return value, metrics["jdot_matched"]

    by_mass = {mass: jax.grad(loss, has_aux=True)(target, mass) for mass in (1.0, 0.5)}
    whole, half = by_mass[1.0], by_mass[0.5]
    assert (float(whole[1]), float(half[1])) == (0.5, 1.0)
    assert float(jnp.abs(whole[0]).max()) > 1.0  # drawn to another class
    np.testing.assert_allclose(half[0], 0.0, atol=1e-6)  # met already, the rest apart


def test_joint_transport_by_hand():
    # Features say 0-0 and 1-1 (0 against 4 / 2), labels 0-1 and 1-0 (log 2 each way).
    features, labels = jnp.array([[0.0, 0.0], [2.0, 0.0]]), jnp.array([0, 1])
    logits = jnp.log(jnp.array([[0.2, 0.8], [0.8, 0.2]]))
    cost = transport.joint_cost(features, labels, features, logits)
    far, near = -np.log(0.2), -np.log(0.8)
    np.testing.assert_allclose(cost, [[far, 2 + near], [2 + near, far]], rtol=1e-6)
    unlabelled = transport.joint_cost(features, jnp.array([-1, 1]), features, logits)
    np.testing.assert_allclose(unlabelled[0], [0.0, 2.0], atol=1e-6)
    given = {
        "train/features/classes": features,
        "train/label": labels,
        "target/features/classes": features,
        "target/logits/classes": logits,
    }
    term = transport.jdot_term(mass=1.0)
    context = Context({name: lambda _, value=v: value for name, v in given.items()})
    value, metrics = term.value(context, jnp.int32(0))
    assert float(value) == pytest.approx(far)  # 1.61 a pair; crossed, 2.22
    assert float(metrics["jdot_matched"]) == 0.0


def test_gradient_is_reversed_and_the_value_exact():
    x, scale = normal(0, 5), jnp.float32(0.3)
    np.testing.assert_array_equal(adv.reverse_gradient(x, scale), x)
    slope = jax.grad(lambda x: jnp.sum(adv.reverse_gradient(x, scale) ** 2))(x)
    np.testing.assert_allclose(slope, -0.3 * 2 * x, rtol=1e-6)
    _, forward = jax.jvp(lambda x: adv.reverse_gradient(x, scale), (x,), (x,))
    np.testing.assert_allclose(forward, -0.3 * x, rtol=1e-6)


def test_ramp_is_the_papers():
    p = jnp.array([0.0, 0.1, 0.5, 1.0])
    np.testing.assert_allclose(adv.ramp(p), np.tanh(5 * np.asarray(p)), rtol=1e-5)


def views(term, progress=0.5, batch=6, width=4, classes=3):
    """A context of random features for one adversarial term."""

    def value(features, own, progress=progress):
        head = normal(5, width, classes)
        rules = {
            "params": lambda _: {"terms": {term.name: own}},
            "progress": lambda _: jnp.float32(progress),
        }
        for stream, x in zip(("train", "target"), features):
            rules[f"{stream}/features/classes"] = lambda _, x=x: x
            rules[f"{stream}/logits/classes"] = lambda _, x=x: x @ head
        return term.value(Context(rules), jnp.int32(0))[0]

    features = (normal(1, batch, width), normal(2, batch, width) + 1)
    return jax.jit(value), features


@pytest.mark.parametrize(
    "term",
    [
        dann(4, hidden=8),
        cdan(4, 3, hidden=8),
    ],
    ids=["dann", "cdan"],
)
def test_schedule_acts_on_the_extractor_alone(term):
    """λ scales the reversed gradient of features; the adversary's own has none."""
    value, features = views(term)
    own = jax.tree.map(lambda x: x + 0.1, dict(term.params))
    slope = jax.jit(jax.grad(value, argnums=(0, 1)))
    early, late = (slope(features, own, progress=p) for p in (0.02, 0.9))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), early[1], late[1]
    )
    ratio = float(adv.ramp(jnp.float32(0.02)) / adv.ramp(jnp.float32(0.9)))
    for a, b in zip(early[0], late[0]):
        np.testing.assert_allclose(a, ratio * b, rtol=1e-3, atol=1e-7)
    # Upwards for the extractor: a step along its gradient makes the adversary worse.
    moved = [x - 0.1 * g for x, g in zip(features, late[0])]
    assert float(value(moved, own)) > float(value(features, own))


def test_the_discriminator_begins_at_chance_and_can_leave_it():
    term = dann(4, hidden=8)
    value, features = views(term)
    assert float(value(features, term.params)) == pytest.approx(np.log(2), abs=0.1)
    slope = jax.grad(value, argnums=1)(features, dict(term.params))
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(slope))


def test_multilinear_map_by_hand():
    f, g = jnp.array([[1.0, 2.0]]), jnp.array([[0.25, 0.75]])
    found = conditional.multilinear(f, g, None)
    np.testing.assert_allclose(found, [[0.25, 0.75, 0.5, 1.5]])


def test_random_map_keeps_the_products():
    """E⟨T(f, g), T(f', g')⟩ = ⟨f, f'⟩⟨g, g'⟩."""
    f, g = normal(0, 2, 50), jax.nn.softmax(normal(1, 2, 10))
    found = np.mean(
        [
            np.asarray(t @ t.T)
            for t in (
                conditional.multilinear(f, g, conditional._random_maps(50, 10, s))
                for s in range(30)
            )
        ],
        axis=0,
    )
    expected = np.asarray((f @ f.T) * (g @ g.T))
    np.testing.assert_allclose(found, expected, atol=0.05 * expected.max())


def test_wide_features_take_the_random_map_and_it_stays_fixed():
    term = cdan(500, 10)
    assert term.params["fixed"]["features"].shape == (500, 1024)
    assert term.params["first"]["kernel"].shape == (1024, 128)
    assert "fixed" not in cdan(400, 10).params


def test_entropy_weights_by_hand():
    """Sure examples weigh 1 + e⁰ = 2, undecided ones of two classes 1 + ½."""
    sure, torn = jnp.array([[50.0, 0.0]]), jnp.zeros((1, 2))
    np.testing.assert_allclose(conditional.entropy(sure), [0.0], atol=1e-6)
    np.testing.assert_allclose(conditional.entropy(torn), [np.log(2)], rtol=1e-6)
    losses, weights = jnp.array([1.0, 3.0]), jnp.array([2.0, 1.5])
    assert float(conditional._mean(losses, weights)) == pytest.approx(6.5 / 3.5)


def test_predictions_get_no_gradient_from_cdan():
    term = cdan(4, 3, hidden=8)
    features = (normal(1, 6, 4), normal(2, 6, 4))

    def value(head):
        rules = {
            "params": lambda _: {"terms": {"cdan": dict(term.params)}},
            "progress": lambda _: jnp.float32(0.5),
        }
        for stream, x in zip(("train", "target"), features):
            rules[f"{stream}/features/classes"] = lambda _, x=x: x
            rules[f"{stream}/logits/classes"] = lambda _, x=x: x @ head
        return term.value(Context(rules), jnp.int32(0))[0]

    assert float(jnp.abs(jax.grad(value)(normal(5, 4, 3))).max()) == 0.0
