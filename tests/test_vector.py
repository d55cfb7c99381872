"""The feature vector: its recipe, stored with an encoder, and how a run chooses it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import afterimage
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.weights import read_encoder
from afterimage.encoder import Encoder
from afterimage.errors import UserError
from afterimage.evaluation.text import probe_lines
from afterimage.evaluation.vectors import encoder_representation
from afterimage.finetune.source import SourceModel
from afterimage.models import FeatureInfo, pool_features
from afterimage.models.heads import POOLS
from afterimage.models.vector import (
    TRANSFORMS,
    VectorRecipe,
    candidates,
    moments_of,
    pooled_size,
    usual_pool,
)
from afterimage.pretrain.choice import choose
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.report import PretrainResult, advice, write_run_report
from afterimage.runs import Run
from tests import encoder_artefact
from tests.encoder_artefact import pictures


def correlated(n=400, d=6, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d) * 5
    return x.astype(np.float32)


def test_standardised_vectors_have_mean_0_and_deviation_1():
    x = correlated()
    x[:, 2] = 7  # constant: only centred
    z = VectorRecipe.fit("grid", "standardise", moments_of(x)).transformed(x)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(0), [1, 1, 0, 1, 1, 1], atol=1e-5)


def test_whitened_vectors_have_unit_covariance_and_leave_out_what_does_not_vary():
    x = correlated()
    both = np.concatenate([x, x[:, :1] - x[:, 1:2]], axis=1)
    z = VectorRecipe.fit("grid", "whiten", moments_of(both)).transformed(both)
    assert z.shape[1] == 6
    np.testing.assert_allclose(np.cov(z.T, bias=True), np.eye(6), atol=1e-3)


def test_few_images_are_whitened_to_few_numbers():
    vector = VectorRecipe.fit("grid", "whiten", moments_of(correlated(n=24)))
    assert vector.fitted["axes"].shape == (6, 3)
    constant = np.ones((20, 4), np.float32)
    z = VectorRecipe.fit("grid", "whiten", moments_of(constant)).transformed(constant)
    np.testing.assert_array_equal(z, np.zeros_like(z))


@pytest.mark.parametrize("size", [(16, 24), (8, 8), (20, 9)])
@pytest.mark.parametrize("pool", POOLS)
def test_the_size_of_a_pooling_is_known_without_maps(pool, size):
    info = [FeatureInfo("a", 3, 4), FeatureInfo("b", 5, 8)]
    shapes = [(1, *(-(-n // i.stride) for n in size), i.channels) for i in info]
    found = pool_features([jnp.zeros(shape) for shape in shapes], pool)
    assert pooled_size(info, size, pool) == found.shape[1]


def test_candidates_differ_and_are_not_too_wide():
    one, two = FeatureInfo("a", 3, 4), FeatureInfo("b", 700, 8)
    assert candidates([one], (16, 16)) == ("last", "grid")
    assert candidates([one], (4, 4)) == ("last",)
    assert candidates([one, dataclasses.replace(two, channels=5)], (16, 16)) == (
        "last",
        "grid",
        "pyramid-grid",
    )
    assert candidates([one, two], (16, 16)) == ("last",)
    assert usual_pool("pyramid-grid", [one], (16, 16)) == "grid"
    assert usual_pool("grid", [one], (4, 4)) == "last"
    assert usual_pool("grid-3", [one], (16, 16)) == "grid-3"
    assert usual_pool("grid", [two], (16, 16)) == "last"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    encoder_artefact.write(folder / "encoder")
    return afterimage.load_encoder(folder)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_stored_vector_is_what_features_gives_after_loading(
    plain, tmp_path, transform
):
    x = pictures(40)
    encoder = plain.with_vector("grid", transform, x)
    encoder.save(tmp_path / "encoder")
    again = afterimage.load_encoder(tmp_path)
    pooled = plain.features(x, pool="grid")
    recipe = VectorRecipe.fit("grid", transform, moments_of(pooled))
    found = again.features(x, batch_size=16)
    np.testing.assert_allclose(found, recipe.transformed(pooled), atol=1e-4)
    np.testing.assert_array_equal(found, encoder.features(x, batch_size=16))
    sizes = found.shape[1], again.num_features, again.vector_size()
    assert len(set(sizes)) == 1
    assert str(again.vector) in repr(again)
    # Plain poolings and maps do not depend on it.
    np.testing.assert_array_equal(again.features(x, pool="grid"), pooled)
    assert set(again.stats) == set(plain.stats)
    scored = encoder_representation("e", again)
    (layers,) = scored.stream([x])
    np.testing.assert_allclose(layers[scored.vector], found, atol=1e-4)


def test_apply_has_the_transform_and_a_gradient(plain):
    x = pictures(12)
    encoder = plain.with_vector("grid", "standardise", x)
    inside = jax.jit(encoder.apply)(encoder.params, x)
    np.testing.assert_allclose(inside, encoder.features(x), atol=1e-3)
    slope = jax.grad(lambda p: encoder.apply(p, jnp.asarray(x)).sum())(encoder.params)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope))


def test_images_of_another_size_fit_unless_the_grid_changes(plain):
    encoder = plain.with_vector("last", "standardise", pictures(12))
    assert encoder.features(pictures(2, (24, 16)), resize=False).shape == (2, 32)
    grid = plain.with_vector("grid", "standardise", pictures(12))
    with pytest.raises(UserError, match=r"32 numbers.*128.*pool='grid'"):
        grid.features(pictures(2, (8, 8)), resize=False)


def test_the_untrained_twin_pools_alike_and_has_no_statistics(plain):
    twin = plain.with_vector("grid", "whiten", pictures(40)).untrained()
    x = pictures(4)
    np.testing.assert_array_equal(twin.features(x), twin.features(x, pool="grid"))


def test_vectors_that_cannot_be_are_named(plain, tmp_path):
    with pytest.raises(UserError, match="pool='mean' must be one of last, pyramid"):
        plain.with_vector("mean")
    with pytest.raises(UserError, match="transform='pca' must be one of none"):
        VectorRecipe("grid", "pca")
    with pytest.raises(UserError, match="needs images"):
        plain.with_vector("grid", "whiten")
    encoder_artefact.write(tmp_path / "encoder", bottleneck=5)
    with pytest.raises(UserError, match="bottleneck"):
        afterimage.load_encoder(tmp_path).with_vector("grid")


@pytest.mark.parametrize(
    ("entry", "arrays", "says"),
    [
        ({"pool": "mean"}, {}, "pool='mean'"),
        ({"pool": "grid", "transform": "whiten"}, {}, "arrays"),
        ({"pool": "grid"}, {"mean": (128,)}, "arrays"),
        ({"pool": "last", "transform": "standardise"}, {"mean": (32,)}, "arrays"),
        (
            {"pool": "last", "transform": "standardise"},
            {"mean": (128,), "scale": (128,)},
            "128 statistics.*32 numbers",
        ),
        (
            {"pool": "grid", "transform": "whiten"},
            {"mean": (128,), "axes": (32, 4)},
            "arrays",
        ),
        (
            {"pool": "last", "transform": "standardise"},
            {"mean": (32,), "scale": (32,), "zero": ()},
            "arrays",
        ),
    ],
)
def test_an_artefact_that_contradicts_itself_is_refused(plain, entry, arrays, says):
    stats = {"vector": {k: np.ones(s, np.float32) for k, s in arrays.items()}}
    manifest = plain.manifest | {"vector": {"transform": "none"} | entry}
    with pytest.raises(CheckpointError, match=says):
        Encoder(plain.params, stats, manifest)


def test_fine_tuning_reads_maps_and_not_the_stored_vector(plain, tmp_path):
    plain.with_vector("grid", "whiten", pictures(40)).save(tmp_path / "encoder")
    _, stats, manifest = read_encoder(tmp_path)
    assert stats["vector"]
    assert manifest["vector"]["images"] == 40
    source = SourceModel.read(str(tmp_path)).encoder
    x = pictures(3)
    np.testing.assert_array_equal(source.features(x), plain.features(x))


def clusters(n, seed, *, noise):
    """Two numbers tell three classes apart; two more, perhaps larger, tell nothing."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    angle = labels * 2 * np.pi / 3
    useful = np.stack([np.cos(angle), np.sin(angle)], 1)
    useful += rng.normal(size=(n, 2)) * 0.2
    x = np.concatenate([useful, rng.normal(size=(n, 2)) * noise], 1)
    return x.astype(np.float32), labels


@pytest.mark.parametrize(("noise", "chosen"), [(300.0, "standardise"), (0.1, "none")])
def test_the_best_candidate_is_kept_and_the_own_one_unless_clearly_beaten(
    noise, chosen
):
    (x, labels), (z, truth) = (clusters(n, n, noise=noise) for n in (300, 150))
    train, held = {"last": x}, {"last": z}
    vector, entry = choose(("last", "none"), train, held, (labels, truth), k=5)
    if chosen == "none":
        assert vector.transform == "none"
    else:
        assert vector.transform in ("standardise", "whiten")
    tried = [(row["pool"], row["transform"]) for row in entry["scores"]]
    assert tried == [("last", t) for t in TRANSFORMS]
    scores = {row["transform"]: row["knn"] for row in entry["scores"]}
    assert (scores["standardise"] > scores["none"] + 0.1) == (chosen != "none")
    assert entry["images"] == 300
    json.dumps(entry)


def probes(ours, pixels, hog):
    rows = {"this encoder": ours, "raw pixels": pixels, "HOG": hog}
    keys = ("knn", "ridge_10", "ridge")
    accuracy = {name: dict.fromkeys(keys, value) for name, value in rows.items()}
    return {
        "effective_rank": 3.0,
        "images": 400,
        "classes": 10,
        "per_class": 10,
        "accuracy": accuracy,
    }


def test_a_run_that_loses_says_so_and_what_to_try(tmp_path):
    config = PretrainConfig(data="digits", out=str(tmp_path / "run"))
    lost, cures = advice(probes(0.3, 0.5, 0.6), config)
    assert "raw pixels" in lost
    assert "30.0 against 50.0 %" in lost
    assert "--augment" in cures
    lost, _ = advice(probes(0.55, 0.5, 0.7), config)
    assert "HOG" in lost
    assert "raw pixels" not in lost
    assert advice(probes(0.7, 0.5, 0.6), config) == []
    # 1 point of 400 images may be chance.
    assert advice(probes(0.49, 0.5, 0.4), config) == []
    assert advice({"effective_rank": 3.0}, config) == []
    found = probes(0.7, 0.5, 0.6)
    found["accuracy"]["untrained encoder"] = found["accuracy"]["this encoder"]
    assert advice(found, config) == []
    found["accuracy"]["untrained encoder"] = dict.fromkeys(
        found["accuracy"]["HOG"], 0.8
    )
    lost, _ = advice(found, config)
    assert "lose to the untrained encoder: " in lost
    assert "70.0 against 80.0 %" in lost


def test_the_summary_and_the_report_say_that_features_lose(tmp_path):
    config = PretrainConfig(data="digits", out=str(tmp_path / "run"))
    lost, said = probes(0.3, 0.5, 0.6), []
    for found in (lost, probes(0.7, 0.5, 0.6)):
        measured = {
            name: {key: {"value": v} for key, v in row.items()}
            for name, row in found["accuracy"].items()
        }
        with Run(config.out, kind="pretrain", config=config) as run:
            run.start_metrics(0)
            result = PretrainResult.of(run, config, complete=False, steps=3)
            more = {"probes": found, "advice": tuple(advice(found, config))}
            result = dataclasses.replace(result, **more)
            write_run_report(
                result,
                run=run,
                config=config,
                report=measured,
                parts={},
                probes=found,
                held_out=400,
                data="digits",
                vector="grid",
                model={"training images": "1,437 of 8x8x1"},
                origin=None,
                reached=None,
            )
        said.append((result.summary(), result.report.read_text()))
    loses, tries = "The features lose to raw pixels", "Try: --"
    for text in said[0]:
        assert loses in text
        assert tries in text
    for text in said[1]:
        assert loses not in text
        assert tries not in text


def test_probes_are_told_in_lines():
    assert probe_lines(None) == []
    few, every, near, about = probe_lines(probes(0.3, 0.5, 0.6))
    assert few == "linear probe, 10 labels a class: 30.0 % (raw pixels 50.0, HOG 60.0)"
    assert (every.split(":")[0], near.split(":")[0]) == (
        "linear probe, all labels",
        "kNN",
    )
    assert about.startswith("on 400 held-out images of 10 classes")
    (alone,) = probe_lines({"effective_rank": 3.0})
    assert "without labels" in alone
