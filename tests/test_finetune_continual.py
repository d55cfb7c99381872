"""Continual learning: memory and measures by hand, sequences of tasks as a whole."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.checkpoints import schemas
from afterimage.checkpoints.store import Store
from afterimage.classifier import load_classifier
from afterimage.errors import DataError, UserError
from afterimage.finetune.methods.ewc import EWC, consolidated, elastic
from afterimage.finetune.methods.lwf import without_forgetting
from afterimage.finetune.methods.replay import Replay
from afterimage.finetune.run import finetune
from afterimage.finetune.tasks.continual import (
    Continual,
    HeadSlice,
    continual_measures,
    make_sequence,
    task_loss,
)
from afterimage.training.stage import Context
from tests.test_finetune_program import config, make_encoder

NAMES = ("0", "1", "2", "3")


def value(term, **values):
    rules = {k.replace("__", "/"): (lambda _, v=v: v) for k, v in values.items()}
    return term.value(Context(rules), jnp.int32(0))


def test_each_slice_has_its_own_softmax():
    logits = jnp.log(jnp.array([[0.2, 0.8, 9.0], [0.2, 0.2, 0.6]]))
    slices = (HeadSlice("classes", (0, 1), (3, 5)), HeadSlice("other", (1,), (7,)))
    names = {"train__logits__classes": logits, "train__logits__other": logits}
    term = task_loss(slices, stream="train", name="ce", weight=1.0)
    # 5 is the second of (3, 5): −log 0.8; 7 is alone in its head: 0.
    found, metrics = value(term, train__label=jnp.array([5, 7]), **names)
    assert float(found) == pytest.approx(-np.log(0.8) / 2)
    assert float(metrics["accuracy"]) == 1.0
    # Class 0 of nobody costs nothing, and is never right.
    found, metrics = value(term, train__label=jnp.array([0, 0]), **names)
    assert (float(found), float(metrics["accuracy"])) == (0.0, 0.0)


def test_ewc_finds_the_optimum_in_closed_form():
    """½ Σ h (θ − b)² + λ ½ Σ F (θ − θ*)² is least at (h b + λ F θ*) / (h + λ F)."""
    h, b = jnp.array([1.0, 4.0]), jnp.array([2.0, -1.0])
    fisher, start, weight = jnp.array([3.0, 0.5]), jnp.array([-1.0, 1.0]), 2.0
    term = elastic(weight)

    def loss(theta):
        params = {"encoder": {"w": theta}, "heads": {}}
        found, _ = value(
            term,
            params=params,
            ewc__anchor={"encoder": {"w": start}, "heads": {}},
            ewc__importance={"encoder": {"w": fisher}, "heads": {}},
        )
        return found + 0.5 * jnp.sum(h * (theta - b) ** 2)

    def step(_, theta):
        return theta - 0.05 * jax.grad(loss)(theta)

    found = jax.jit(lambda t: jax.lax.fori_loop(0, 400, step, t))(jnp.zeros(2))
    expected = (h * b + weight * fisher * start) / (h + weight * fisher)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_one_penalty_has_the_gradient_of_one_a_task():
    rng = np.random.default_rng(0)
    tasks = [
        {
            "F": jnp.asarray(rng.exponential(size=3)),
            "w": jnp.asarray(rng.normal(size=3)),
        }
        for _ in range(3)
    ]
    tasks[0]["F"] = tasks[0]["F"].at[1].set(0.0)
    importance, anchor = {"w": jnp.zeros(3)}, {"w": jnp.zeros(3)}
    for task in tasks:
        importance, anchor = consolidated(
            importance, anchor, {"w": task["F"]}, {"w": task["w"]}
        )
    theta = jnp.asarray(rng.normal(size=3))
    each = sum(task["F"] * (theta - task["w"]) for task in tasks)
    one = importance["w"] * (theta - anchor["w"])
    np.testing.assert_allclose(one, each, rtol=1e-5)


def test_lwf_keeps_what_the_old_slice_says():
    piece = HeadSlice("classes", (0, 1), (0, 1))
    before = jnp.array([[1.0, 2.0, 0.0]])
    term = without_forgetting([piece], 1.0)
    same = value(
        term,
        previous__logits__classes=before,
        # A new class's logit is free, and so is a shift of the old ones.
        train__logits__classes=jnp.array([[4.0, 5.0, 99.0]]),
    )[0]
    assert float(same) == pytest.approx(0.0, abs=1e-6)
    other = value(
        term,
        previous__logits__classes=before,
        train__logits__classes=jnp.array([[2.0, 1.0, 0.0]]),
    )[0]
    p = 1 / (1 + np.exp(-0.5))  # of the second class, at T = 2
    expected = 4 * ((1 - p) * np.log((1 - p) / p) + p * np.log(p / (1 - p)))
    assert float(other) == pytest.approx(expected, rel=1e-5)


def test_measures_by_hand():
    accuracy = np.array([[0.9, 0.4, 0.5], [0.7, 0.8, 0.7], [0.5, 0.6, 1.0]])
    found = continual_measures(accuracy, np.array([0.1, 0.3, 0.5]))
    assert found["average_accuracy"] == pytest.approx(0.7)
    assert found["backward_transfer"] == pytest.approx((-0.4 - 0.2) / 2)
    assert found["forgetting"] == pytest.approx(0.3)
    assert found["forward_transfer"] == pytest.approx((0.1 + 0.2) / 2)
    joint = np.full((3, 3), np.nan)
    joint[-1] = 0.8
    found = continual_measures(joint, None)
    assert found["average_accuracy"] == pytest.approx(0.8)
    assert found["forgetting"] is None
    assert found["forward_transfer"] is None


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (("0,1",), "at least two tasks"),
        (("0,1", "2"), "task 2 has only"),
        (("0,1", "1,2"), "'1' is named twice"),
        (("0,1", "2,33"), "'33' is not a class of the data"),
    ],
)
def test_tasks_that_cannot_be(tasks, message):
    with pytest.raises(UserError, match=message):
        make_sequence(tasks, NAMES, per_task=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "continual"}, "continual: sequence: "),
        ({"methods": "ewc", "task": "classification"}, "ewc: .*not class"),
        ({"mode": "probe"}, "continual: .*mode full or scratch"),
        ({"select": "validation"}, "select='validation'"),
        ({"methods": Replay(memory=0)}, "replay.memory=0"),
        ({"methods": EWC(weight=-1.0)}, "ewc.weight=-1.0"),
        ({"ema": 0.9}, "continual: .*ema=0.9"),
        ({"methods": "l2-sp"}, "l2-sp: .*not continual"),
        (
            {"task": Continual(sequence=("0,1", "2,3"), joint=True), "methods": "lwf"},
            "joint",
        ),
    ],
)
def test_settings_that_cannot_work(tmp_path, settings, message):
    usual = {"task": Continual(sequence=("0,1", "2,3")), "mode": "full", **settings}
    with pytest.raises(UserError, match=message):
        config(tmp_path, "a", **usual)


def draw(seed, count):
    """uint8 [n, 8, 8, 1]: one of four textures at a random place, noisy."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    rows, columns = np.meshgrid(np.arange(8), np.arange(8), indexing="ij")
    textures = [rows % 2, columns % 2, (rows + columns) % 2, (rows % 2) * (columns % 2)]
    images = rng.uniform(0, 90, (count, 8, 8))
    for image, label in zip(images, labels):
        image += 150 * np.roll(textures[label], rng.integers(0, 2, 2), (0, 1))
    return images.astype(np.uint8)[..., None], labels


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_module):
    folder = tmp_path_factory.mktemp("continual")
    make_encoder(folder / "encoder")
    (x, y), (x_test, y_test) = draw(0, 64), draw(1, 40)
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    np.savez(folder / "bare.npz", images=x, labels=y)
    return folder


def sequence(home, out, scenario="class", joint=False, **settings):
    given = {"sequence": ("0,1", "2,3"), "scenario": scenario, "joint": joint}
    usual = {
        "task": Continual(**given),
        "mode": "full",
        "steps": 60,
        "lr": 1e-2,
        "weight_decay": 0.0,
        "features": "last",
        "log_every": 10,
        "eval_every": 30,
    }
    return config(home, out, **{**usual, **settings})


def run_of(home, folder, **settings):
    return finetune(sequence(home, folder, **settings)).results["continual"]


@pytest.mark.slow
def test_one_head_forgets_and_replay_remembers(home, tmp_path):
    none = run_of(home, tmp_path / "none")
    assert none["accuracy"][0][0] > 0.9
    assert none["accuracy"][0][1] == 0.0  # no class of the second task was seen
    assert none["accuracy"][1][0] < 0.4
    assert none["forgetting"] > 0.5
    assert none["forward_transfer"] is None
    replay = run_of(home, tmp_path / "replay", methods=Replay(memory=8))
    assert replay["average_accuracy"] > none["average_accuracy"] + 0.2


@pytest.mark.slow
def test_joint_training_is_the_upper_bound(home, tmp_path):
    joint = run_of(home, tmp_path / "joint", joint=True)
    assert joint["average_accuracy"] > 0.9
    assert joint["accuracy"][0] == [None, None]
    assert joint["forgetting"] is None


STEPS = {
    "scenario": "task",
    "steps": 6,
    "save_every": 1,
    "keep_last": 9,
    "eval_every": 2,
    "lr": 0.01,
}


@pytest.fixture(scope="module")
def ewc_run(home):
    return finetune(sequence(home, home / "ewc", methods="ewc", **STEPS))


def check_resume(home, whole, tmp_path, **settings):
    """Cut back inside the second task, and to the boundary before it."""
    _, expected, _ = Store(whole.run).restore(step=6)
    for cut in (3, 4):
        run = tmp_path / f"cut-{cut}"
        shutil.copytree(whole.run, run)
        for step in range(cut + 1, 7):
            shutil.rmtree(run / "checkpoints" / str(step))
        (run / "results.json").unlink()
        finetune(sequence(home, run, **STEPS, **settings))
        _, found, _ = Store(run).restore(step=6)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        stored = schemas.read(run / "results.json", schemas.ResultsFile, "")
        assert stored["continual"] == whole.results["continual"]


@pytest.mark.slow
def test_a_complete_sequence_makes_its_classifier_again(home, ewc_run, tmp_path):
    """And where metrics.jsonl is gone too, what only it told counts as not measured."""
    run = tmp_path / "run"
    shutil.copytree(ewc_run.run, run)
    shutil.rmtree(run / "classifier")
    settings = sequence(home, run, **STEPS, methods="ewc")
    assert finetune(settings).results["continual"] == ewc_run.results["continual"]
    assert (run / "classifier" / "weights.safetensors").is_file()
    shutil.rmtree(run / "classifier")
    (run / "metrics.jsonl").unlink()
    found = finetune(settings).results["continual"]
    told = ewc_run.results["continual"]
    assert found["average_accuracy"] == told["average_accuracy"]
    assert found["accuracy"][-1] == told["accuracy"][-1]
    assert found["forgetting"] is None


@pytest.mark.slow
def test_a_killed_sequence_resumes_exactly(home, ewc_run, tmp_path):
    check_resume(home, ewc_run, tmp_path, methods="ewc")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lwf", "replay"])
def test_other_methods_resume_exactly(home, tmp_path, method):
    settings: dict = {"methods": Replay(memory=3) if method == "replay" else method}
    whole = finetune(sequence(home, tmp_path / "whole", **STEPS, **settings))
    check_resume(home, whole, tmp_path, **settings)


def test_a_head_for_each_task(ewc_run):
    found = ewc_run.results["continual"]
    assert np.shape(found["accuracy"]) == (2, 2)
    assert found["forward_transfer"] is not None
    loaded = load_classifier(str(ewc_run.run))
    assert loaded.class_names == {"task-1": ("0", "1"), "task-2": ("2", "3")}
    assert "after each task" in ewc_run.report.read_text()
    assert "forgetting" in ewc_run.summary()


def total(tree):
    return sum(float(x.sum()) for x in jax.tree.leaves(tree))


def test_heads_of_other_tasks_stay_as_they_are(ewc_run):
    states = {step: Store(ewc_run.run).restore(step=step)[1] for step in (1, 3, 6)}
    heads = {step: state["params"]["heads"] for step, state in states.items()}
    jax.tree.map(np.testing.assert_array_equal, heads[3]["task-1"], heads[6]["task-1"])
    jax.tree.map(np.testing.assert_array_equal, heads[1]["task-2"], heads[3]["task-2"])
    # What mattered for the first task is known after it, and zero before.
    kept = {step: state["stats"]["ewc"] for step, state in states.items()}
    assert total(kept[3]["importance"]) == 0
    assert total(kept[6]["importance"]) > 0


@pytest.mark.slow
def test_a_strong_penalty_holds_the_encoder(home, tmp_path):
    """The distance from the first task's parameters, in the metric of its Fisher."""

    def moved(weight):
        settings = {**STEPS, "methods": EWC(weight=weight)}
        run = finetune(sequence(home, tmp_path / f"{weight}", **settings)).run
        end = Store(run).restore(step=6)[1]
        kept = end["stats"]["ewc"]
        trees = (kept["importance"], end["params"], kept["anchor"])
        parts = [tree["encoder"] for tree in trees]
        return total(jax.tree.map(lambda f, x, a: f * (x - a) ** 2, *parts))

    assert moved(1e6) < 0.5 * moved(1e-3)


def test_what_a_sequence_needs_is_said_first(home, tmp_path):
    with pytest.raises(DataError, match="has no test split"):
        finetune(sequence(home, tmp_path / "a", data=f"npz:{home / 'bare.npz'}"))
    settings = {"methods": "ewc", "weight_decay": 0.05}
    with pytest.raises(UserError, match="weight decay and the term 'ewc'"):
        finetune(sequence(home, tmp_path / "b", **settings))
    settings = {"methods": Replay(memory=500)}
    with pytest.raises(DataError, match="too few labelled images"):
        finetune(sequence(home, tmp_path / "c", **settings))
