"""The same network in PyTorch and here gives the same features, both ways."""

import numpy as np
import pytest
from flax import nnx

from afterimage import load_encoder
from afterimage.__main__ import main
from afterimage.errors import UserError
from afterimage.known import export_encoder, import_encoder, read_weights
from afterimage.models import ModelConfig, Network, build_encoder
from checkpoints import tensors
from tests.encoder_artefact import pictures
from tests.torchvision_models import build, feature_maps

torch = pytest.importorskip("torch")

SIZES = ((32, 32), (65, 65), (96, 64))
MODELS = (
    "resnet18",
    pytest.param("vgg11", marks=pytest.mark.slow),
    "vgg11_bn",
    pytest.param("resnet34", marks=pytest.mark.slow),
    pytest.param("resnet50", marks=pytest.mark.slow),
    pytest.param("vgg16", marks=pytest.mark.slow),
    pytest.param("vgg16_bn", marks=pytest.mark.slow),
)


def _write(model, path):
    state = model.state_dict()
    if path.suffix == ".safetensors":
        path.write_bytes(tensors.encode({k: v.numpy() for k, v in state.items()}))
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


@pytest.mark.parametrize("name", MODELS)
def test_the_same_features_both_ways(name, tmp_path):
    model = build(name, seed=0)
    path = _write(model, tmp_path / "x.safetensors")
    import_encoder(path, name, tmp_path / "encoder")
    encoder = load_encoder(tmp_path / "encoder")
    _assert_same_maps(model, encoder)
    export_encoder(tmp_path / "encoder", tmp_path / "back.safetensors")
    back = tensors.decode((tmp_path / "back.safetensors").read_bytes(), "back")
    other = build(name, seed=1)
    state = {k: torch.from_numpy(v.copy()) for k, v in back.items()}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.startswith(("fc.", "classifier.")) for key in missing)
    _assert_same_maps(other, encoder, SIZES[:1])


@pytest.mark.slow
def test_resnet50_at_its_own_size(tmp_path):
    model = build("resnet50", seed=0)
    import_encoder(_write(model, tmp_path / "x.pth"), "resnet50", tmp_path / "e")
    _assert_same_maps(model, load_encoder(tmp_path / "e"), [(224, 224)])


def test_frozen_batchnorm_has_no_parameter_and_does_not_move(tmp_path):
    config = ModelConfig("resnet18", image_size=(32, 32), norm="frozen", stem_stride=4)
    network, params, stats = Network.create(build_encoder(config, rngs=nnx.Rngs(0)))
    assert "norm" not in params["stem"]
    images = pictures(2, (32, 32)).astype(np.float32)
    _, after = network.apply(params, stats, images, train=True)
    np.testing.assert_array_equal(
        after["stem"]["norm"]["mean"], stats["stem"]["norm"]["mean"]
    )


def test_the_commands(tmp_path, capsys):
    path = _write(build("resnet18", seed=0), tmp_path / "x.pth")
    folder, back = str(tmp_path / "e"), str(tmp_path / "b.safetensors")
    arguments = ["checkpoints", "import", str(path), "--model", "resnet18"]
    main([*arguments, "--out", folder, "--image-size", "64"])
    assert "left out the classification head: fc.bias" in capsys.readouterr().out
    encoder = load_encoder(folder)
    assert encoder.preprocessing.mean == (0.485, 0.456, 0.406)
    assert encoder.features(pictures(2, (80, 90))).shape == (2, 512)
    main(["checkpoints", "export", folder, "--out", back])
    theirs = read_weights(path)
    for name, array in read_weights(back).items():
        np.testing.assert_array_equal(array, theirs[name])


def test_every_mismatch_is_listed_and_the_right_model_named(tmp_path):
    state = build("resnet18", seed=0).state_dict()
    weights = {k: v.numpy() for k, v in state.items()}
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensors.encode(weights))
    with pytest.raises(UserError, match="it is a resnet18"):
        import_encoder(path, "resnet34", tmp_path / "e")
    del weights["bn1.bias"]
    weights |= {"odd": np.zeros(1), "conv1.weight": np.zeros((64, 3, 3, 3))}
    path.write_bytes(tensors.encode(weights))
    with pytest.raises(UserError) as error:
        import_encoder(path, "resnet18", tmp_path / "e")
    for part in ("missing bn1.bias", "unexpected odd", "conv1.weight is (64, 3, 3, 3)"):
        assert part in str(error.value)
    assert not (tmp_path / "e").exists()


def test_timms_vgg_heads_are_left_out(tmp_path):
    state = build("vgg11", seed=0).state_dict()
    weights = {k: v.numpy() for k, v in state.items() if k.startswith("features.")}
    weights |= {n: np.zeros(2) for n in ("pre_logits.fc1.weight", "head.fc.weight")}
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensors.encode(weights))
    done = import_encoder(path, "vgg11", tmp_path / "e")
    assert done.head == ("head.fc.weight", "pre_logits.fc1.weight")
