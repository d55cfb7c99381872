"""Masks: what stands at a masked site changes nothing anywhere else, bit for bit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.models import (
    ModelConfig,
    Network,
    blocks,
    build_autoencoder,
    build_encoder,
    encoders,
    layers,
    norms,
)
from afterimage.models.config import PRESETS
from afterimage.models.layers import Context
from checkpoints.trees import flatten


@pytest.fixture(autouse=True)
def one_block_a_stage(monkeypatch):
    """The same layers, a third of the time to compile."""
    for name in FAMILIES[1:]:
        shallow = dataclasses.replace(
            PRESETS[name], depths=(1,) * len(PRESETS[name].depths)
        )
        monkeypatch.setitem(PRESETS, name, shallow)


FAMILIES = ["conv", "conv-classic", "resnet18", "convnext-atto"]
# Compiling is nearly all of the time here.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def patches(seed, shape, patch, ratio):
    """A mask of whole patches, cut at the borders."""
    rng = np.random.default_rng(seed)
    b, h, w = shape
    grid = rng.random((b, -(-h // patch), -(-w // patch))) < ratio
    return np.repeat(np.repeat(grid, patch, 1), patch, 2)[:, :h, :w]


def shaken(params):
    """Blocks start as the identity, and norms without bias: here nothing is zero."""
    leaves, tree = jax.tree.flatten(params)
    moved = [x + 0.1 * random(i, *x.shape) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(tree, moved)


def site_visible(mask, stride, h, w):
    """The definition, site by site."""
    out = np.zeros((len(mask), h, w), bool)
    for i in range(h):
        for j in range(w):
            square = mask[:, i * stride : (i + 1) * stride, j * stride :][:, :, :stride]
            out[:, i, j] = ~square.all((1, 2))
    return out


def test_a_site_is_visible_where_any_of_its_pixels_is():
    mask = patches(0, (3, 9, 14), 2, 0.7)
    context = Context(mask=jnp.asarray(mask))
    for stride in (1, 2, 4, 8, 16):
        h, w = -(-9 // stride), -(-14 // stride)
        found = context.visible(jnp.zeros((3, h, w, 5)))
        assert found is not None
        expected = site_visible(mask, stride, h, w)
        np.testing.assert_array_equal(found[..., 0], expected)
    assert Context().visible(jnp.zeros((1, 2, 2, 1))) is None


def encoded(name, norm, seed=0, train=True, size=(13, 10), **kwargs):
    config = ModelConfig(name, image_size=size, norm=norm, width=0.25, **kwargs)
    module = build_encoder(config, rngs=nnx.Rngs(seed))
    network, params, stats = Network.create(module)
    params = shaken(params)
    run = quick_jit(lambda x, m: network.apply(params, stats, x, mask=m, train=train))
    return run, module.feature_info


def cases(every, quick):
    """All of them; those that are not quick are marked slow."""
    slow = pytest.mark.slow
    return [pytest.param(*case, marks=() if case in quick else slow) for case in every]


NORMS = {
    "conv": ("rms", "group", "batch"),
    "conv-classic": ("rms", "batch"),
    "resnet18": ("group", "batch"),
    "convnext-atto": ("layer", "group"),
}


@pytest.mark.parametrize(
    ("name", "norm"),
    cases(
        [(name, norm) for name in FAMILIES for norm in NORMS[name]],
        quick=list(zip(FAMILIES, ("group", "batch", "batch", "layer"), strict=True)),
    ),
)
def test_masked_pixels_change_no_map_and_no_statistic(name, norm):
    """In training too, where moments are of the batch; for any size of patch."""
    run, info = encoded(name, norm)
    images = random(1, 3, 13, 10, 3)
    for seed, patch in enumerate((1, 3, 4)):
        mask = patches(seed, (3, 13, 10), patch, 0.6)
        noise = np.array(1e3 * random(seed + 5, 3, 13, 10, 3))
        noise[0, 0, 0] = np.nan
        other = jnp.where(mask[..., None], noise, images)
        (maps, stats), (again, moved) = run(images, mask), run(other, mask)
        for one, two, level in zip(maps, again, info, strict=True):
            np.testing.assert_array_equal(one, two)
            shown = site_visible(mask, level.stride, *one.shape[1:3])
            assert not np.asarray(one)[~shown].any()
            assert np.asarray(one)[shown].any()
        jax.tree.map(np.testing.assert_array_equal, stats, moved)
        # The law can fail: what is visible is seen.
        seen = run(jnp.where(mask[..., None], images, 2 * images + 1), mask)[0]
        assert np.any(np.asarray(seen[-1]) != np.asarray(maps[-1]))


@pytest.mark.parametrize(
    "name", cases([(name,) for name in FAMILIES], [("conv",), ("resnet18",)])
)
def test_without_a_mask_and_with_an_empty_one_maps_are_the_same(name):
    run, _ = encoded(name, "group")
    images = random(1, 2, 13, 10, 3)
    open_eyes = run(images, jnp.zeros((2, 13, 10), bool))[0]
    for one, two in zip(run(images, None)[0], open_eyes, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3)


PAIRS = [(name, kind) for name in FAMILIES for kind in ("hierarchical", "block")]


def mixers():
    """Everything that mixes sites, as map -> map of 8 channels."""
    rngs = nnx.Rngs(0)
    stem = encoders.ResNetStem(ModelConfig("resnet18", image_size=(224, 224)), rngs)
    pool = encoders.ClassicStage(8, 8, "group", rngs)
    down = encoders.ConvNeXtDown(8, 8, "layer", rngs)
    return {
        "conv": layers.Conv(8, 8, rngs=rngs),
        "strided": layers.Conv(8, 8, stride=2, rngs=rngs),
        "strided-1x1": layers.Conv(8, 8, 1, stride=2, rngs=rngs),
        "patchify": layers.Patchify(8, 8, 2, rngs=rngs),
        "depthwise": layers.DepthwiseConv(8, rngs=rngs),
        "group": norms.GroupNorm(8),
        "batch": norms.BatchNorm(8),
        "response": blocks.GlobalResponseNorm(8),
        "basic": blocks.BasicBlock(8, 8, "batch", stride=2, rngs=rngs),
        "bottleneck": blocks.BottleneckBlock(8, 8, "group", stride=2, rngs=rngs),
        "convnext": blocks.ConvNeXtBlock(8, "layer", rngs=rngs),
        "pool": lambda x, context: pool(x, context)[0],
        "stem-pool": lambda x, context: stem(x[..., :3], context),
        "down": down,
    }


MIXERS = mixers()


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 1000), patch=st.sampled_from([1, 2, 3, 4]))
@pytest.mark.parametrize("name", list(MIXERS))
def test_every_layer_that_mixes_leaves_masked_sites_out(name, seed, patch):
    """Deep inside masked sites hold anything; it must not come back."""
    layer = MIXERS[name]
    if isinstance(layer, nnx.Module):
        graph, state = nnx.split(layer)
        layer = nnx.merge(graph, jax.tree.map(lambda x: x + 0.1, state))
    mask = patches(seed, (2, 10, 12), patch, 0.5)
    context = Context(train=True, mask=jnp.asarray(mask))
    x = random(seed, 2, 10, 12, 8)
    other = jnp.where(mask[..., None], jnp.nan, x)
    one, two = layer(x, context), layer(other, context)
    shown = np.asarray(context.visible(one))[..., 0]
    np.testing.assert_array_equal(np.asarray(one)[shown], np.asarray(two)[shown])


def test_a_masked_half_is_as_if_it_were_not_there():
    """GroupNorm, BatchNorm and GRN of the visible half alone."""
    x = random(0, 2, 4, 8, 8)
    mask = np.zeros((2, 4, 8), bool)
    mask[:, :, 4:] = True
    context = Context(train=True, mask=jnp.asarray(mask))
    for make in (norms.GroupNorm, norms.BatchNorm, blocks.GlobalResponseNorm):
        layer, alone = make(8), make(8)
        for each in (layer, alone):
            each.scale[...] = jnp.linspace(0.5, 1.5, 8)
        found = layer(x, context)[:, :, :4]
        expected = alone(x[:, :, :4], Context(train=True))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    one, two = norms.BatchNorm(8), norms.BatchNorm(8)
    one(x, context)
    two(x[:, :, :4], Context(train=True))
    np.testing.assert_allclose(one.mean[...], two.mean[...], atol=1e-6)
    np.testing.assert_allclose(one.var[...], two.var[...], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "decoder"),
    cases(PAIRS, [("conv-classic", "hierarchical"), ("resnet18", "block")]),
)
def test_every_parameter_of_the_masked_autoencoder_learns(name, decoder):
    config = ModelConfig(name, image_size=(12, 9), width=0.25, decoder=decoder)
    module = build_autoencoder(config, rngs=nnx.Rngs(0))
    network, params, stats = Network.create(module)
    params = shaken(params)
    images, mask = random(0, 3, 12, 9, 3), jnp.asarray(patches(0, (3, 12, 9), 3, 0.6))
    mask = mask.at[0].set(True)  # a token at every stage, whatever the strides

    @quick_jit
    @jax.grad
    def gradients(params):
        out, _ = network.apply(params, stats, images, mask=mask)
        assert out.shape == images.shape
        return jnp.where(mask[..., None], jnp.square(out - images), 0).mean()

    for path, gradient in flatten(gradients(params)).items():
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient != 0), path


@pytest.mark.parametrize(
    ("name", "decoder"),
    cases(PAIRS, [("conv", "hierarchical"), ("convnext-atto", "block")]),
)
def test_the_reconstruction_does_not_see_masked_pixels(name, decoder):
    bottleneck = 5 if name == "conv" else None
    config = ModelConfig(
        name, (12, 9), width=0.25, decoder=decoder, bottleneck=bottleneck, remat=True
    )
    module = build_autoencoder(config, rngs=nnx.Rngs(0))
    network, params, stats = Network.create(module)
    params = shaken(params)
    images, mask = random(0, 3, 12, 9, 3), jnp.asarray(patches(1, (3, 12, 9), 3, 0.6))
    run = quick_jit(lambda x: network.apply(params, stats, x, mask=mask)[0])
    other = jnp.where(mask[..., None], 7.0, images)
    np.testing.assert_array_equal(run(images), run(other))
    assert np.any(np.asarray(run(images)) != np.asarray(run(images + 1)))
