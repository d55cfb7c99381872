"""The same network in PyTorch and here gives the same features, both ways."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afterimage import known, load_encoder
from afterimage.checkpoints.weights import decode, encode
from afterimage.commands import main
from afterimage.errors import UserError
from afterimage.known import export_encoder, import_encoder, read_weights
from afterimage.models.layers import FrozenBatchNorm, PassInfo
from tests import encoder_artefact
from tests.encoder_artefact import pictures
from tests.torchvision_models import (
    MOBILE,
    NARROW,
    SHAPES,
    build,
    feature_maps,
    make_narrow,
    of_torchvision,
)

torch = pytest.importorskip("torch")

SIZES = ((65, 67), (96, 64))


@pytest.fixture
def narrow(monkeypatch):
    make_narrow(monkeypatch)


def _write(model, path):
    state = model.state_dict()
    if path.suffix == ".safetensors":
        path.write_bytes(encode({k: v.numpy() for k, v in state.items()}))
    else:
        torch.save(state, path)
    return path


def _assert_same_maps(model, encoder, sizes=SIZES):
    for size in sizes:
        images = pictures(2, size)
        ours = encoder.feature_maps(images, resize=False)
        theirs = feature_maps(model, encoder.preprocessing.normalise(images))
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def _assert_parity_both_ways(name, model, tmp_path, sizes=SIZES):
    path = _write(model, tmp_path / "x.safetensors")
    made = import_encoder(path, name, tmp_path / "encoder")
    assert all(key.startswith(("fc.", "classifier.")) for key in made.head)
    _assert_same_maps(model, load_encoder(tmp_path / "encoder"), sizes)
    export_encoder(tmp_path / "encoder", tmp_path / "back.safetensors")
    back = decode((tmp_path / "back.safetensors").read_bytes(), "back")
    theirs = model.state_dict()
    assert back.keys() == theirs.keys() - set(made.head)
    for key, array in back.items():
        np.testing.assert_array_equal(array, theirs[key].numpy(), key)


@pytest.mark.parametrize("name", NARROW)
def test_the_same_features_both_ways(name, narrow, tmp_path):
    _assert_parity_both_ways(name, build(name, 0, NARROW), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHAPES, *MOBILE])
def test_the_same_features_both_ways_as_published(name, tmp_path):
    _assert_parity_both_ways(name, build(name, 0), tmp_path, ((64, 64), (97, 66)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHAPES, "mobilenet_v2"])
def test_the_same_features_both_ways_as_torchvision(name, tmp_path):
    model = of_torchvision(name, pytest.importorskip("torchvision"))
    _assert_parity_both_ways(name, model, tmp_path, ((64, 64), (97, 66)))


@pytest.mark.slow
def test_resnet50_at_its_own_size(tmp_path):
    model = build("resnet50", seed=0)
    import_encoder(_write(model, tmp_path / "x.pth"), "resnet50", tmp_path / "e")
    _assert_same_maps(model, load_encoder(tmp_path / "e"), [(224, 224)])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"name": "conv"}, "model conv"),
        ({"name": "resnet18", "stem_stride": 1}, "stem_stride=1, not 4"),
        ({"name": "resnet18", "norm": "none"}, "norm=none, not frozen or batch"),
        ({"name": "resnet18", "norm": "rms"}, "norm=rms, not"),
        ({"name": "resnet18", "norm": "batch", "width": 0.5}, "width=0.5, not 1"),
        ({"name": "resnet18", "norm": "batch", "bottleneck": 3}, "a bottleneck"),
    ],
)
def test_what_torchvision_lacks_is_not_exported(narrow, tmp_path, settings, complaint):
    settings = {"width": 1.0, "image_size": (32, 32), "stem_stride": 4} | settings
    encoder_artefact.write(tmp_path / "e", **settings)
    with pytest.raises(UserError, match=complaint):
        export_encoder(tmp_path / "e", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_frozen_batchnorm_is_a_constant_affine_map_in_training_too():
    norm, rng = FrozenBatchNorm(3), np.random.default_rng(0)
    scale, bias, mean = rng.normal(size=(3, 3)).astype(np.float32)
    var = rng.uniform(0.5, 2, 3).astype(np.float32)
    leaves = {"scale": scale, "bias": bias, "mean": mean, "var": var}
    for name, value in leaves.items():
        getattr(norm, name)[...] = value
    assert not nnx.state(norm, nnx.Param)
    x = rng.normal(size=(2, 4, 4, 3)).astype(np.float32)
    want = (x - mean) / np.sqrt(var + 1e-5)
    want = want * scale + bias
    for train in (True, False):
        found = norm(jnp.asarray(x), PassInfo(train=train))
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    for name, value in leaves.items():
        np.testing.assert_array_equal(getattr(norm, name)[...], value)


def test_the_commands(narrow, tmp_path, capsys):
    path = _write(build("resnet18", 0, NARROW), tmp_path / "x.pth")
    folder, back = str(tmp_path / "e"), str(tmp_path / "b.safetensors")
    arguments = ["import", str(path), "--model", "resnet18"]
    main([*arguments, "--out", folder, "--image-size", "64"])
    assert "head was left out: fc.bias" in capsys.readouterr().out
    encoder = load_encoder(folder)
    assert encoder.preprocessing.mean == (0.485, 0.456, 0.406)
    assert encoder.features(pictures(2, (80, 90))).shape == (2, 16)
    main(["export", folder, "--to", "torchvision", "--out", back])
    theirs = read_weights(path)
    for name, array in read_weights(back).items():
        np.testing.assert_array_equal(array, theirs[name])


def test_every_mismatch_is_listed_and_the_right_model_named(
    narrow, monkeypatch, tmp_path
):
    some = {name: known.KNOWN[name] for name in ("resnet18", "resnet34")}
    monkeypatch.setattr(known, "KNOWN", some)
    state = build("resnet18", 0, NARROW).state_dict()
    weights = {k: v.numpy() for k, v in state.items()}
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode(weights))
    with pytest.raises(UserError, match="it is a resnet18"):
        import_encoder(path, "resnet34", tmp_path / "e")
    del weights["bn1.bias"]
    weights |= {"odd": np.zeros(1), "conv1.weight": np.zeros((64, 3, 3, 3))}
    path.write_bytes(encode(weights))
    with pytest.raises(UserError) as error:
        import_encoder(path, "resnet18", tmp_path / "e")
    for part in (
        "missing bn1.bias",
        "unexpected odd",
        "conv1.weight is (64, 3, 3, 3), expected (8, 3, 7, 7)",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "e").exists()


def test_timms_vgg_heads_are_left_out(narrow, tmp_path):
    state = build("vgg11", 0, NARROW).state_dict()
    weights = {k: v.numpy() for k, v in state.items() if k.startswith("features.")}
    weights |= {n: np.zeros(2) for n in ("pre_logits.fc1.weight", "head.fc.weight")}
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode(weights))
    done = import_encoder(path, "vgg11", tmp_path / "e")
    assert done.head == ("head.fc.weight", "pre_logits.fc1.weight")
