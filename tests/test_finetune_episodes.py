"""Meta-learning: gradients by hand, episodes, whole runs on tiny images."""

import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.data.sets import array_set
from afterimage.errors import DataError, UserError
from afterimage.finetune.data import open_all
from afterimage.finetune.losses import smoothed_cross_entropy
from afterimage.finetune.methods._episodes import LAST, Adaptation, adapted_gradient
from afterimage.finetune.methods.maml import MAML, one_for_all
from afterimage.finetune.methods.proto_maml import ProtoMAML, nearest_mean
from afterimage.finetune.methods.prototypes import prototype_logits
from afterimage.finetune.methods.reptile import Reptile, reptile_gradient
from afterimage.finetune.run import finetune
from afterimage.finetune.tasks._sampler import (
    EpisodeBatches,
    Sampler,
    Shape,
    by_neighbour,
    by_prototype,
    split_classes,
)
from afterimage.finetune.tasks.episodes import Episodes, summarised
from afterimage.models import ops
from afterimage.models.classifier import HEAD
from afterimage.runs import Run
from afterimage.training.step import plain_gradient
from tests.test_finetune_program import config, make_encoder

PAIR = Shape(1, 1, 1)
ALPHA = 0.1
KEY = jax.random.key(0)
# One episode: ½ h (θ − x)² with (h, x) = (3, 1) as support, (2, −1) as queries.
EPISODE = {
    "label": jnp.zeros(2, jnp.int32),
    "h": jnp.array([3.0, 2.0]),
    "x": jnp.array([1.0, -1.0]),
}


def bowl(leaves, stats, batch, key):
    """½ mean h (θ − x)², θ the sum of all leaves."""
    del key
    theta = sum(leaves.values())
    value = 0.5 * jnp.mean(batch["h"] * (theta - batch["x"]) ** 2)
    return value, ({"theta": theta}, stats)


def slope(estimator, leaves, batch=EPISODE):
    (_, (_, stats)), found = estimator(bowl)(leaves, {"kept": 1.0}, batch, KEY)
    assert stats == {"kept": 1.0}
    return found


@pytest.mark.parametrize("vectorised", [False, True])
def test_maml_of_a_bowl_by_hand(vectorised):
    """φ = θ − α h_s (θ − x_s); ∇ = (1 − α h_s) h_q (φ − x_q), to first order without
    the factor: they differ by α h_s h_q (φ − x_q)."""
    theta = 0.5
    phi = theta - ALPHA * 3.0 * (theta - 1.0)
    how = {"steps": 1, "lr": ALPHA}
    second, first = (
        slope(
            adapted_gradient(
                PAIR, Adaptation(first_order=order, **how), vectorised=vectorised
            ),
            {"w": jnp.float32(theta)},
        )["w"]
        for order in (False, True)
    )
    assert float(first) == pytest.approx(2.0 * (phi + 1.0), rel=1e-5)
    assert float(second) == pytest.approx((1 - 0.3) * 2.0 * (phi + 1.0), rel=1e-5)
    known = ALPHA * 3.0 * 2.0 * (phi + 1.0)
    assert float(first - second) == pytest.approx(known, rel=1e-5)


def test_several_steps_have_the_factor_of_each():
    estimator = adapted_gradient(PAIR, Adaptation(steps=4, lr=ALPHA))
    found = slope(estimator, {"w": jnp.float32(0.5)})["w"]
    phi = 1.0 + (1 - 0.3) ** 4 * (0.5 - 1.0)
    assert float(found) == pytest.approx(0.7**4 * 2.0 * (phi + 1.0), rel=1e-5)


def test_anil_moves_the_head_alone_within_an_episode():
    """θ = e + w, only w adapts: e and w both get MAML's gradient of the sum."""
    leaves = {"encoder/e": jnp.float32(0.2), "heads/w": jnp.float32(0.3)}
    adaptation = Adaptation(steps=1, lr=ALPHA, only="heads/")
    support = {name: rows[:1] for name, rows in EPISODE.items()}
    after = adaptation(bowl, leaves, {}, support, KEY)
    assert float(after["encoder/e"]) == pytest.approx(0.2)
    assert float(after["heads/w"]) == pytest.approx(0.3 - ALPHA * 3.0 * (0.5 - 1.0))
    found = slope(adapted_gradient(PAIR, adaptation), leaves)
    expected = 0.7 * 2.0 * (0.65 + 1.0)
    for leaf in found.values():
        assert float(leaf) == pytest.approx(expected, rel=1e-5)


def test_a_start_of_the_support_is_differentiated_through():
    """φ begins at θ + h_s, and at θ h_s: the second has the factor h_s more."""
    support = {name: rows[:1] for name, rows in EPISODE.items()}
    leaves = {"w": jnp.float32(0.5)}
    for begin, at, factor in (
        (lambda w, h: w + h, 3.5, 1.0),
        (lambda w, h: w * h, 1.5, 3.0),
    ):

        def start(leaves, stats, support, begin=begin):
            del stats
            return {"w": begin(leaves["w"], support["h"][0])}

        adaptation = Adaptation(steps=1, lr=ALPHA, start=start)
        phi = at - ALPHA * 3.0 * (at - 1.0)
        after = adaptation(bowl, leaves, {}, support, KEY)
        assert float(after["w"]) == pytest.approx(phi, rel=1e-6)
        found = slope(adapted_gradient(PAIR, adaptation), leaves)["w"]
        assert float(found) == pytest.approx(factor * 0.7 * 2.0 * (phi + 1.0))


def test_one_layer_for_every_class_learns_as_their_mean():
    """Every column takes the mean, and the mean's share of the gradient of each."""
    leaves = {
        "head/kernel": jnp.array([[1.0, 3.0], [0.0, -2.0]]),
        "head/bias": jnp.array([2.0, 4.0]),
        "encoder/w": jnp.array([7.0, 9.0]),
    }
    same = one_for_all(leaves, "head")
    np.testing.assert_array_equal(same["head/kernel"], [[2.0, 2.0], [-1.0, -1.0]])
    np.testing.assert_array_equal(same["head/bias"], [3.0, 3.0])
    np.testing.assert_array_equal(same["encoder/w"], [7.0, 9.0])
    weights = {name: jnp.arange(x.size).reshape(x.shape) for name, x in leaves.items()}

    def loss(leaves):
        same = one_for_all(leaves, "head")
        return sum((weights[name] * x).sum() for name, x in same.items())

    found = jax.grad(loss)(leaves)
    np.testing.assert_allclose(found["head/kernel"], [[0.5, 0.5], [2.5, 2.5]])
    np.testing.assert_allclose(found["head/bias"], [0.5, 0.5])
    np.testing.assert_allclose(found["encoder/w"], [0.0, 1.0])


def test_from_one_layer_the_order_of_the_classes_does_not_matter():
    """Two classes named the other way round: the same layer, its columns exchanged."""
    images = jax.random.normal(KEY, (2, 3))
    leaves = {
        "head/kernel": jax.random.normal(jax.random.key(1), (3, 2)),
        "head/bias": jnp.array([0.5, -1.0]),
    }

    def loss(leaves, stats, batch, key):
        del key
        logits = batch["image"] @ leaves["head/kernel"] + leaves["head/bias"][None]
        return smoothed_cross_entropy(logits, batch["label"], 0.0).mean(), ({}, stats)

    def start(leaves, stats, support):
        del stats, support
        return one_for_all(leaves, "head")

    def after(labels, start):
        support = {"image": images, "label": jnp.array(labels)}
        adaptation = Adaptation(steps=3, lr=ALPHA, start=start)
        return adaptation(loss, leaves, {}, support, KEY)["head/kernel"]

    np.testing.assert_allclose(
        after([1, 0], start), after([0, 1], start)[:, ::-1], atol=1e-6
    )
    assert np.abs(after([1, 0], None) - after([0, 1], None)[:, ::-1]).max() > 0.1


@pytest.mark.parametrize("tied", [False, True])
def test_where_the_head_of_an_episode_begins(tied):
    """Each class with what was learned for its number; tied, with the mean of all."""
    setup: Any = None
    start = MAML(tied_head=tied).adaptation(setup).start
    if not tied:
        assert start is None
        return
    leaves = {f"{LAST}/kernel": jnp.arange(6.0).reshape(3, 2)}
    leaves[f"{LAST}/bias"] = jnp.array([0.0, 1.0])
    same = start(leaves, {}, {})
    np.testing.assert_array_equal(same[f"{LAST}/kernel"][:, 0], [0.5, 2.5, 4.5])
    np.testing.assert_array_equal(same[f"{LAST}/bias"], [0.5, 0.5])


def finns_maml(predict, params, images, labels, shape, lr, steps):
    """MAML's loss as Finn et al. 2017 write it, Algorithm 2, for one episode."""

    def loss(params, images, labels):
        logp = jax.nn.log_softmax(predict(params, images))
        return -logp[jnp.arange(len(labels)), labels].mean()

    support = images[: shape.support], labels[: shape.support]
    for _ in range(steps):
        slope = jax.grad(loss)(params, *support)
        params = jax.tree.map(lambda p, g: p - lr * g, params, slope)
    return loss(params, images[shape.support :], labels[shape.support :])


@pytest.mark.slow
def test_maml_is_finns(home, tmp_path):
    """The gradient of a whole batch of episodes, of encoder and head: every class has
    a column of its own, and each is differentiated through the inner steps."""
    job = job_of(episodes(home, tmp_path / "run"))
    setup, sampler = job.setup, job.setup.plan
    params = {**setup.params, "heads": jax.tree.map(jnp.asarray, setup.params["heads"])}
    rng = np.random.default_rng(0)
    leaves = {
        path: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32)
        for path, leaf in flatten(params).items()
    }
    stats, shape = jax.tree.map(jnp.asarray, setup.stats), sampler.shape
    batch = EpisodeBatches(sampler, batch_size=2 * shape.rows, seed=0)[0]
    images, labels = jnp.asarray(batch["image"]), jnp.asarray(batch["label"])

    def predict(leaves, images):
        return setup.classifier.predict(unflatten(leaves), stats, images, HEAD)

    def loss(leaves, stats, batch, key):
        del key
        found = predict(leaves, batch["image"])
        value = smoothed_cross_entropy(found, batch["label"], 0.0).mean()
        return value, ({}, stats)

    def reference(leaves):
        pairs = zip(jnp.split(images, 2), jnp.split(labels, 2))
        return sum(finns_maml(predict, leaves, *p, shape, 0.3, 2) for p in pairs) / 2

    given = {"image": images, "label": labels}
    (value, _), found = jax.jit(job.method.gradient(setup)(loss))(
        leaves, stats, given, KEY
    )
    wanted, expected = jax.jit(jax.value_and_grad(reference))(leaves)
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    assert set(found) == set(expected)
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-3, atol=1e-5)
    kernel = found[f"{LAST}/kernel"]
    # Tied, all columns would have the same gradient.
    assert np.abs(kernel - kernel.mean(-1, keepdims=True)).max() > 1e-3


def test_each_episode_numbers_its_classes_anew():
    """As Finn's code does: the same two classes come in either order."""
    images = images_of(classes=2)
    sampler = Sampler(images, Shape(2, 1, 1), seed=0)
    assert images.labels is not None
    first = [int(images.labels[sampler.episode(n)[0]]) for n in range(40)]
    assert 10 < sum(first) < 30


def test_the_nearest_mean_as_a_linear_layer():
    """Its softmax is that of the mean squared differences."""
    shape = Shape(3, 2, 4)
    support = jax.random.normal(KEY, (6, 5))
    queries = jax.random.normal(jax.random.key(1), (12, 5))
    kernel, bias = nearest_mean(support, shape)
    np.testing.assert_allclose(
        jax.nn.softmax(queries @ kernel + bias[None]),
        jax.nn.softmax(prototype_logits(support, queries, shape) / 5),
        atol=1e-5,
    )


def test_reptile_is_the_way_an_episode_takes():
    """Both images as one bowl, h = 2.5 and x = 0.2: φ − x = (1 − αh)^k (θ − x)."""
    adaptation = Adaptation(steps=3, lr=ALPHA, first_order=True)
    found = slope(reptile_gradient(PAIR, adaptation), {"w": jnp.float32(0.5)})["w"]
    expected = (1 - (1 - ALPHA * 2.5) ** 3) * (0.5 - 0.2)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_batch_is_the_mean_of_its_episodes():
    other = {**EPISODE, "h": jnp.array([1.0, 4.0]), "x": jnp.array([0.0, 2.0])}
    both = {name: jnp.concatenate([EPISODE[name], other[name]]) for name in EPISODE}
    leaves = {"w": jnp.float32(0.5)}
    for vectorised in (False, True):
        adaptation = Adaptation(steps=2, lr=ALPHA)
        estimator = adapted_gradient(PAIR, adaptation, vectorised=vectorised)
        parts = [slope(estimator, leaves, b)["w"] for b in (EPISODE, other)]
        found = slope(estimator, leaves, both)["w"]
        assert float(found) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)
    assert float(slope(plain_gradient, leaves)["w"]) == pytest.approx(
        float(np.mean([3 * (0.5 - 1), 2 * (0.5 + 1)])), rel=1e-5
    )


def test_second_order_through_our_convolutions():
    """`ops.conv2d` has a gradient of its own: differentiated again, it is right."""
    shape = Shape(2, 1, 2)
    images = jax.random.normal(KEY, (6, 6, 6, 2))
    leaves = {"kernel": 0.3 * jax.random.normal(KEY, (3, 3, 2, 2))}
    batch = {"image": images, "label": jnp.asarray(shape.labels)}

    def plain(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )

    def gradient(conv):
        def loss(leaves, stats, batch, key):
            del key
            hidden = jnp.tanh(conv(batch["image"], leaves["kernel"]))
            found = conv(hidden, leaves["kernel"]).mean((1, 2))
            value = smoothed_cross_entropy(found, batch["label"], 0.0).mean()
            return value, ({}, stats)

        estimator = adapted_gradient(shape, Adaptation(steps=2, lr=0.5))
        return jax.jit(lambda x: estimator(loss)(x, {}, batch, KEY))(leaves)[1]

    ours, theirs = gradient(ops.conv2d)["kernel"], gradient(plain)["kernel"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("platform", "vectorised"), [("cpu", False), ("tpu", True)])
def test_episodes_run_in_parallel_where_the_program_is_for_an_accelerator(
    platform, vectorised
):
    shape, adaptation = Shape(2, 1, 1), Adaptation(steps=1, lr=0.1)
    batch = {
        "x": jnp.ones((3 * shape.rows, 4)),
        "label": jnp.tile(jnp.asarray(shape.labels), 3),
    }

    def loss(leaves, stats, batch, key):
        del key
        return jnp.square(batch["x"] @ leaves["w"]).mean(), ({}, stats)

    def products(vectorised):
        estimator = adapted_gradient(shape, adaptation, vectorised=vectorised)
        step = jax.jit(lambda leaves: estimator(loss)(leaves, {}, batch, KEY))
        traced = step.trace({"w": jnp.ones((4, 5))})
        lowered = traced.lower(lowering_platforms=(platform,))
        return lowered.as_text().count("stablehlo.dot_general")

    assert products(False) == 3 * products(True)
    assert products(None) == products(vectorised)


def draw(seed, each, classes=8, bright=150):
    """uint8 [n, 8, 8, 1]: a bright bar in one of eight rows, noisy."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each).astype(np.int32)
    images = rng.uniform(0, 90, (len(labels), 8, 8))
    images[np.arange(len(labels)), labels % 8] += bright
    return images.astype(np.uint8)[..., None], labels


def images_of(each=6, classes=8):
    images, labels = draw(0, each, classes)
    return array_set(images, labels, tuple("abcdefgh"[:classes]), "bars")


def test_an_episode_is_what_it_says():
    images, shape = images_of(), Shape(3, 2, 3)
    sampler = Sampler(images, shape, seed=0)
    assert images.labels is not None
    drawn = set()
    for number in range(20):
        rows = sampler.episode(number)
        assert len(set(rows.tolist())) == shape.rows == 15
        support, queries = rows[: shape.support], rows[shape.support :]
        classes = images.labels[support].reshape(3, 2)
        assert (classes[:, 0] == classes[:, 1]).all()
        assert len(set(classes[:, 0].tolist())) == 3
        expected = classes[:, 0][shape.labels]
        np.testing.assert_array_equal(images.labels[rows], expected)
        assert len(queries) == 9
        np.testing.assert_array_equal(rows, Sampler(images, shape, 0).episode(number))
        drawn.add(tuple(sorted(classes[:, 0].tolist())))
    assert len(drawn) > 5
    assert (sampler.episode(0) != Sampler(images, shape, 1).episode(0)).any()


def test_batches_are_a_function_of_the_step_whatever_the_hosts():
    sampler = Sampler(images_of(), Shape(2, 1, 2), seed=3)

    def batches(**hosts):
        return EpisodeBatches(sampler, batch_size=24, seed=0, **hosts)

    whole = batches()[5]
    assert whole["image"].shape == (24, 8, 8, 1)
    np.testing.assert_array_equal(whole["label"], np.tile([0, 1, 0, 0, 1, 1], 4))
    halves = [batches(host=h, hosts=2)[5] for h in (0, 1)]
    for name in ("index", "label", "image"):
        joined = np.concatenate([half[name] for half in halves])
        np.testing.assert_array_equal(joined, whole[name])
    walked = next(iter(batches(start=5)))
    jax.tree.map(np.testing.assert_array_equal, walked, whole)


def test_held_out_classes_are_apart_and_seeded():
    images = images_of()
    train, held = split_classes(images, 0.25, seed=0)
    parts = [set(np.unique(part.labels).tolist()) for part in (train, held)]
    assert len(parts[1]) == 2
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(range(8))
    others = [set(split_classes(images, 0.25, s)[1].labels.tolist()) for s in range(9)]
    assert any(other != parts[1] for other in others)


def test_too_few_classes_or_images_are_named():
    with pytest.raises(DataError) as caught:
        Sampler(images_of(each=3), Shape(9, 2, 2), seed=0)
    for part in ("needs 4 images per class", "'a' has 3", "needs 9 classes"):
        assert part in str(caught.value)


def test_prototypes_and_neighbours_by_hand():
    shape = Shape(2, 2, 1)
    support = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 5.0], [0.0, 7.0]])
    queries = np.array([[2.0, 1.0], [0.0, 3.0]])
    found = prototype_logits(jnp.asarray(support), jnp.asarray(queries), shape)
    np.testing.assert_allclose(found, [[-2, -29], [-10, -9]], rtol=1e-5)
    rows = np.concatenate([support, queries])
    assert by_prototype(rows, shape) == 1.0
    # (2, 1) points like (2, 0), (0, 3) like (0, 5).
    assert by_neighbour(rows, shape) == 1.0
    assert by_neighbour(rows[[0, 1, 2, 3, 5, 4]], shape) == 0.0
    found = summarised([0.0, 1.0, 1.0, 1.0])
    assert found["value"] == 0.75
    assert found["high"] - found["value"] == pytest.approx(1.96 * 0.5 / 2)


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_module):
    folder = tmp_path_factory.mktemp("episodes")
    make_encoder(folder / "encoder")
    x, y = draw(0, 6)
    np.savez(folder / "data.npz", images=x, labels=y)
    x, y = draw(0, 20, bright=75)
    np.savez(folder / "faint.npz", images=x, labels=y)
    return folder


METHODS = {
    "maml": MAML(inner_lr=0.3),
    "maml tied": MAML(inner_lr=0.3, tied_head=True),
    "first order": MAML(inner_lr=0.3, first_order=True),
    "first order tied": MAML(inner_lr=0.3, first_order=True, tied_head=True),
    "anil": MAML(inner_lr=0.3, only_head=True),
    "anil tied": MAML(inner_lr=0.3, only_head=True, tied_head=True),
    "proto-maml": ProtoMAML(inner_lr=0.3),
    "reptile": Reptile(inner_lr=0.3),
}


def job_of(config) -> Any:
    run = Run(config.out, kind="finetune", config=config)
    return config.task.job(config, open_all(config), run)


def episodes(home, out, own=None, **settings):
    small = {"ways": 2, "queries": 2, "per_step": 2, "test_episodes": 20}
    usual = {
        "methods": METHODS["maml"],
        "task": Episodes(**{**small, **(own or {})}),
        "mode": "full",
        "batch_size": 64,
        "weight_decay": 0.0,
    }
    return config(home, out, **{**usual, **settings})


def train_scores(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    scores = [json.loads(line).get("eval/train_accuracy") for line in lines]
    return [score for score in scores if score is not None]


@pytest.mark.slow
def test_maml_learns_to_learn_and_resumes_exactly(home, tmp_path):
    settings = {"steps": 40, "lr": 1e-2, "save_every": 10, "keep_last": 9}
    settings["methods"] = METHODS[
        "maml tied"
    ]  # learns sooner than a head with columns of its own
    settings["data"] = f"npz:{home / 'faint.npz'}"
    whole = finetune(episodes(home, tmp_path / "whole", **settings))
    _, expected, _ = Store(whole.run).restore(step=40)
    run = tmp_path / "cut"
    shutil.copytree(whole.run, run)
    for step in (30, 40):
        shutil.rmtree(run / "checkpoints" / str(step))
    (run / "results.json").unlink()
    again = finetune(episodes(home, run, **settings))
    _, found, _ = Store(run).restore(step=40)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert again.results["episodes"] == whole.results["episodes"]
    result = whole.results["episodes"]
    assert len(result["held_out_classes"]) == 2
    row = result["accuracy"]["maml"]
    assert row["low"] <= row["value"] <= row["high"]
    assert row["value"] > result["accuracy"]["frozen encoder, prototypes"]["value"]
    assert "Held-out classes" in whole.report.read_text()
    assert "20 held-out episodes" in whole.summary()
    scores = train_scores(whole.run)
    assert scores[-1] > scores[0] + 0.1


@pytest.mark.slow
def test_prototypes_learn_without_a_head(home, tmp_path):
    settings = {"methods": "prototypes", "steps": 30, "lr": 3e-3}
    result = finetune(episodes(home, tmp_path / "run", save_every=1, **settings))
    scores = train_scores(result.run)
    assert scores[-1] > max(0.9, scores[0])
    assert set(result.results["episodes"]["accuracy"]) > {"prototypes"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"maml"}))
def test_the_other_methods_learn_as_well(home, tmp_path, name):
    settings = {"methods": METHODS[name], "steps": 60, "lr": 3e-3}
    result = finetune(episodes(home, tmp_path / "run", **settings))
    assert train_scores(result.run)[-1] > 0.8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ()}, "episodes: give one method that learns over episodes"),
        ({"methods": ("maml", "reptile")}, "episodes: give one method"),
        ({"mode": "probe"}, "episodes: .*mode full or scratch"),
        ({"own": {"ways": 1}}, "episodes.ways=1"),
        ({"methods": "proto-maml", "head": "mlp"}, "proto-maml.head='mlp'"),
        ({"own": {"shots": 0}}, "episodes.shots=0"),
        ({"methods": MAML(inner_lr=0.0)}, "maml.inner_lr=0.0"),
        ({"methods": MAML(inner_steps=0)}, "maml.inner_steps=0"),
        ({"own": {"test_classes": 1.0}}, "episodes.test_classes=1.0"),
        ({"methods": ("maml", "ewc")}, "ewc: .*not episodes"),
        ({"select": "validation"}, "select='validation'"),
        ({"accumulate": 2}, "episodes: .*accumulate=2"),
    ],
)
def test_settings_that_cannot_work(home, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        episodes(home, tmp_path / "run", **settings)


def test_a_batch_size_beside_episodes_is_refused(home, tmp_path):
    with pytest.raises(UserError, match="batch_size=10"):
        finetune(episodes(home, tmp_path / "run", batch_size=10))
