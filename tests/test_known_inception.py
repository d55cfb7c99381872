"""InceptionV3: torchvision's maps, both ways; unpadded maps with masks and decoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afterimage import known, load_encoder, runtime
from afterimage.checkpoints.weights import decode, encode
from afterimage.commands import main
from afterimage.errors import UserError
from afterimage.known import export_encoder, import_encoder
from afterimage.models import (
    ModelConfig,
    Network,
    build_autoencoder,
    build_encoder,
    ops,
    pool_features,
)
from afterimage.models.encoder import DECODERS
from afterimage.models.heads import POOLS
from afterimage.models.layers import PassInfo
from afterimage.models.vector import pooled_size
from afterimage.plugins import ENCODERS
from tests import encoder_artefact
from tests.encoder_artefact import pictures

ENDS = ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c")


def _torchvision():
    """The network with random weights and moments, aux head included."""
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    make = torchvision.models.inception_v3
    model = make(weights=None, init_weights=False, transform_input=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(
                module.weight, std=(2 / module.weight[0].numel()) ** 0.5
            )
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.mark.slow
def test_the_same_features_as_torchvision_both_ways(tmp_path):
    model = _torchvision()
    import torch

    state = {k: v.numpy() for k, v in model.state_dict().items()}
    (tmp_path / "x.safetensors").write_bytes(encode(state))
    made = import_encoder(tmp_path / "x.safetensors", "inception_v3", tmp_path / "e")
    assert {name.partition(".")[0] for name in made.head} == {"AuxLogits", "fc"}
    encoder, maps = load_encoder(tmp_path / "e"), {}
    assert encoder.preprocessing.image_size == (299, 299)
    for name in ENDS:
        layer = getattr(model, name)
        layer.register_forward_hook(lambda _, i, o, name=name: maps.update({name: o}))
    mean, std = np.float32(known.IMAGENET_MEAN), np.float32(known.IMAGENET_STD)
    for size in ((299, 299), (120, 150)):
        images = pictures(2, size)
        given = (images / np.float32(255) - mean[None]) / std[None]
        with torch.no_grad():
            model(torch.from_numpy(given).permute(0, 3, 1, 2))
        for name, a in zip(ENDS, encoder.feature_maps(images, resize=False)):
            b = maps[name].permute(0, 2, 3, 1).numpy()
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
        found = encoder.features(images, resize=False)
        np.testing.assert_allclose(found, b.mean((1, 2)), rtol=1e-4, atol=1e-4)
    export_encoder(tmp_path / "e", tmp_path / "back.safetensors")
    back = decode((tmp_path / "back.safetensors").read_bytes(), "back")
    assert back.keys() == {k for k in state if not k.startswith(("AuxLogits", "fc."))}
    for key, array in back.items():
        np.testing.assert_array_equal(array, state[key], key)


@pytest.fixture
def shallow(monkeypatch):
    """One block in each stage, all five strides."""
    monkeypatch.setattr(ENCODERS.get("inception_v3"), "depths", (1,) * 5)


def test_the_command_names_the_head_it_left_out(shallow, tmp_path, capsys):
    options = {"name": "inception_v3", "norm": "frozen", "width": 1.0}
    encoder_artefact.write(tmp_path / "e", image_size=(75, 75), **options)
    export_encoder(tmp_path / "e", tmp_path / "x.safetensors")
    weights = decode((tmp_path / "x.safetensors").read_bytes(), "x")
    assert weights["Mixed_5b.branch5x5_2.conv.weight"].shape == (64, 48, 5, 5)
    assert weights["Conv2d_1a_3x3.bn.running_var"].shape == (32,)
    weights["AuxLogits.fc.bias"] = np.zeros(5, np.float32)
    (tmp_path / "x.safetensors").write_bytes(encode(weights))
    arguments = ["import", str(tmp_path / "x.safetensors"), "--model", "inception_v3"]
    main([*arguments, "--out", str(tmp_path / "back")])
    assert "head was left out: AuxLogits.fc.bias" in capsys.readouterr().out
    main(["models", "inception_v3"])
    assert "stages/4: 8 x 8" in capsys.readouterr().out


def _shapes(build, size, **options):
    config = ModelConfig("inception_v3", image_size=size, width=0.125, **options)
    module = nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
    network, params, stats = Network.create(module)
    images = jax.ShapeDtypeStruct((2, *size, config.channels), jnp.float32)

    def run(params, stats, images, mask):
        return network.apply(params, stats, images, mask=mask)[0]

    mask = jax.ShapeDtypeStruct((2, *size), jnp.bool_)
    return jax.eval_shape(run, params, stats, images, mask), module


def test_maps_and_vectors_agree_with_feature_info(shallow):
    for size in ((75, 76), (107, 138), (150, 299)):
        maps, encoder = _shapes(build_encoder, size)
        for found, info in zip(maps, encoder.feature_info, strict=True):
            want = (2, info.sites(size[0]), info.sites(size[1]), info.channels)
            assert found.shape == want
        for pool in POOLS:
            vector = jax.eval_shape(lambda m, p=pool: pool_features(m, p), maps)
            assert vector.shape[1] == pooled_size(encoder.feature_info, size, pool)


@pytest.mark.parametrize("decoder", [name for name in DECODERS if name != "unpool"])
def test_every_decoder_fits(shallow, decoder):
    for bottleneck in (None, 5):
        options = {"decoder": decoder, "bottleneck": bottleneck}
        found, _ = _shapes(build_autoencoder, (77, 90), **options)
        assert found.shape == (2, 77, 90, 3)


def test_masked_pixels_change_nothing(tiny):
    config = ModelConfig("inception_v3", image_size=(75, 83), width=0.25)
    network, params, stats = Network.create(build_encoder(config, rngs=nnx.Rngs(0)))
    run = runtime.jit(lambda x, m: network.apply(params, stats, x, mask=m, train=True))
    mask = np.zeros((1, 75, 83), bool)
    mask[:, 32:, 8:48] = True
    images = np.random.default_rng(0).normal(size=(1, 75, 83, 3)).astype(np.float32)
    spoilt = np.where(mask[..., None], np.float32(np.nan), images)
    maps, found = run(images, mask), run(spoilt, mask)
    jax.tree.map(np.testing.assert_array_equal, maps, found)
    first = np.asarray(maps[0][0])  # 35 x 39 sites in the middle of 38 x 42
    assert not first[0, 15:, 3:23].any()
    assert first[0, 15:, 2].any()
    assert first[0, 15:, 23].any()


def test_a_smaller_map_lies_in_the_middle_of_its_grid():
    mask = np.zeros((1, 16, 16), bool)
    mask[:, 2:4] = True
    visible = PassInfo(mask=jnp.asarray(mask)).visible
    for side, row in ((8, 1), (7, 1), (6, 0), (5, 0)):
        shown = np.asarray(visible(jnp.zeros((1, side, side, 1))))[0, :, 0, 0]
        assert np.flatnonzero(~shown).tolist() == [row], side


@pytest.mark.parametrize("counts", [True, False])
def test_the_mean_of_a_single_site(counts):
    x = np.array([3, -6], np.float32).reshape(1, 1, 1, 2)
    found = ops.mean_pool_3x3(jnp.asarray(x), counts_padding=counts)
    np.testing.assert_allclose(found, x / 9 if counts else x, rtol=1e-6)


def test_pooling_at_the_border():
    x = np.random.default_rng(0).normal(size=(2, 5, 8, 3)).astype(np.float32)
    around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(around, (3, 3), (1, 2))
    np.testing.assert_allclose(
        ops.mean_pool_3x3(jnp.asarray(x), counts_padding=False),
        np.nanmean(windows, (-2, -1)),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        ops.mean_pool_3x3(jnp.asarray(x)),
        np.nansum(windows, (-2, -1)) / 9,
        rtol=1e-5,
        atol=1e-6,
    )
    inner = windows[:, 1:-1:2, 1:-1:2].max((-2, -1))
    np.testing.assert_array_equal(ops.max_pool_3x3(jnp.asarray(x), padded=False), inner)


def test_images_that_leave_no_site_are_refused(shallow):
    with pytest.raises(UserError, match="at least 75 px"):
        ModelConfig("inception_v3", image_size=(74, 299))
    config = ModelConfig("inception_v3", image_size=(75, 75), width=0.125)
    module = nnx.eval_shape(lambda: build_encoder(config, rngs=nnx.Rngs(0)))
    network, params, stats = Network.create(module)
    images = jax.ShapeDtypeStruct((1, 60, 99, 3), jnp.float32)
    with pytest.raises(UserError, match=r"\(60, 99\) px"):
        jax.eval_shape(lambda p, s, x: network.apply(p, s, x)[0], params, stats, images)
