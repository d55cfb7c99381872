"""ConvNeXt with timm's weights, V1 and V2: the same maps and features, both ways."""

import warnings

import numpy as np
import pytest

from afterimage import load_encoder
from afterimage.checkpoints.trees import flatten
from afterimage.checkpoints.weights import decode, encode, read_encoder
from afterimage.errors import UserError
from afterimage.finetune import FinetuneConfig
from afterimage.finetune.run import finetune
from afterimage.known import export_encoder, import_encoder
from afterimage.plugins import ENCODERS
from tests import encoder_artefact
from tests.encoder_artefact import pictures

SIZES = ("atto", "femto", "pico", "nano", "tiny")
NARROW = {"widths": (8, 16, 24, 32), "depths": (1, 2, 1, 1)}


@pytest.fixture
def narrow(monkeypatch):
    for name in ("convnext_atto", "convnextv2_atto", "convnext_tiny"):
        for field, value in NARROW.items():
            monkeypatch.setattr(ENCODERS.get(name), field, value)


def _timm():
    pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own, on import
        return pytest.importorskip("timm")


def _random(model, seed=0):
    """In evaluation mode; every weight matters, layer scale and GRN included."""
    import torch

    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith(("gamma", "grn.weight")):
            torch.nn.init.normal_(weight, std=0.5)
        elif weight.ndim == 1:
            mean = 1.0 if name.endswith("weight") else 0.0
            torch.nn.init.normal_(weight, mean, 0.2)
        else:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return model.eval()


def _assert_parity_both_ways(model, name, folder, sizes):
    import torch

    state = {k: v.numpy() for k, v in model.state_dict().items()}
    (folder / "x.safetensors").write_bytes(encode(state))
    import_encoder(folder / "x.safetensors", name, folder / "e")
    encoder = load_encoder(folder / "e")
    for size in sizes:
        images = pictures(2, size)
        given = np.array(encoder.preprocessing.normalise(images)).transpose(0, 3, 1, 2)
        with torch.no_grad():
            last, maps = model.forward_intermediates(torch.from_numpy(given))
            vector = model.forward_head(last, pre_logits=True).numpy()
        ours = encoder.feature_maps(images, resize=False)
        for a, b in zip(ours, maps, strict=True):
            b = b.permute(0, 2, 3, 1).numpy()
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
        found = encoder.features(images, resize=False)
        np.testing.assert_allclose(found, vector, rtol=1e-4, atol=1e-4)
    export_encoder(folder / "e", folder / "back.safetensors")
    back = decode((folder / "back.safetensors").read_bytes(), "back")
    assert back.keys() == {n for n in state if not n.startswith("head.fc.")}
    for key, array in back.items():
        assert array.shape == state[key].shape
        np.testing.assert_array_equal(array, state[key], key)


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "convnext_tiny"])
def test_the_same_features_as_timm_both_ways(name, narrow, tmp_path):
    v2 = {"use_grn": True, "ls_init_value": None} if "v2" in name else {}
    model = _timm().models.convnext.ConvNeXt(
        dims=NARROW["widths"],
        depths=NARROW["depths"],
        num_classes=4,
        conv_mlp=not name.endswith("tiny"),
        **v2,
    )
    _assert_parity_both_ways(_random(model), name, tmp_path, ((64, 64), (96, 32)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [f"convnext{v}_{size}" for v in ("", "v2") for size in SIZES]
)
def test_the_same_features_as_timm_as_published(name, tmp_path):
    model = _random(_timm().create_model(name))
    sizes = ((64, 64), (96, 128), (224, 224))
    _assert_parity_both_ways(model, name, tmp_path, sizes)


def _weights(name, folder):
    """A file with random weights under timm's names, by us; {name: array}."""
    encoder_artefact.write(folder / "e", name=name, width=1.0, stem_stride=4)
    export_encoder(folder / "e", folder / "x.safetensors")
    return decode((folder / "x.safetensors").read_bytes(), "x")


def _leaves(folder):
    return flatten(read_encoder(folder)[0])


_AUTHORS = (
    ("stem.", "downsample_layers.0."),
    *((f"stages.{n}.downsample.", f"downsample_layers.{n}.") for n in (1, 2, 3)),
    *((".blocks.", "."), (".conv_dw.", ".dwconv."), (".mlp.fc", ".pwconv")),
    *((".mlp.grn.weight", ".grn.gamma"), (".mlp.grn.bias", ".grn.beta")),
    ("head.norm.", "norm."),
)


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_the_authors_names_and_shapes(name, narrow, tmp_path):
    theirs = {}
    for key, array in _weights(name, tmp_path).items():
        for new, old in _AUTHORS:
            key = key.replace(new, old)
        if "pwconv" in key and array.ndim == 4:
            array = array[:, :, 0, 0]  # linear layers
        theirs[key] = array[None, None, None] if "grn" in key else array
    path = tmp_path / "old.safetensors"
    path.write_bytes(encode(theirs | {"head.weight": np.zeros((4, 32), np.float32)}))
    made = import_encoder(path, name, tmp_path / "back")
    assert made.head == ("head.weight",)
    found, want = _leaves(tmp_path / "back"), _leaves(tmp_path / "e")
    assert found.keys() == want.keys()
    for leaf, array in want.items():
        np.testing.assert_array_equal(found[leaf], array, leaf)


@pytest.mark.slow
def test_weights_of_fcmae_have_no_norm_of_the_vector(narrow, tmp_path):
    weights = _weights("convnextv2_atto", tmp_path)
    bare = {k: v for k, v in weights.items() if not k.startswith("head.")}
    path = tmp_path / "fcmae.safetensors"
    path.write_bytes(encode(bare))
    made = import_encoder(path, "convnextv2_atto", tmp_path / "fcmae")
    assert made.without_norm
    assert "start as 1 and 0" in str(made)
    images = pictures(3, (64, 64))
    encoder = load_encoder(tmp_path / "fcmae")
    mean = encoder.feature_maps(images, resize=False)[-1].mean((1, 2))
    want = (mean - mean.mean(-1, keepdims=True)) / np.sqrt(
        mean.var(-1, keepdims=True) + 1e-6
    )
    found = encoder.features(images, resize=False)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    del weights["head.norm.bias"]  # half a norm is a damaged file
    path.write_bytes(encode(weights))
    with pytest.raises(UserError, match=r"missing head\.norm\.bias"):
        import_encoder(path, "convnextv2_atto", tmp_path / "half")


@pytest.mark.slow
def test_v2_is_not_taken_for_v1(narrow, tmp_path):
    _weights("convnextv2_atto", tmp_path)
    with pytest.raises(UserError, match="it is a convnextv2_atto"):
        import_encoder(tmp_path / "x.safetensors", "convnext_atto", tmp_path / "no")
    encoder_artefact.write(tmp_path / "rms", name="convnext_atto", norm="rms")
    with pytest.raises(UserError, match=r"stem_stride=1, not 4; norm=rms, not layer"):
        export_encoder(tmp_path / "rms", tmp_path / "no.safetensors")


def test_the_norm_is_left_out_of_other_vectors(narrow, tmp_path):
    _weights("convnext_atto", tmp_path)
    encoder, images = load_encoder(tmp_path / "e"), pictures(5)
    assert "normed mean of the last map" in repr(encoder)
    mean = encoder.features(images, pool="last")
    assert not np.allclose(encoder.features(images), mean, atol=0.1)
    made = encoder.with_vector("pyramid", "standardise", images)
    made.save(tmp_path / "made")
    found = load_encoder(tmp_path / "made").features(images)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    assert found.shape == (5, sum(NARROW["widths"]))


@pytest.mark.slow
def test_fine_tuning_trains_the_norm_of_the_vector(narrow, tmp_path):
    _weights("convnext_atto", tmp_path)
    data = encoder_artefact.shades(tmp_path / "shades.npz")
    config = FinetuneConfig(
        from_=str(tmp_path / "e"),
        data=data,
        out=str(tmp_path / "run"),
        mode="full",
        features="vector",
        steps=2,
        batch_size=6,
        tensorboard=False,
    )
    before, after = _leaves(tmp_path / "e"), _leaves(finetune(config).run)
    for leaf in ("vector_norm/scale", "vector_norm/bias", "stages/0/blocks/0/scale"):
        assert not np.array_equal(before[leaf], after[leaf]), leaf
    assert "normed mean" in repr(load_encoder(tmp_path / "run"))
