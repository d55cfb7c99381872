"""Images without labels beside the labelled ones: the term by hand, runs as a whole."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.checkpoints.weights import read_encoder
from afterimage.errors import UserError
from afterimage.finetune.data import open_all
from afterimage.finetune.losses import cross_entropy
from afterimage.finetune.methods.pseudo_labels import (
    COUNTED,
    PseudoLabels,
    aligned,
    pseudo_labels,
)
from afterimage.finetune.modes import TwoPhase
from afterimage.finetune.run import finetune
from afterimage.finetune.setup import build, make_stage
from afterimage.models import ModelConfig
from afterimage.training.stage import Context
from tests.helpers import cut_back
from tests.test_finetune_program import config, make_encoder, rows, write_npz


@pytest.fixture
def home(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("unlabelled")
    make_encoder(folder / "encoder")
    write_npz(folder / "data.npz")
    return folder


def given(**values):
    return Context({k.replace("__", "/"): lambda _, v=v: v for k, v in values.items()})


def test_the_term_by_hand():
    # Probabilities 0.96 (sure), 0.9 (not sure) and 0.99 of the second class.
    weak = jnp.log(jnp.array([[0.96, 0.04], [0.9, 0.1], [0.01, 0.99]]))
    strong = jnp.log(jnp.array([[0.5, 0.5], [0.1, 0.9], [0.8, 0.2]]))
    term = pseudo_labels(confidence=0.95)
    logits = {"unlabelled__logits__classes": weak, "strong__logits__classes": strong}
    value, metrics = term.value(given(**logits), jnp.int32(0))
    assert float(value) == pytest.approx((-np.log(0.5) - np.log(0.2)) / 3)
    assert float(metrics["pseudo_labels_sure"]) == pytest.approx(2 / 3)


def test_the_guess_gets_no_gradient():
    def loss(weak, strong):
        logits = {
            "unlabelled__logits__classes": weak,
            "strong__logits__classes": strong,
        }
        term = pseudo_labels(confidence=0.5)
        return term.value(given(**logits), jnp.int32(0))[0]

    logits = jnp.array([[2.0, 0.0]])
    of_weak, of_strong = jax.grad(loss, (0, 1))(logits, logits)
    np.testing.assert_array_equal(of_weak, 0)
    assert float(jnp.abs(of_strong).sum()) > 0


def test_predictions_are_aligned_to_the_frequencies():
    """Predicted 0.75 and 0.25 in the mean, where both classes are as frequent."""
    guess = jnp.array([[0.9, 0.1], [0.6, 0.4]])
    found = aligned(guess, jnp.array([0.5, 0.5]), guess.mean(0))
    # Weighed 0.6 and 0.2; 0.4 and 0.8: each over their sum.
    np.testing.assert_allclose(found, [[0.75, 0.25], [1 / 3, 2 / 3]], rtol=1e-6)
    lost = jnp.array([[1.0, 0.0]])
    lost = aligned(lost, jnp.array([0.5, 0.5]), lost[0])
    np.testing.assert_array_equal(lost, [[1.0, 0.0]])


def test_the_running_mean_is_what_they_are_aligned_by():
    """This batch is predicted as often as it should be, the ones before were not."""
    logits = jnp.log(jnp.array([[0.55, 0.45], [0.45, 0.55]]))
    losses = {}
    for running in (False, True):
        settings = {"confidence": 0.0, "frequencies": (0.5, 0.5), "running": running}
        term = pseudo_labels(**settings)
        context = given(
            unlabelled__logits__classes=logits,
            strong__logits__classes=jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]])),
            unlabelled__predicted=jnp.array([0.75, 0.25]),
        )
        losses[running] = float(term.value(context, jnp.int32(0))[0])
    assert losses[False] == pytest.approx(-np.log(0.9 * 0.8) / 2)
    # 0.55 / 0.75 is less than 0.45 / 0.25: both images are of the second class.
    assert losses[True] == pytest.approx(-np.log(0.1 * 0.8) / 2)


def test_predicted_frequencies_are_aligned_to_once_they_are_counted():
    """Both predictions are of the first class where three of four images are of it,
    by the same running mean; before that no image counts."""
    losses = {}
    for progress in (COUNTED - 0.01, COUNTED):
        term = pseudo_labels(
            confidence=0.0, frequencies=(0.5, 0.5), running=True, counted=True
        )
        context = given(
            unlabelled__logits__classes=jnp.log(
                jnp.array([[0.55, 0.45], [0.51, 0.49]])
            ),
            strong__logits__classes=jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]])),
            unlabelled__predicted=jnp.array([0.75, 0.25]),
            unlabelled__frequencies=jnp.array([0.75, 0.25]),
            progress=jnp.float32(progress),
        )
        losses[progress] = float(term.value(context, jnp.int32(0))[0])
    assert losses[COUNTED - 0.01] == 0
    assert losses[COUNTED] == pytest.approx(-np.log(0.9 * 0.2) / 2)


def boundary(crowd, noisy, *terms):
    """Where cross-entropy of labels at -2 and 2 and these terms part the line."""
    x, y = jnp.array([-2.0, 2.0]), jnp.array([0, 1])
    terms = (cross_entropy(2), *terms)

    def logits(params, x):
        score = params[0] * x + params[1]
        return jnp.stack([jnp.zeros_like(score), score], -1)

    def loss(params):
        context = given(
            train__logits__classes=logits(params, x),
            train__label=y,
            unlabelled__logits__classes=logits(params, jnp.asarray(crowd)),
            strong__logits__classes=logits(params, jnp.asarray(noisy)),
        )
        return sum(term.value(context, jnp.int32(0))[0] for term in terms)

    step, params = jax.jit(jax.grad(loss)), jnp.array([1.0, 0.0])
    for _ in range(1500):
        params = params - 0.3 * step(params)
    return float(-params[1] / params[0])


def test_the_boundary_leaves_the_cluster_that_it_cuts():
    """Labels at −2 and 2 put the boundary at 0, inside a cluster about 0.2; with the
    cluster's images beside them it moves out of it."""
    rng = np.random.default_rng(0)
    crowd = np.concatenate([rng.normal(-2, 0.2, 100), rng.normal(0.2, 0.2, 100)])
    noisy = crowd + rng.normal(0, 0.1, 200)
    alone = boundary(crowd, noisy)
    beside = boundary(crowd, noisy, pseudo_labels(confidence=0.55))
    assert np.mean(crowd[100:] > alone) < 0.9
    assert np.mean(crowd[100:] > beside) > 0.98


def test_alignment_of_the_predictions_keeps_a_class_from_dying_out():
    """Both clusters lie left of 0, where the labels alone put the boundary: pseudo-
    labels call both one class; aligned to equal frequencies they tell them apart."""
    rng = np.random.default_rng(0)
    crowd = np.concatenate([rng.normal(-2, 0.1, 100), rng.normal(-0.6, 0.1, 100)])
    noisy = crowd + rng.normal(0, 0.05, 200)
    right = {}
    for frequencies in (None, (0.5, 0.5)):
        term = pseudo_labels(confidence=0.55, frequencies=frequencies)
        found = boundary(crowd, noisy, term)
        right[frequencies] = np.mean((crowd > found) == (np.arange(200) >= 100))
    assert right[None] == 0.5
    assert right[0.5, 0.5] > 0.98


SETTINGS = {
    "mode": TwoPhase(head_steps=2),
    "steps": 6,
    "save_every": 1,
    "eval_every": 3,
    "keep_last": 10,
    "labels_per_class": 2,
    "methods": PseudoLabels(confidence=0.4),
    "augment": "shift",
}


def changed(**settings):
    """The same with other settings of the method."""
    return SETTINGS | {"methods": PseudoLabels(**{"confidence": 0.4, **settings})}


@pytest.mark.slow
def test_a_run_resumes_exactly_and_says_what_it_saw(home, tmp_path, capsys):
    result = finetune(config(home, tmp_path / "whole", **SETTINGS))
    assert "unlabelled" in capsys.readouterr().out
    labels = json.loads((result.run / "labels.json").read_text())
    assert sum(map(len, labels["train"].values())) == 6
    shares = [row.get("train/pseudo_labels_sure") for row in rows(result.run)]
    assert any(share for share in shares if share is not None)
    _, expected, _ = Store(result.run).restore(step=6)
    run = cut_back(result.run, tmp_path / "cut", 3)
    finetune(config(home, run, **SETTINGS))
    _, found, _ = Store(run).restore(step=6)
    for path, leaf in flatten(expected["params"]).items():
        np.testing.assert_array_equal(flatten(found["params"])[path], leaf)


@pytest.mark.slow
def test_the_running_mean_follows_the_predictions_and_resumes(home, tmp_path):
    """From the labels' frequencies towards what is predicted, by 1 - momentum a step;
    a cut run goes on with the mean it had."""
    settings = changed(distribution_alignment=True, alignment_momentum=0.9)
    run = finetune(config(home, tmp_path / "whole", **settings)).run
    means = [
        Store(run).restore(step=n)[1]["stats"]["pseudo-labels"]["predicted"]
        for n in range(1, 7)
    ]
    moved = np.diff([np.full(3, 1 / 3), *means], axis=0)
    for step, before in zip(moved, [np.full(3, 1 / 3), *means]):
        # before + step is 0.9 before + 0.1 p, with p a distribution.
        share = before + step / 0.1
        assert share.sum() == pytest.approx(1, abs=1e-4)
        assert np.all((share >= -1e-4) & (share <= 1 + 1e-4))
    assert np.all(np.abs(moved).max(1) > 1e-6)
    cut = cut_back(run, tmp_path / "cut", 3)
    finetune(config(home, cut, **settings))
    np.testing.assert_array_equal(
        Store(cut).restore(step=6)[1]["stats"]["pseudo-labels"]["predicted"], means[-1]
    )


@pytest.mark.slow
def test_frequencies_are_counted_in_the_first_quarter_and_then_kept(home, tmp_path):
    """Of six steps the first two lie before a quarter of them: the running mean of the
    second is what the later ones go by, also where the run was cut in between."""
    settings = changed(
        distribution_alignment=True,
        alignment_momentum=0.9,
        alignment_frequencies="predicted",
        confidence=0.0,
    ) | {"mode": "full"}
    run = finetune(config(home, tmp_path / "whole", **settings)).run
    states = [Store(run).restore(step=n)[1] for n in range(1, 7)]
    kept = [state["stats"]["pseudo-labels"] for state in states]
    for stats in kept[:2]:
        np.testing.assert_array_equal(stats["frequencies"], stats["predicted"])
    for stats in kept[2:]:
        np.testing.assert_array_equal(stats["frequencies"], kept[1]["predicted"])
    assert not np.array_equal(kept[1]["predicted"], kept[2]["predicted"])
    sure = [row["train/pseudo_labels_sure"] for row in rows(run) if "train/loss" in row]
    assert sure == [0, 0, 1, 1, 1, 1]
    for cut_at in (1, 3):
        cut = cut_back(run, tmp_path / f"cut-{cut_at}", cut_at)
        finetune(config(home, cut, **settings))
        found = Store(cut).restore(step=6)[1]["stats"]["pseudo-labels"]
        np.testing.assert_array_equal(found["frequencies"], kept[-1]["frequencies"])


@pytest.mark.slow
def test_a_run_propagates_once_and_resumes_exactly(home, tmp_path, capsys):
    settings = changed(propagation=1.0, confidence=0.0)
    run = finetune(config(home, tmp_path / "whole", **settings)).run
    assert "6 labels were propagated to" in capsys.readouterr().out
    expected = Store(run).restore(step=6)[1]
    classes = np.asarray(expected["stats"]["pseudo-labels"]["propagated"])
    assert set(classes) <= {-1, 0, 1, 2}
    assert len(set(classes)) > 1
    # At confidence 0 every image would count, were it not for the second opinion.
    sure = [row["train/pseudo_labels_sure"] for row in rows(run) if "train/loss" in row]
    assert min(sure) < 1
    cut = cut_back(run, tmp_path / "cut", 3)
    finetune(config(home, cut, **settings))
    found = Store(cut).restore(step=6)[1]
    again = found["stats"]["pseudo-labels"]["propagated"]
    np.testing.assert_array_equal(again, classes)


@pytest.mark.parametrize(
    ("setting", "stream"),
    [("weak_augment", "unlabelled"), ("strong_augment", "strong")],
)
def test_a_view_has_its_own_augmentation(home, tmp_path, setting, stream):
    """The other views are drawn as before."""
    ramp = jnp.arange(64, dtype=jnp.uint8).reshape(1, 8, 8, 1)
    views = {}
    for name, given in (("as before", {}), ("none", {setting: "none"})):
        settings = changed(**given) | {"mode": "full"}
        settings = config(home, tmp_path / "unused", **settings)
        setup = build(settings, open_all(settings))
        stage = make_stage(setup)
        batch = {
            key: jnp.broadcast_to(ramp, (6, 8, 8, 1))
            for key in ("image", "unlabelled/image")
        }
        model, key = (setup.params, setup.stats), jax.random.key(0)
        rules = stage.providers(*model, batch, key, jnp.int32(0), frozenset())
        context = Context(rules)
        views[name] = {
            each: np.asarray(context[f"{each}/view"]) * 255
            for each in ("train", "unlabelled", "strong")
        }
    pixels = np.broadcast_to(ramp, views["none"][stream].shape)
    np.testing.assert_allclose(views["none"][stream], pixels, atol=1e-4)
    assert np.abs(views["as before"][stream] - pixels).max() > 1
    for each in {"train", "unlabelled", "strong"} - {stream}:
        np.testing.assert_array_equal(views["as before"][each], views["none"][each])


@pytest.mark.slow
def test_more_images_without_labels_a_step_cost_their_passes(home, tmp_path):
    """The share of sure ones is a count of all of them, whatever the micro-batches."""
    settings = changed(ratio=3) | {"mode": "full"}
    result = finetune(
        config(home, tmp_path / "run", **settings, batch_size=8, accumulate=2)
    )
    shares = [row.get("train/pseudo_labels_sure", 0) for row in rows(result.run)]
    assert any(share not in (0, 1) for share in shares)
    # Of 24 images, three for each labelled one.
    assert all(abs(share * 24 - round(share * 24)) < 1e-4 for share in shares)


def test_rest_leaves_the_validation_images_out(home):
    settings = SETTINGS | {"labels_per_class": 10, "select": "validation"}
    opened = open_all(config(home, home / "unused", **settings))
    images, labels = opened.streams["unlabelled"].images, opened.labels
    assert labels.validation is not None
    assert images.labels is None
    used = set(images.ids)
    assert used.isdisjoint(labels.validation.ids)
    assert used >= set(labels.train.ids)
    assert len(used) + len(labels.validation) == 60


@pytest.mark.slow
def test_the_targets_images_take_part_without_their_labels(home):
    others = write_npz(home / "others.npz", train=36)
    own = {"images": "target", "confidence": 0.2, "distribution_alignment": True}
    settings = {"target": others, "methods": ("mmd", PseudoLabels(**own))}
    opened = open_all(config(home, home / "unused", **settings))
    images = opened.streams["unlabelled"].images
    assert images.labels is None
    assert len(images) == 36
    result = finetune(config(home, home / "run", **settings))
    found = [row.get("train/pseudo_labels") for row in rows(result.run)]
    assert any(value and value > 0 for value in found)
    told, kept = result.results["label_free"], result.results["selection"]["step"]
    assert 0 <= told.pop("target_mixval") <= 1
    assert set(told) == {"target_entropy", "target_infomax", "target_snd"}
    (evaluated,) = [
        row
        for row in rows(result.run)
        if row["step"] == kept and "eval/target_infomax" in row
    ]
    for name, value in told.items():
        assert value == pytest.approx(evaluated[f"eval/{name}"], rel=1e-5)
    with pytest.raises(UserError, match=r"pseudo-labels\.images='target'"):
        config(home, home / "other", methods=PseudoLabels(images="target"))


@pytest.fixture
def batch_normalised(tmp_path):
    """Settings of one step from an encoder with BatchNorm."""
    model = ModelConfig("conv", (8, 8), 1, norm="batch", width=0.25)
    encoder = make_encoder(tmp_path / "batch", model)
    return {"from_": encoder, "mode": "full", "steps": 1, "methods": "pseudo-labels"}


def test_batch_norm_beside_unlabelled_images_needs_a_choice(
    home, tmp_path, batch_normalised
):
    with pytest.raises(UserError, match="--domain-statistics"):
        finetune(config(home, tmp_path / "run", **batch_normalised))
    wrong = batch_normalised | {"domain_statistics": "target"}
    with pytest.raises(UserError, match="domain_statistics='target'"):
        config(home, tmp_path / "run", **wrong)


@pytest.mark.slow
def test_one_batch_of_all_images_moves_the_statistics(home, tmp_path, batch_normalised):
    settings = batch_normalised | {
        "domain_statistics": "joint",
        "methods": PseudoLabels(confidence=0.0, ratio=2),
    }
    run = finetune(config(home, tmp_path / "run", **settings)).run
    before = flatten(read_encoder(settings["from_"])[1])
    moved = [
        not np.array_equal(leaf, before[path])
        for path, leaf in flatten(read_encoder(run)[1]).items()
    ]
    assert moved
    assert all(moved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0}, "pseudo-labels.ratio=0"),
        ({"alignment_momentum": 0.9}, "only with distribution_alignment"),
        (
            {"distribution_alignment": True, "alignment_frequencies": "predicted"},
            "alignment_frequencies='predicted'",
        ),
        (
            {"distribution_alignment": True, "alignment_momentum": 1.0},
            r"alignment_momentum=1.0: must be in \[0, 1\)",
        ),
        ({"propagation": 2.0}, r"propagation=2.0: must be in \[0, 1\]"),
        ({"confidence": 1.0}, "confidence=1.0"),
    ],
)
def test_settings_that_cannot_work(home, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        config(home, tmp_path / "run", methods=PseudoLabels(**settings))


def test_not_over_episodes(home, tmp_path):
    given = {"task": "episodes", "methods": ("maml", "pseudo-labels")}
    with pytest.raises(UserError, match=r"pseudo-labels: .*not episodes"):
        config(home, tmp_path / "run", mode="full", **given)
