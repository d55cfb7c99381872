import pickle
import shutil

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import afterimage
from afterimage.errors import UserError
from afterimage.sklearn import EncoderTransformer, ImageClassifier
from tests import classifier_artefact, encoder_artefact
from tests.encoder_artefact import pictures


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    encoder_artefact.write(folder / "encoder")
    return str(folder)


def _bright_and_dark(n=40):
    labels = np.arange(n) % 2
    shade = np.where(labels, 60, 0)[:, None, None, None]
    return (pictures(n) // 2 + shade).astype(np.uint8), labels


def test_it_gives_the_encoders_features(path):
    x = pictures(10)
    transformer = EncoderTransformer(path, batch_size=4)
    encoder = afterimage.load_encoder(path)
    np.testing.assert_allclose(
        transformer.fit_transform(x), encoder.features(x), atol=1e-5
    )
    flat = transformer.transform(x.reshape(10, -1))
    np.testing.assert_allclose(flat, encoder.features(x), atol=1e-5)
    mixed = transformer.transform([x[0], pictures(1, (30, 20))[0]])
    assert mixed.shape == (2, encoder.num_features)
    assert transformer.n_features_in_ == 16 * 16 * 3
    assert len(transformer.get_feature_names_out()) == encoder.num_features


def test_maps_are_pooled_and_named(path):
    x = pictures(10)
    transformer = EncoderTransformer(path, batch_size=4, output="maps").fit(x)
    maps = afterimage.load_encoder(path).feature_maps(x)
    want = np.concatenate([m.mean((1, 2)) for m in maps], axis=1)
    np.testing.assert_allclose(transformer.transform(x), want, atol=1e-5)
    names = transformer.get_feature_names_out()
    assert len(names) == want.shape[1]
    assert names[0] == "stages/0:0"


def test_means_of_a_grid_over_views(path):
    x = pictures(10)
    transformer = EncoderTransformer(path, output="grid-3", views="flip").fit(x)
    want = afterimage.load_encoder(path).features(x, pool="grid-3", views="flip")
    found = transformer.transform(x)
    np.testing.assert_array_equal(found, want)
    names = transformer.get_feature_names_out()
    assert [len(names), names[1]] == [want.shape[1], "grid-3:1"]


@pytest.mark.slow
def test_pipeline_clone_and_parallel_grid_search(path):
    x, y = _bright_and_dark()
    pipeline = make_pipeline(
        EncoderTransformer(path, batch_size=16), StandardScaler(), LogisticRegression()
    )
    search = GridSearchCV(
        clone(pipeline),
        {"encodertransformer__output": ["features", "maps"]},
        cv=2,
        n_jobs=2,
        error_score="raise",
    )
    search.fit(x, y)
    assert search.best_score_ > 0.9
    assert search.predict(x[:4]).tolist() == y[:4].tolist()


def test_a_pickle_carries_the_path_and_not_the_weights(path, tmp_path):
    x = pictures(3)
    transformer = EncoderTransformer(path)
    want = transformer.fit_transform(x)
    data = pickle.dumps(transformer)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data).transform(x), want)


def test_a_folder_written_anew_is_loaded_anew(tmp_path):
    x = pictures(3)
    encoder_artefact.write(tmp_path / "encoder", bottleneck=4)
    transformer = EncoderTransformer(tmp_path).fit(x)
    assert transformer.transform(x).shape == (3, 4)
    shutil.rmtree(tmp_path / "encoder")
    encoder_artefact.write(tmp_path / "encoder", bottleneck=6)
    assert transformer.transform(x).shape == (3, 6)


def test_bad_input_is_named(path):
    with pytest.raises(UserError, match="output='rows'"):
        EncoderTransformer(path, output="rows").fit(pictures(2))
    with pytest.raises(UserError, match=r"12 numbers.*16 x 16 x 3\) have 768"):
        EncoderTransformer(path).fit(np.zeros((2, 12)))
    with pytest.raises(ValueError, match="0 sample"):
        EncoderTransformer(path).fit(np.zeros((0, 768)))
    with pytest.raises(UserError, match="-gone does not exist"):
        EncoderTransformer(path + "-gone").fit(pictures(2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return classifier_artefact.write(tmp_path_factory.mktemp("classifier"))


def test_a_classifier_predicts_as_the_loaded_one(run):
    x = pictures(6)
    ours, loaded = ImageClassifier(run, batch_size=4), afterimage.load_classifier(run)
    names = loaded.predict(x)
    assert ours.predict(x.reshape(6, -1)).tolist() == names.tolist()
    wanted = loaded.predict_proba(x)
    np.testing.assert_allclose(ours.predict_proba(x), wanted, atol=1e-6)
    assert ours.fit(x, names).score(x, names) == 1
    assert is_classifier(ours)
    calibrated = CalibratedClassifierCV(FrozenEstimator(ours), cv=2)
    calibrated.fit(pictures(42, seed=1), np.tile(["a", "b", "c"], 14))
    # Random labels: whatever it predicts, it must not be sure.
    assert calibrated.predict_proba(x).max() < 0.9
    again = pickle.loads(pickle.dumps(clone(ours)))
    assert again.predict(x).tolist() == names.tolist()
    with pytest.raises(UserError, match="does not know the classes cat, dog"):
        ours.fit(x, ["a", "b", "cat", "dog", "c", "a"])


def test_the_decision_of_two_classes_is_one_number(tmp_path):
    two = {"classes": ("no", "yes")}
    ours, x = ImageClassifier(classifier_artefact.write(tmp_path, 0, two)), pictures(9)
    decision = ours.decision_function(x)
    assert decision.shape == (9,)
    sigmoid = 1 / (1 + np.exp(-decision))
    np.testing.assert_allclose(ours.predict_proba(x)[:, 1], sigmoid, rtol=1e-5)
    assert ((decision > 0) == (ours.predict(x) == "yes")).all()


# Why a check of scikit-learn's cannot hold. All others must pass.
LENGTH = "a row always has the length of an image of the trained size"
LEARNS = "it is trained already, and `fit` learns no new classes"
SKIPPED = {
    "check_do_not_raise_errors_in_init_or_set_params": "in tests beartype refuses them",
    "check_n_features_in_after_fitting": LENGTH,
    "check_methods_subset_invariance": "batches of other sizes round otherwise (1e-6)",
    "check_n_features_in": LENGTH,
    "check_transformer_general": LENGTH,
    "check_classifiers_train": LEARNS,
    "check_classifiers_one_label": LEARNS,
    "check_classifiers_classes": LEARNS,
    "check_decision_proba_consistency": f"it expects two classes, {LEARNS}",
}


class Numbered(ImageClassifier):
    """Its classes are 0, 1, 2, because the checks compare them with numbers."""

    @property
    def classes_(self):
        return np.arange(3)


def tiled(rows, preprocessing):
    """Images of any rows: the checks have rows of 1 to 10 numbers, and no images."""
    shape = (*preprocessing.image_size, preprocessing.channels)
    shares = 1 / (1 + np.exp(-np.asarray(rows, np.float64)))
    repeats = -(-int(np.prod(shape)) // rows.shape[1])
    pixels = np.tile(shares, (1, repeats))[:, : int(np.prod(shape))]
    return pixels.reshape(-1, *shape).astype(np.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [Numbered, EncoderTransformer])
def test_the_contract_of_scikit_learn(run, monkeypatch, kind):
    """scikit-learn's own checks, on rows made into images of the trained size."""
    monkeypatch.setattr("afterimage.sklearn._rows_as_images", tiled)
    monkeypatch.setattr("afterimage.sklearn._check_known", lambda y, classes: None)
    found = check_estimator(kind(run), expected_failed_checks=SKIPPED, on_fail=None)
    status = {(one["check_name"], one["status"]) for one in found}
    assert {name for name, what in status if what == "failed"} == set()
    passed = {name for name, what in status if what == "passed"}
    mine = "classifier" if kind is Numbered else "transformer"
    wanted = {n for n in SKIPPED if mine in n or "n_features" in n}
    assert wanted - passed == wanted  # a reason that no longer holds is taken out
    assert len(passed) > 35
