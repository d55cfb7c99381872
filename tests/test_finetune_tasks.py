"""Several tasks: their weights, their gradients, their missing labels, and a run."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.checkpoints import schemas
from afterimage.checkpoints.store import Store
from afterimage.classifier import load_classifier
from afterimage.errors import DataError
from afterimage.evaluation.configs import EvaluateConfig
from afterimage.finetune.evaluate import evaluate
from afterimage.finetune.losses import cross_entropy
from afterimage.finetune.methods.feature_selection import FeatureSelection
from afterimage.finetune.methods.l2_sp import L2SP
from afterimage.finetune.methods.sources import Sources
from afterimage.finetune.methods.tasks import Tasks, pcgrad, uncertain
from afterimage.finetune.run import finetune
from afterimage.training.optimiser import Group, make_optimiser, make_schedule
from afterimage.training.options import TrainingOptions
from afterimage.training.stage import Context, Phase, Stage
from afterimage.training.step import init_state, make_step
from tests.test_finetune_program import config, draw, make_encoder

KEY = jax.random.key(0)


def rows(*gradients, name="encoder/w"):
    """Rows of tasks with these gradients, and none that belongs to no task."""
    each = jnp.asarray(gradients, jnp.float32)
    return {name: jnp.concatenate([jnp.zeros_like(each[:1]), each])}


def test_pcgrad_of_two_tasks_by_hand():
    """⟨g1, g2⟩ = −1: g1 + g2/2 = (½, ½), g2 + g1 = (0, 1)."""
    given = rows([1.0, 0.0], [-1.0, 1.0])
    given["encoder/w"] = given["encoder/w"].at[0].set(10.0)
    given |= rows([5.0, 0.0], [0.0, -5.0], name="heads/a")
    found, metrics = pcgrad(given, KEY)
    np.testing.assert_allclose(found["encoder/w"], [10.5, 11.5], rtol=1e-6)
    np.testing.assert_allclose(found["heads/a"], [5.0, -5.0])
    assert metrics["conflicts"] == 1


def test_pcgrad_of_tasks_that_agree_is_their_sum():
    found, metrics = pcgrad(rows([1.0, 0.2], [0.0, 2.0], [1.0, 1.0]), KEY)
    np.testing.assert_allclose(found["encoder/w"], [2.0, 3.2], rtol=1e-6)
    assert metrics["conflicts"] == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_pcgrad_of_two_tasks_hurts_neither(seed):
    """To first order no loss rises, however different the gradients' lengths."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(2, 5)) * np.array([[1.0], [30.0]])
    found, _ = pcgrad(rows(*g), KEY)
    lengths = np.linalg.norm(g, axis=1) * np.linalg.norm(found["encoder/w"])
    assert (g @ np.asarray(found["encoder/w"]) >= -1e-4 * lengths).all()


def test_pcgrad_of_three_tasks_is_the_papers_loop():
    g = np.random.default_rng(3).normal(size=(3, 2))
    expected = np.zeros(2)
    for i in range(3):
        mine = g[i].copy()
        for j in np.asarray(jax.random.permutation(jax.random.fold_in(KEY, i), 3)):
            if j != i and mine @ g[j] < 0:
                mine -= (mine @ g[j]) / (g[j] @ g[j]) * g[j]
        expected += mine
    assert not np.allclose(expected, g.sum(0))
    np.testing.assert_allclose(pcgrad(rows(*g), KEY)[0]["encoder/w"], expected, 1e-4)


def of_term(term, labels, logits, s=0.0):
    name = "train/label/colour" if term.name.endswith("colour") else "train/label"
    own = {"log_variance": jnp.asarray(s)}
    rules = {
        "params": lambda _: {"terms": {term.name: own}},
        "train/logits/colour": lambda _: logits,
        name: lambda _: labels,
    }
    return term.value(Context(rules), jnp.zeros(()))


COLOUR = cross_entropy(3, head="colour", task="colour")


def test_a_missing_label_contributes_nothing():
    logits = jax.random.normal(KEY, (4, 3))
    some, none = jnp.array([2, -1, 0, -1]), jnp.full(4, -1)
    value, metrics = of_term(COLOUR, some, logits)
    logp = jax.nn.log_softmax(logits)
    expected = -float(logp[0, 2] + logp[2, 0]) / 2
    assert value == pytest.approx(expected, rel=1e-6)
    assert set(metrics) == {"cross_entropy_colour", "accuracy_colour"}
    slopes = jax.grad(lambda x: of_term(COLOUR, some, x)[0])(logits)
    assert not slopes[1].any()
    assert slopes[0].any()
    for term in (COLOUR, uncertain(COLOUR)):
        value, slopes = jax.value_and_grad(
            lambda x, s, term=term: of_term(term, none, x, s)[0], (0, 1)
        )(logits, 0.3)
        assert value == 0
        assert not any(slope.any() for slope in slopes)


def test_uncertainty_weighs_by_half_the_inverse_loss():
    logits, labels = jax.random.normal(KEY, (4, 3)), jnp.array([2, 1, 0, 1])
    plain = float(of_term(COLOUR, labels, logits)[0])
    slope = jax.grad(lambda s: of_term(uncertain(COLOUR), labels, logits, s)[0])
    assert slope(0.0) == pytest.approx(0.5 - plain, rel=1e-5)
    best = float(np.log(2 * plain))
    assert slope(best) == pytest.approx(0.0, abs=1e-6)
    value, metrics = of_term(uncertain(COLOUR), labels, logits, best)
    assert metrics["cross_entropy_colour_weight"] == pytest.approx(1 / (2 * plain))
    assert value == pytest.approx(0.5 + best / 2, rel=1e-5)


OPTIONS = TrainingOptions(lr=2e-2, weight_decay=0.0, schedule="constant", clip=0.0)


def provide(params, stats, batch, key, step, trainable):
    z = batch["image"] @ params["encoder"]["w"]
    rules = {
        "params": lambda _: params,
        "stats/next": lambda _: stats,
        "train/label": lambda _: batch["label"],
        "train/label/noise": lambda _: batch["label.noise"],
    }
    for head, leaf in params["heads"].items():
        rules[f"train/logits/{head}"] = lambda _, leaf=leaf: z @ leaf["kernel"]
    return rules


def learned(terms, steps, combine=None, accumulate=1):
    """(state, metrics) of a linear encoder with a task that can be learned and one of
    random labels."""
    rng = np.random.default_rng(0)
    heads = {
        name: {"kernel": jnp.asarray(0.1 * rng.normal(size=(2, 2)), jnp.float32)}
        for name in ("classes", "noise")
    }
    own = {term.name: dict(term.params) for term in terms if term.params}
    params = {"encoder": {"w": jnp.eye(2)}, "heads": heads}
    params |= {"terms": own} if own else {}
    options = TrainingOptions(**{**vars(OPTIONS), "accumulate": accumulate})
    groups = (Group("all", ".*"),)
    phase = Phase(name="p", terms=terms, groups=groups, steps=steps, options=options)
    stage = Stage(phases=(phase,), providers=provide, combine=combine)
    partition = phase.partition(params)
    optimiser = make_optimiser(options, partition)
    step = make_step(
        stage.loss(0, params),
        optimiser=optimiser,
        schedule=make_schedule(options, steps, 0),
        partition=partition,
        options=options,
        combine=combine,
    )
    state = init_state(
        params, {}, optimiser=optimiser, partition=partition, seed=0, ema=False
    )
    y = rng.integers(0, 2, (steps, 32)).astype(np.int32)
    x = rng.normal(size=(steps, 32, 2)).astype(np.float32)
    x[..., 0] += 6.0 * y - 3.0
    noise = rng.integers(0, 2, (steps, 32)).astype(np.int32)
    batches = {"image": x, "label": y, "label.noise": noise}
    run = jax.jit(lambda s, b: jax.lax.scan(lambda s, b: step(s, b, {}), s, b))
    return run(state, batches)


TASKS = (
    cross_entropy(2, head="classes"),
    cross_entropy(2, head="noise", task="noise"),
)


def test_uncertainty_learns_to_weigh_the_noise_less():
    _, metrics = learned(tuple(map(uncertain, TASKS)), 200)
    easy = metrics["cross_entropy_weight"][-1]
    noisy = metrics["cross_entropy_noise_weight"][-1]
    assert metrics["accuracy"][-20:].mean() > 0.97
    assert noisy == pytest.approx(1 / (2 * np.log(2)), abs=0.1)
    assert easy > 2 * noisy


def test_pcgrad_is_of_the_whole_batch_and_sums_where_nothing_is_shared():
    """Micro-batches are joined before the projection; heads get what a sum gives."""
    (plain, _), (one, found), (two, _) = (
        learned(TASKS, 1),
        learned(TASKS, 1, pcgrad),
        learned(TASKS, 1, pcgrad, accumulate=2),
    )
    assert set(found) >= {"conflicts", "loss", "accuracy", "accuracy_noise"}

    def first_moments(state):
        named = jax.tree_util.tree_flatten_with_path(state["opt"])[0]
        return {
            jax.tree_util.keystr(p): leaf
            for p, leaf in named
            if ".mu" in jax.tree_util.keystr(p)
        }

    a, b, c = map(first_moments, (plain, one, two))
    for path, leaf in a.items():
        if "heads" in path:
            np.testing.assert_allclose(b[path], leaf, rtol=1e-4)
        # The random orders differ with the count, but do not matter for two tasks.
        np.testing.assert_allclose(c[path], b[path], rtol=1e-4, atol=1e-7)


def test_pcgrad_learns_what_can_be_learned():
    _, metrics = learned(TASKS, 200, pcgrad)
    assert metrics["accuracy"][-20:].mean() > 0.97
    assert 0 < metrics["conflicts"].mean() < 1


def bright(seed, count, dark=False):
    """Images of three patterns, some of them brighter: (images, names, 0 or 1)."""
    images, names = draw(seed, count)
    light = np.random.default_rng(seed).integers(0, 2, count)
    images = (images * (0.5 + 0.5 * light)[:, None, None, None]).astype(np.uint8)
    return 255 - images if dark else images, names, light


@pytest.fixture
def home(tiny, tmp_path):
    make_encoder(tmp_path / "encoder")
    (x, y, light), (x_test, y_test, light_test) = bright(0, 60), bright(1, 30)
    known = np.where(np.arange(60) % 3 == 0, np.nan, light)
    arrays = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
    np.savez(
        tmp_path / "data.npz", **arrays, y_train_light=known, y_test_light=light_test
    )
    x, y, _ = bright(2, 40, dark=True)
    np.savez(tmp_path / "more.npz", x_train=x, y_train=y)
    np.savez(tmp_path / "target.npz", images=bright(3, 40)[0] // 3)
    return tmp_path


def everything(home, *more, weighting="pcgrad"):
    return {
        "mode": "full",
        "steps": 3,
        "save_every": 1,
        "keep_last": 5,
        "eval_every": 3,
        "methods": (
            Tasks(columns=("light",), weighting=weighting),
            Sources(images=(f"npz:{home / 'more.npz'}",), weights=(1.0, 3.0)),
            "mdan",
            L2SP(weight=0.01, head=0.01),
            *more,
        ),
        "target": f"npz:{home / 'target.npz'}",
        "weight_decay": 0.0,
        "layer_decay": 0.7,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weighting", "mode"), [("pcgrad", "full"), ("uncertainty", "two-phase")]
)
def test_all_of_it_resumes_exactly(home, weighting, mode):
    """Cut back and repeated, a run ends as it did."""
    selection = FeatureSelection(score="fisher", keep=9)
    wanted = everything(home, selection, weighting=weighting) | {"mode": mode}
    whole = finetune(config(home, home / "run", **wanted)).run
    _, expected, _ = Store(whole).restore(step=3)
    again = home / "again"
    shutil.copytree(whole, again)
    for step in (2, 3):
        shutil.rmtree(again / "checkpoints" / str(step))
    (again / "results.json").unlink()
    finetune(config(home, again, **wanted))
    _, repeated, _ = Store(again).restore(step=3)
    jax.tree.map(np.testing.assert_array_equal, repeated, expected)


@pytest.mark.slow
def test_several_tasks_sources_and_methods_are_a_config(home):
    """Two tasks, two sources with an adversary each, L2-SP, layer-wise decay: settings.
    Every head can be scored."""
    result = finetune(config(home, home / "run", **everything(home)))
    found = result.results
    first, second = found["sources"].values()
    assert (first["training_images"], second["training_images"]) == (60, 40)
    assert first["test"]["confusion"] == found["source"]["confusion"]
    assert second["test"] is None
    assert found["tasks"]["light"]["source"]["examples"] == 30
    assert found["source"]["examples"] == 30
    _, state, _ = Store(result.run).restore(step=3)
    weights = np.asarray(state["stats"]["examples"]["weight"])
    np.testing.assert_allclose(weights[60:] / weights[0], 3.0, rtol=1e-6)
    assert weights.mean() == pytest.approx(1.0)
    listed = schemas.read(result.run / "labels.json", schemas.LabelsFile, "")
    assert sum(map(len, listed["train"].values())) == 100
    assert sum(map(len, listed["tasks"]["light"]["train"].values())) == 40
    loaded = load_classifier(str(result.run))
    assert loaded.class_names == {
        "classes": ("bars", "dots", "rings"),
        "light": ("0", "1"),
    }
    data = f"npz:{home / 'data.npz'}"
    scored = evaluate(EvaluateConfig(from_=str(result.run), data=data))
    assert (
        scored["tasks"]["light"]["confusion"]
        == (found["tasks"]["light"]["source"]["confusion"])
    )
    rows = (result.run / "metrics.jsonl").read_text().splitlines()
    logged = {key for row in rows for key in json.loads(row)}
    assert {"train/conflicts", "train/mdan_told", "train/accuracy_light"} <= logged


def test_a_task_without_labels_is_named(home):
    with pytest.raises(DataError, match="no labels for the task 'colour'; expected an"):
        finetune(config(home, home / "run", methods=Tasks(columns=("colour",))))
