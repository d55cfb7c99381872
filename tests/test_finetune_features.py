"""Feature selection: closed forms, what each method finds, and a run that uses it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.classifier import load_classifier
from afterimage.encoder import load_encoder
from afterimage.evaluation.configs import EvaluateConfig
from afterimage.finetune.evaluate import evaluate
from afterimage.finetune.methods.feature_selection import (
    FeatureSelection,
    best_features,
    fisher_score,
    mutual_information,
)
from afterimage.finetune.run import finetune
from tests.test_finetune_program import config, draw, make_encoder, write_npz

METHODS = ("fisher", "mutual-information", "l1")


def test_fisher_score_of_four_examples():
    """Means 1 and 5 about 3, variances 1: 16 / 4. A constant says nothing; one that is
    the class itself says everything."""
    x = np.array([[0.0, 7, 1], [2, 7, 1], [4, 7, 2], [6, 7, 2]])
    np.testing.assert_allclose(fisher_score(x, np.array([0, 0, 1, 1])), [4, 0, np.inf])


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 10), st.floats(-5, 5), st.integers(0, 99))
def test_fisher_score_knows_no_units(scale, shift, seed):
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(30, 2)), np.arange(30) % 3
    np.testing.assert_allclose(
        fisher_score(scale * x + shift, labels), fisher_score(x, labels), rtol=1e-6
    )


def test_mutual_information_of_a_coin():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    x = np.stack([labels + 0.01 * rng.normal(size=400), rng.normal(size=400)], 1)
    found = mutual_information(x, labels, seed=0)
    assert found[0] == pytest.approx(np.log(2), abs=0.02)
    assert found[1] < 0.05


def informative(seed=0, count=300, width=20):
    """Three of the features tell the three classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    x = rng.normal(size=(count, width))
    for label, position in enumerate((3, 8, 15)):
        x[:, position] += 2.5 * (labels == label)
    return x, labels


@pytest.mark.parametrize("method", METHODS)
def test_the_features_that_say_something_are_kept(method):
    found = best_features(method, *informative(), 3, seed=0)
    assert found.tolist() == [3, 8, 15]
    assert found.dtype == np.int32


def test_l1_keeps_one_of_two_that_say_the_same():
    """A score of each alone keeps the copy and drops what it does not hold."""
    rng = np.random.default_rng(1)
    labels = np.arange(400) % 4
    left, right = labels // 2, labels % 2
    x = rng.normal(size=(400, 6))
    x[:, 0] = 3.0 * left + 0.5 * rng.normal(size=400)
    x[:, 1] = x[:, 0] + 0.01 * rng.normal(size=400)
    x[:, 4] = 2.0 * right + 0.5 * rng.normal(size=400)
    x = (x - x.mean(0)) / x.std(0)
    assert best_features("fisher", x, labels, 2, seed=0).tolist() == [0, 1]
    sparse = best_features("l1", x, labels, 2, seed=0).tolist()
    assert len(set(sparse) & {0, 1}) == 1
    assert 4 in sparse


def test_a_run_selects_on_its_training_images_and_keeps_the_selection(tiny, tmp_path):
    make_encoder(tmp_path / "encoder")
    write_npz(tmp_path / "data.npz")
    settings = {
        "mode": "probe",
        "features": "pyramid",
        "methods": FeatureSelection(score="fisher", keep=5),
        "steps": 2,
        "labels": 30,
    }
    result = finetune(config(tmp_path, tmp_path / "run", **settings))
    features = result.results["features"]
    kept = features["kept"]["classes"]
    loaded = load_classifier(str(result.run))
    stored = loaded.stats["heads"]["classes"]
    assert np.asarray(stored["kept"]).tolist() == kept
    assert loaded.params["heads"]["classes"]["linear"]["kernel"].shape == (5, 3)
    # By hand: the frozen encoder's features of the images in labels.json alone.
    import json

    listed = json.loads((result.run / "labels.json").read_text())["train"]
    rows = sorted(int(i) for ids in listed.values() for i in ids)
    images, names = draw(0, 60)
    labels = np.unique(names[rows], return_inverse=True)[1]
    maps = load_encoder(tmp_path / "encoder").feature_maps(images[rows])
    x = np.concatenate([np.asarray(m).mean((1, 2)) for m in maps], 1)
    assert features["of"] == x.shape[1]
    assert best_features("fisher", x, labels, 5, seed=0).tolist() == kept
    # And the artefact alone scores as the run did.
    data = f"npz:{tmp_path / 'data.npz'}"
    again = evaluate(EvaluateConfig(from_=str(result.run), data=data))
    assert again["confusion"] == result.results["test"]["confusion"]
    assert "Feature selection" in result.report.read_text()
