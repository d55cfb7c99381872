"""Encoders, decoders, heads and the functional network."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afterimage.checkpoints.trees import flatten
from afterimage.errors import UserError
from afterimage.models import (
    Head,
    ModelConfig,
    Network,
    build_autoencoder,
    build_encoder,
    models,
    pool_features,
)

SIZES = [(8, 8), (28, 28), (32, 32), (33, 33), (64, 64)]
KEY = jax.random.key(0)


def _images(config, n=2):
    return jax.random.normal(KEY, (n, *config.image_size, config.channels))


def _create(config, build=build_autoencoder, **kwargs):
    return Network.create(build(config, rngs=nnx.Rngs(0)), **kwargs)


def _apply(network, *given, **settings):
    """`network.apply`, compiled as a whole: faster than one operation at a time."""
    return jax.jit(lambda *arrays: network.apply(*arrays, **settings))(*given)


def _shapes(config, build):
    """Output shapes and the encoder, without computing anything."""
    module = nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
    network, params, stats = Network.create(module)
    x = jax.ShapeDtypeStruct((2, *config.image_size, config.channels), jnp.float32)
    out = jax.eval_shape(lambda p, s, x: network.apply(p, s, x)[0], params, stats, x)
    return out, module


def _models(*slow):
    """Every model but VGG and Inception (see test_known, test_known_inception), which
    take no small images; large ones at leisure."""
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in slow else name
        for name in models()
        if not name.startswith(("vgg", "inception"))
    ]


_LARGE = (
    "resnet34",
    *(
        f"convnext{kind}{size}"
        for kind in ("-", "_", "v2_")
        for size in ("femto", "pico", "nano", "tiny")
    ),
    *(f"efficientnet_lite{number}" for number in range(3)),
)
_MEDIUM = ("resnet50", "mobilenet_v2", "convnext-atto", "convnextv2_atto")
_ATTO = pytest.param("convnext-atto", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", _models(*_LARGE, *_MEDIUM))
def test_maps_agree_with_feature_info_at_every_size(name):
    for size, channels in zip(SIZES, (1, 3, 4, 1, 3), strict=True):
        config = ModelConfig(name, image_size=size, channels=channels)
        maps, encoder = _shapes(config, build_encoder)
        assert len(maps) == len(encoder.feature_info)
        for found, info in zip(maps, encoder.feature_info, strict=True):
            h, w = (-(-n // info.stride) for n in size)
            assert found.shape == (2, h, w, info.channels), (name, size, info)
        strides = [info.stride for info in encoder.feature_info]
        assert strides == sorted(strides), "finest first"
        assert encoder.num_features == maps[-1].shape[-1]


_QUICK = ("conv", "conv-classic", "resnet18", "vgg11_bn")


@pytest.mark.parametrize(
    "name",
    [
        name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in models()
    ],
)
def test_forward_mode_agrees_with_reverse_mode(name, tiny):
    """`jax.jacfwd` and `jax.jacrev` of every encoder's features along some directions,
    and a Hessian-vector product by forward over reverse."""
    side = {"vgg": 32, "inc": 75}.get(name[:3], 8)
    # After a norm over channels, a grey pixel is only its sign: V1's layer scale leaves
    # nothing else, and no gradient above rounding.
    channels = 3 if name.startswith("convnext_") else 1
    config = ModelConfig(name, image_size=(side, side), channels=channels)
    network, params, stats = _create(config, build_encoder)
    images = _images(config, 1)
    directions = _images(config, 4)
    onto = jax.random.normal(KEY, (network_width(config), 3))

    # Unoptimised: compiling is most of the time here.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(params, images):
        def features(along):
            moved = images + jnp.tensordot(along, directions, 1)[None]
            found, _ = network.apply(params, stats, moved, method="features")
            return (found @ onto)[0]

        def energy(along):
            return jnp.square(features(along)).sum()

        start = jnp.zeros(4)
        _, curved = jax.jvp(jax.grad(energy), (start,), (jnp.ones(4),))
        return jax.jacfwd(features)(start), jax.jacrev(features)(start), curved

    forward, backward, curved = run(params, images)
    scale = np.abs(backward).max()
    assert scale > 0
    np.testing.assert_allclose(forward / scale, backward / scale, atol=1e-5)
    assert np.isfinite(curved).all()


def network_width(config):
    """Length of the feature vector."""
    return nnx.eval_shape(lambda: build_encoder(config, rngs=nnx.Rngs(0))).num_features


@pytest.mark.parametrize("name", _models(*_LARGE))
def test_reconstruction_has_the_inputs_shape(name):
    for size, channels in (((8, 8), 4), ((33, 28), 3)):
        config = ModelConfig(name, image_size=size, channels=channels, bottleneck=5)
        found, _ = _shapes(config, build_autoencoder)
        assert found.shape == (2, *size, channels)


@pytest.mark.parametrize("decoder", ["light", "symmetric", "transposed", "nearest"])
@pytest.mark.parametrize("name", ["conv", "conv-classic", "resnet18", "convnext-atto"])
def test_every_decoder_fits_every_family(name, decoder):
    for stem in (1, 2, 4) if name == "conv" else (0,):
        config = ModelConfig(
            name, image_size=(33, 28), decoder=decoder, stem_stride=stem
        )
        assert _shapes(config, build_autoencoder)[0].shape == (2, 33, 28, 3)


@pytest.mark.parametrize("decoder", ["light", "symmetric", "transposed", "nearest"])
def test_every_decoder_fits_vgg_where_it_drops_no_pixel(decoder):
    config = ModelConfig("vgg11", (64, 32), width=0.125, decoder=decoder, bottleneck=5)
    assert _shapes(config, build_autoencoder)[0].shape == (2, 64, 32, 3)


def test_vgg_is_not_decoded_where_it_drops_pixels():
    with pytest.raises(UserError, match="multiple of 32"):
        ModelConfig("vgg11", image_size=(33, 64))
    module = nnx.eval_shape(
        lambda: build_autoencoder(
            ModelConfig("vgg11", (64, 64), width=0.125), rngs=nnx.Rngs(0)
        )
    )
    network, params, stats = Network.create(module)
    images = jax.ShapeDtypeStruct((1, 64, 65, 3), jnp.float32)
    with pytest.raises(UserError, match=r"\(64, 65\) px .*vgg11 drops"):
        jax.eval_shape(lambda p, s, x: network.apply(p, s, x)[0], params, stats, images)


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [
        ("conv", 32, 2),
        ("conv", 224, 4),
        ("resnet18", 64, 1),
        ("resnet18", 65, 4),
        ("convnext-atto", 16, 1),
        ("convnext-atto", 32, 2),
        ("convnext-atto", 224, 4),
    ],
)
def test_small_images_get_a_small_stem(name, size, stem):
    assert ModelConfig(name, image_size=(size, size)).stem_stride == stem


def test_trunks_have_the_published_number_of_parameters():
    # 11,689,512 without fc; 3,708,400 without the head and the norm before it.
    expected = {"resnet18": 11_176_512, "convnext-atto": 3_386_760}
    for name, count in expected.items():
        config = ModelConfig(name, image_size=(224, 224))
        _, encoder = _shapes(config, build_encoder)
        _, params, _ = Network.create(encoder)
        assert sum(x.size for x in jax.tree.leaves(params)) == count, name


def test_paths_read_as_the_contract_says():
    _, params, _ = _create(ModelConfig("conv", bottleneck=4))
    paths = set(flatten(params))
    assert {path.split("/")[0] for path in paths} == {"encoder", "decoder"}
    assert "encoder/stages/1/blocks/0/conv1/kernel" in paths
    assert {"encoder/bottleneck/kernel", "decoder/expand/kernel"} <= paths


def test_a_config_from_json_rebuilds_the_same_tree():
    config = ModelConfig(
        "convnext-atto", image_size=(9, 8), channels=1, width=0.5, bottleneck=3
    )
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)
    before, after = _create(config, build_encoder), _create(again, build_encoder)
    assert before[0] == after[0]
    assert hash(before[0]) == hash(after[0])
    jax.tree.map(np.testing.assert_array_equal, before[1], after[1])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "resnet-18"}, "did you mean 'resnet18'"),
        ({"image_size": (7, 32)}, "at least 8 px"),
        ({"channels": 0}, "channels=0"),
        ({"norm": "instance"}, "rms, layer, group, batch"),
        ({"decoder": "unet"}, "light"),
        ({"decoder": "unpool"}, "conv-classic"),
        ({"bottleneck": 0}, "bottleneck=0"),
        ({"width": 0.0}, "width=0"),
        ({"stem_stride": 3}, "1, 2 or 4"),
    ],
)
def test_a_config_that_cannot_work_says_why(wrong, says):
    with pytest.raises(UserError, match=says):
        ModelConfig(**wrong)


def test_every_mismatch_is_reported_at_once():
    with pytest.raises(UserError, match=r"image_size.*channels.*norm"):
        ModelConfig(image_size=(4, 4), channels=0, norm="odd")


def test_unknown_config_fields_are_named():
    with pytest.raises(UserError, match="colour"):
        ModelConfig.from_dict({"name": "conv", "colour": 1})


def _small(name, norm="", **kwargs):
    return ModelConfig(name, image_size=(12, 9), norm=norm, width=0.25, **kwargs)


@pytest.mark.parametrize("norm", ["rms", "layer", "group"])
def test_an_image_does_not_depend_on_its_batch(norm):
    config = _small("conv", norm)
    network, params, stats = _create(config)
    images = _images(config, 3)
    together, _ = _apply(network, params, stats, images, train=True)
    alone, _ = _apply(network, params, stats, images[:1], train=True)
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)
    assert stats == {}


def test_batch_norm_moves_in_training_only():
    config = _small("resnet18", "batch")
    network, params, stats = _create(config)
    images = _images(config)
    run = jax.jit(
        lambda train: network.apply(params, stats, images, train=train),
        static_argnums=0,
    )
    _, kept = run(False)
    jax.tree.map(np.testing.assert_array_equal, kept, stats)
    _, moved = run(True)
    assert jax.tree.structure(moved) == jax.tree.structure(stats)
    for path, leaf in flatten(moved).items():
        assert np.any(leaf != flatten(stats)[path]), path


def test_batch_norm_follows_its_running_moments():
    from afterimage.models.layers import BatchNorm, PassInfo

    norm = BatchNorm(3)
    x = 2 + 3 * jax.random.normal(KEY, (500, 3))
    y = norm(x, PassInfo(train=True))
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(y.std(0), 1, atol=1e-3)
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean(0), rtol=1e-4)
    expected = 0.9 + 0.1 * x.var(0, ddof=1)
    np.testing.assert_allclose(norm.var[...], expected, rtol=1e-4)


@pytest.mark.parametrize("norm", [pytest.param("rms", marks=pytest.mark.slow), "batch"])
def test_remat_changes_neither_result_nor_gradient(norm):
    images = _images(_small("conv"))

    def run(remat):
        network, params, stats = _create(_small("conv", norm, remat=remat))

        def loss(params):
            out, new = network.apply(params, stats, images, train=True)
            return jnp.square(out - images).mean(), new

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), run(False), run(True)
    )


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
    config = _small("conv", "batch")
    network, params, stats = _create(config, dtype="bfloat16")
    images = _images(config)

    def loss(params):
        out, new = network.apply(params, stats, images, train=True)
        return jnp.square(out - images).mean(), (out, new)

    grads, (out, new) = jax.jit(jax.grad(loss, has_aux=True))(params)
    for tree in (params, grads, new, out):
        assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    exact, params, stats = _create(config)
    expected, _ = _apply(exact, params, stats, images, train=True)
    difference = np.abs(out - expected).mean() / np.abs(expected).mean()
    assert 1e-5 < difference < 0.05, "computed in bfloat16, and close"


@pytest.mark.parametrize("name", ["conv", "conv-classic", "resnet18", _ATTO])
def test_every_parameter_learns(name):
    config = _small(name)
    network, params, stats = _create(config)
    # Residual branches start at zero, where the layers inside them have no gradient.
    params = jax.tree.map(lambda x: x + 0.1, params)
    images = _images(config)

    def loss(params):
        return jnp.square(network.apply(params, stats, images)[0] - images).mean()

    for path, gradient in flatten(jax.jit(jax.grad(loss))(params)).items():
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient != 0), path


def test_a_block_starts_as_the_identity():
    from afterimage.models.blocks import BasicBlock
    from afterimage.models.layers import PassInfo

    x = jnp.abs(jax.random.normal(KEY, (1, 4, 4, 8)))
    block = BasicBlock(8, 8, "rms", rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(block(x, PassInfo()), x)


def test_features_are_the_mean_of_the_last_map_or_the_bottleneck():
    config = _small("conv")
    network, params, stats = _create(config, build_encoder)
    images = _images(config)
    maps, _ = network.apply(params, stats, images)
    vector, _ = network.apply(params, stats, images, method="features")
    np.testing.assert_array_equal(vector, maps[-1].mean((1, 2)))
    config = _small("conv", bottleneck=5)
    network, params, stats = _create(config, build_encoder)
    vector, _ = _apply(network, params, stats, images, method="features")
    assert vector.shape == (2, 5)
    with pytest.raises(UserError, match="resize"):
        network.apply(params, stats, images[:, :8, :8], method="features")


def test_an_encoder_takes_other_sizes_than_it_was_built_for():
    network, params, stats = _create(_small("conv"), build_encoder)
    maps, _ = _apply(network, params, stats, jnp.zeros((1, 17, 20, 3)))
    assert [m.shape[1:3] for m in maps] == [(9, 10), (5, 5), (3, 3)]


def test_pooled_features():
    maps = [jnp.ones((2, 4, 4, 3)), jnp.arange(16.0).reshape(2, 2, 1, 4)]
    last = pool_features(maps)
    np.testing.assert_allclose(last[0], jnp.array([2.0, 3.0, 4.0, 5.0]))
    pyramid = pool_features(maps, "pyramid")
    assert pyramid.shape == (2, 7)
    np.testing.assert_array_equal(pyramid[:, 3:], last)
    ramp = jnp.arange(25.0).reshape(1, 5, 5, 1)
    ninths = pool_features([ramp], "grid-3").reshape(3, 3)
    # Of five sites the first two, the middle three, the last two.
    np.testing.assert_allclose(ninths[0], [3.0, 4.5, 6.0])
    np.testing.assert_allclose(ninths[1], [10.5, 12.0, 13.5])
    with pytest.raises(UserError, match="pyramid"):
        pool_features(maps, "max")


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_fresh_head_guesses(kind):
    network, params, stats = Network.create(Head(6, 4, kind, rngs=nnx.Rngs(0)))
    logits, _ = network.apply(params, stats, jax.random.normal(KEY, (5, 6)))
    assert logits.shape == (5, 4)
    assert np.abs(logits).max() < 0.5
    assert ("hidden" in params) == (kind == "mlp")


def test_a_head_refuses_what_it_cannot_be():
    with pytest.raises(UserError, match="linear, mlp"):
        Head(6, 4, "cosine", rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="at least 1"):
        Head(6, 0, rngs=nnx.Rngs(0))


def test_an_mlps_hidden_layer_is_as_wide_as_asked():
    _, params, _ = Network.create(Head(6, 4, "mlp", 5, rngs=nnx.Rngs(0)))
    assert params["hidden"]["kernel"].shape == (6, 5)
    assert params["linear"]["kernel"].shape == (5, 4)


def test_masci_has_the_published_filters():
    config = ModelConfig("conv-masci", image_size=(28, 28), channels=1)
    _, module = _shapes(config, build_autoencoder)
    kernels = [stage.conv.kernel.shape for stage in module.encoder.stages]
    assert kernels == [(5, 5, 1, 100), (5, 5, 100, 150), (3, 3, 150, 200)]
    back = [stage.conv.kernel.shape for stage in module.decoder.stages]
    assert back == [(3, 3, 200, 150), (5, 5, 150, 100), (5, 5, 100, 1)]
    assert ModelConfig("conv-masci", width=0.5).widths == (48, 72, 96)
