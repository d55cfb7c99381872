import numpy as np
import pytest

from afterimage import export, load_encoder
from afterimage.commands import features
from afterimage.data import open_data
from afterimage.errors import DataError, UserError
from afterimage.evaluation.configs import FeaturesConfig
from tests import encoder_artefact


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    encoder_artefact.write(folder / "encoder")
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return encoder_artefact.shades(tmp_path_factory.mktemp("data") / "shades.npz")


def test_features_writes_every_image(run, data, tmp_path, capsys):
    out = str(tmp_path / "f.npz")
    features.main(["--from", run, "--data", data, "--out", out])
    assert "60 feature vectors" in capsys.readouterr().out
    with np.load(out) as arrays:
        assert arrays["split"].tolist() == ["train"] * 42 + ["test"] * 18
        assert arrays["label"].tolist() == [i % 3 for i in range(60)]


def test_features_of_one_split(run, data, tmp_path):
    config = FeaturesConfig(
        from_=run, data=data, out=str(tmp_path / "f.npy"), split="test"
    )
    assert export.features(config) == 18
    with pytest.raises(DataError, match=r"no validation split.*train, test"):
        features.main(
            f"--from {run} --data {data} --out {config.out} --split validation".split()
        )


def test_features_of_a_grid_over_views(run, data, tmp_path):
    out = tmp_path / "f.npy"
    command = f"--from {run} --data {data} --out {out} --pool grid-3 --views flip"
    features.main(command.split())
    images = open_data(data).train
    x = images.gather(np.arange(len(images)))
    want = load_encoder(run).features(x, pool="grid-3", views="flip")
    np.testing.assert_allclose(np.load(out)[: len(x)], want, atol=1e-5)


def test_a_bad_suffix_is_named_before_anything_is_read(tmp_path):
    config = FeaturesConfig(
        from_=str(tmp_path / "nowhere"), data="nothing", out="f.csv"
    )
    with pytest.raises(UserError, match=r"\.csv"):
        export.features(config)
