import pickle
import shutil

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import afterimage
from afterimage.errors import UserError
from afterimage.sklearn import EncoderTransformer
from tests import encoder_artefact
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
    with pytest.raises(UserError, match=r"12 numbers.*16 x 16 x 3 have 768"):
        EncoderTransformer(path).fit(np.zeros((2, 12)))
    with pytest.raises(UserError, match="no images"):
        EncoderTransformer(path).fit(np.zeros((0, 768)))
    with pytest.raises(UserError, match="-gone does not exist"):
        EncoderTransformer(path + "-gone").fit(pictures(2))
