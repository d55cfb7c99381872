"""Runs with anchors and a target domain as a whole, on tiny images."""

import json

import jax
import numpy as np
import pytest

from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.checkpoints.weights import read_encoder
from afterimage.classifier import load_classifier
from afterimage.errors import UserError
from afterimage.finetune.methods.cdan import CDAN
from afterimage.finetune.methods.density_ratio import DensityRatio
from afterimage.finetune.methods.kl_to_source import KLToSource
from afterimage.finetune.methods.l2_sp import L2SP
from afterimage.finetune.methods.label_shift import LabelShift
from afterimage.finetune.modes import TwoPhase
from afterimage.finetune.run import finetune
from afterimage.finetune.select import select
from afterimage.finetune.select_config import SelectConfig
from afterimage.models import ModelConfig
from tests.helpers import cut_back
from tests.test_finetune_program import (
    config,
    draw,
    make_encoder,
    write_domain,
    write_npz,
)


@pytest.fixture
def home(tmp_path_factory, tiny):
    """An encoder, source images, and darker target images with a labelled test."""
    folder = tmp_path_factory.mktemp("target")
    make_encoder(folder / "encoder")
    write_npz(folder / "data.npz")
    write_domain(folder / "dark.npz", lambda x: x // 3)
    np.savez(folder / "bare.npz", images=draw(2, 60)[0] // 3)
    return folder


EVERYTHING = {
    "methods": (
        CDAN(entropy=True),
        "mmd",
        L2SP(weight=0.01, head=0.01),
        "delta",
        "density-ratio",
    ),
    "weight_decay": 0.0,
    "layer_decay": 0.7,
    "select": "mixval",
    "augment": "shift",
}


def dark(home):
    return f"npz:{home / 'dark.npz'}"


@pytest.mark.slow
def test_everything_together_resumes_exactly(home, tmp_path):
    """An adversary, a distance, L2-SP, DELTA, layer decay and density ratios are
    settings; a run cut back inside any phase ends as the whole one did."""
    settings = {
        "mode": TwoPhase(head_steps=2),
        "steps": 6,
        "save_every": 1,
        "eval_every": 3,
        "keep_last": 10,
        "target": dark(home),
        **EVERYTHING,
    }
    result = finetune(config(home, tmp_path / "whole", **settings))
    assert result.results["selection"]["rule"].startswith("mixval: highest agreement")
    assert result.results["test"]["examples"] == 30
    assert result.results["source"]["examples"] == 30
    assert "dark" in result.results["target"]
    _, expected, _ = Store(result.run).restore(step=6)
    assert {"terms", "encoder", "heads"} == set(expected["params"])
    weights = np.asarray(expected["stats"]["examples"]["weight"])
    assert weights.mean() == pytest.approx(1.0)
    anchor = flatten(expected["stats"]["source"]["params"]["encoder"])
    for path, leaf in flatten(read_encoder(home / "encoder")[0]).items():
        np.testing.assert_array_equal(anchor[path], leaf)
    for cut in (1, 4):
        run = cut_back(result.run, tmp_path / f"cut-{cut}", cut)
        again = finetune(config(home, run, **settings))
        _, found, _ = Store(run).restore(step=6)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        assert again.results["selection"] == result.results["selection"]
    # What was trained beside the classifier is not in it.
    assert set(load_classifier(str(result.run)).params) == {"encoder", "heads"}


@pytest.mark.slow
def test_the_sources_own_head_is_an_anchor(home, tmp_path):
    """From a fine-tuned source: a strong hold on its outputs keeps them."""
    first = finetune(config(home, tmp_path / "first", mode="full", steps=6, lr=3e-3))
    swapped = write_npz(tmp_path / "other.npz", names=("a", "b", "c"))
    moved = {}
    for name, weight in (("free", 1e-6), ("held", 100.0)):
        run = finetune(
            config(
                home,
                tmp_path / name,
                from_=str(first.run),
                data=swapped,
                mode="full",
                steps=6,
                lr=3e-3,
                methods=KLToSource(weight=weight),
                clip=0.0,
            )
        ).run
        rows = (run / "metrics.jsonl").read_text().splitlines()
        values = [json.loads(r).get("train/kl_to_source") for r in rows]
        values = [v for v in values if v is not None]
        assert values[0] == pytest.approx(0.0, abs=1e-5)
        moved[name] = values[-1]
    assert moved["held"] < moved["free"]
    assert set(load_classifier(str(run)).params["heads"]) == {"classes"}


@pytest.mark.slow
def test_fisher_weighs_the_anchor(home, tmp_path):
    first = finetune(config(home, tmp_path / "first", mode="full", steps=2))
    settings = {"methods": L2SP(weight=0.1, fisher=True), "weight_decay": 0.0}
    run = finetune(
        config(
            home,
            tmp_path / "run",
            from_=str(first.run),
            mode="full",
            steps=2,
            labels=6,
            **settings,
        )
    ).run
    _, state, _ = Store(run).restore(step=2)
    fisher = jax.tree.leaves(state["stats"]["l2-sp"]["fisher"])
    assert all((leaf >= 0).all() for leaf in fisher)
    mean = sum(leaf.sum() for leaf in fisher) / sum(leaf.size for leaf in fisher)
    assert mean == pytest.approx(1.0, rel=1e-3)


def test_a_source_without_a_head_is_named(home, tmp_path):
    with pytest.raises(UserError, match=r"has no classifier, but kl-to-source"):
        finetune(config(home, tmp_path / "run", mode="full", methods="kl-to-source"))


def test_decay_beside_l2_sp_is_refused(home, tmp_path):
    with pytest.raises(UserError, match=r"weight decay and the term 'l2_sp'"):
        finetune(config(home, tmp_path / "run", mode="full", methods="l2-sp"))


def batch_normalised(home, folder):
    """Settings of one aligned step from an encoder with BatchNorm."""
    model = ModelConfig("conv", (8, 8), 1, norm="batch", width=0.25)
    return {
        "from_": make_encoder(folder / "batch", model),
        "mode": "full",
        "steps": 1,
        "target": dark(home),
        "methods": "coral",
    }


def test_batch_norm_between_two_domains_needs_a_choice(home, tmp_path):
    with pytest.raises(UserError, match="--domain-statistics"):
        finetune(config(home, tmp_path / "run", **batch_normalised(home, tmp_path)))


@pytest.mark.slow
def test_each_choice_of_statistics_keeps_its_moments(home, tmp_path):
    settings = batch_normalised(home, tmp_path)
    source = settings["from_"]
    moments = {}
    for choice in ("source", "target", "joint", "frozen"):
        run = finetune(
            config(home, tmp_path / choice, domain_statistics=choice, **settings)
        ).run
        stats = flatten(read_encoder(run)[1])
        first = next(path for path in stats if path.endswith("mean"))
        moments[choice] = np.asarray(stats[first])
    before = np.asarray(flatten(read_encoder(source)[1])[first])
    np.testing.assert_array_equal(moments["frozen"], before)
    # The first layer's moments: a joint batch's mean is the mean of both.
    between = (moments["source"] + moments["target"]) / 2
    np.testing.assert_allclose(moments["joint"], between, rtol=1e-4, atol=1e-6)
    assert not np.allclose(moments["source"], moments["target"])


@pytest.mark.parametrize("method", ["em", pytest.param("bbse", marks=pytest.mark.slow)])
def test_label_shift_moves_the_bias_alone(home, tmp_path, method):
    x, y = draw(2, 90)
    kept = np.concatenate(
        [np.flatnonzero(y == "bars"), np.flatnonzero(y == "dots")[:5]]
    )
    np.savez(tmp_path / "few.npz", images=x[kept])
    settings = {"mode": "full", "steps": 40, "lr": 3e-3, "select": "last"}
    target = f"npz:{tmp_path / 'few.npz'}"
    run = finetune(
        config(
            home,
            tmp_path / "run",
            target=target,
            methods=LabelShift(estimator=method),
            **settings,
        )
    )
    found = run.results["label_shift"]
    assert found["method"] == method
    assert found["target_frequencies"][0] == pytest.approx(30 / 35, abs=0.12)
    assert run.results["test"] is None
    _, state, _ = Store(run.run).restore(step=40)
    bias = np.asarray(state["params"]["heads"]["classes"]["linear"]["bias"])
    now = load_classifier(str(run.run)).params["heads"]["classes"]["linear"]
    known = np.array(found["source_frequencies"])
    estimate = np.maximum(found["target_frequencies"], 1e-4)
    shift = np.log(estimate / estimate.sum() / known)
    np.testing.assert_allclose(now["bias"] - bias, shift, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_under_covariate_shift_a_step_is_kept_by_the_importance_weighted_risk(
    home, tmp_path
):
    """By the ratios of the training term, of images held out; said wherever it is
    told, and a run that was cut off goes on with the same ones."""
    settings = {
        "mode": "full",
        "steps": 6,
        "eval_every": 2,
        "save_every": 2,
        "lr": 0.03,
        "target": dark(home),
        "methods": DensityRatio(estimator="ulsif"),
        "keep_last": 9,
        "select": "validation",
        "select_by": "loss",
        "validation": 0.4,
    }
    found = finetune(config(home, tmp_path / "run", **settings))
    rule = found.results["selection"]["rule"]
    assert "importance-weighted by the density ratio (ulsif)" in rule
    assert "importance-weighted" in found.summary()
    assert "importance-weighted" in found.report.read_text()
    values = evaluated(found.run, "importance_weighted_loss")
    assert list(values) == [2, 4, 6]
    assert values != evaluated(found.run, "loss")
    kept = found.results["selection"]["step"]
    assert values[kept] == min(values.values())
    measured = found.results["importance_weighted_loss"]
    assert measured == pytest.approx(values[kept], rel=1e-5)
    _, state, _ = Store(found.run).restore(step=6)
    weights = {name: np.asarray(w) for name, w in state["stats"]["examples"].items()}
    assert [len(weights[name]) for name in ("weight", "validation")] == [36, 24]
    # One estimate for both: their mean is one, and of those that train alone it is
    # made one again.
    assert weights["weight"].mean() == pytest.approx(1.0)
    assert weights["validation"].std() > 0
    run = cut_back(found.run, tmp_path / "cut", 2)
    again = finetune(config(home, run, **settings))
    assert evaluated(run, "importance_weighted_loss") == values
    assert again.results["selection"] == found.results["selection"]


def evaluated(run, name):
    """{step: the measure of each evaluation}."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row[f"eval/{name}"] for row in rows if f"eval/{name}" in row}


@pytest.mark.slow
def test_a_step_is_kept_by_neighbours_in_the_pretrained_features(home, tmp_path):
    """The measure of the kept step is the largest of all, and what the command that
    compares runs says of this one."""
    settings = {"mode": "full", "steps": 6, "eval_every": 2, "lr": 3e-2}
    given = {"target": dark(home), "select": "neighbours", **settings}
    found = finetune(config(home, tmp_path / "run", **given))
    assert found.results["selection"]["rule"].startswith("neighbours: highest mutual")
    rows = (found.run / "metrics.jsonl").read_text().splitlines()
    told = {row["step"]: row for row in map(json.loads, rows)}
    values = {n: row.get("eval/target_neighbours") for n, row in told.items()}
    values = {n: value for n, value in values.items() if value is not None}
    assert list(values) == [2, 4, 6]
    kept = found.results["selection"]["step"]
    assert values[kept] == max(values.values())
    measured = found.results["label_free"]["target_neighbours"]
    assert measured == pytest.approx(values[kept], rel=1e-5)
    other = finetune(config(home, tmp_path / "other", mode="probe", steps=1)).run
    compared = select(
        SelectConfig(
            from_=(str(found.run), str(other)),
            data=dark(home),
            encoder=str(home / "encoder"),
        )
    )
    by_run = {one["run"]: one["neighbours"] for one in compared["runs"]}
    assert by_run[str(found.run)] == pytest.approx(measured, rel=1e-4)


def test_neighbours_are_of_images_that_the_source_takes(home, tmp_path):
    settings = {"target": dark(home), "mode": "full", "image_size": 12}
    with pytest.raises(UserError, match=r"needs images \(8, 8, 1\).*not \(12, 12, 1\)"):
        finetune(config(home, tmp_path / "run", select="neighbours", **settings))


def test_the_oracle_is_labelled_and_needs_labels(home, tmp_path):
    settings = {"mode": "probe", "steps": 2, "select": "oracle"}
    found = finetune(config(home, tmp_path / "a", target=dark(home), **settings))
    assert "oracle" in found.results["selection"]["rule"]
    assert "upper bound" in found.results["selection"]["rule"]
    assert (found.run / "pictures" / "domains.png").read_bytes().startswith(b"\x89PNG")
    assert "Source and target" in found.report.read_text()
    bare = f"npz:{home / 'bare.npz'}"
    with pytest.raises(UserError, match="needs labels of"):
        finetune(config(home, tmp_path / "b", target=bare, **settings))
