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


def test_principal_components_are_the_same_for_every_split(run, data, tmp_path, capsys):
    whole, part = (tmp_path / name for name in ("whole.npy", "part.npy"))
    command = f"--from {run} --data {data} --dim 3"
    features.main([*command.split(), "--out", str(whole)])
    said = capsys.readouterr().err
    assert "3 principal components of 42 images" in said
    features.main([*command.split(), "--out", str(part), "--split", "test"])
    np.testing.assert_array_equal(np.load(part), np.load(whole)[42:])
    images = open_data(data).train
    x = load_encoder(run).features(images.gather(np.arange(42)))
    centred = x.astype(np.float64) - x.mean(0)
    _, sigma, axes = np.linalg.svd(centred, full_matrices=False)
    found = np.load(whole)[:42]
    np.testing.assert_allclose(np.abs(found), np.abs(centred @ axes[:3].T), atol=1e-4)
    share = float((sigma[:3] ** 2).sum() / (sigma**2).sum())
    assert f"{share:.1%} of the variance" in said


@pytest.mark.parametrize(
    ("dim", "pool", "says"),
    [
        (33, "vector", "have 32 numbers"),
        (42, "pyramid-grid", "42 images"),
        (0, "last", "dim=0"),
    ],
)
def test_too_many_components_are_refused(run, data, tmp_path, dim, pool, says):
    out = str(tmp_path / "f.npy")
    with pytest.raises(UserError, match=says):
        export.features(
            FeaturesConfig(from_=run, data=data, out=out, dim=dim, pool=pool)
        )
    assert not list(tmp_path.iterdir())


def test_a_bad_suffix_is_named_before_anything_is_read(tmp_path):
    config = FeaturesConfig(
        from_=str(tmp_path / "nowhere"), data="nothing", out="f.xls"
    )
    with pytest.raises(UserError, match=r"\.xls"):
        export.features(config)
