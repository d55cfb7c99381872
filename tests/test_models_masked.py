"""Masks: what stands at a masked site changes nothing anywhere else, bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afterimage import runtime
from afterimage.checkpoints.trees import flatten
from afterimage.models import (
    ModelConfig,
    Network,
    blocks,
    build_autoencoder,
    build_encoder,
    layers,
)
from afterimage.models.encoders.classic import ClassicStage
from afterimage.models.encoders.convnext import ConvNeXtDown
from afterimage.models.encoders.patches import WhitenedPatches
from afterimage.models.encoders.resnet import ResNetStem
from afterimage.models.layers import PassInfo

pytestmark = pytest.mark.usefixtures("tiny")

FAMILIES = ["conv", "conv-classic", "resnet18", "convnext-atto", "conv-patches"]


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def patches(seed, shape, patch, ratio):
    """A mask of whole patches, cut at the borders."""
    rng = np.random.default_rng(seed)
    b, h, w = shape
    grid = rng.random((b, -(-h // patch), -(-w // patch))) < ratio
    return np.repeat(np.repeat(grid, patch, 1), patch, 2)[:, :h, :w]


def shaken(params):
    """Blocks start as the identity, and norms without bias: here nothing is zero."""
    leaves, tree = jax.tree.flatten(params)
    shift = [np.float32(0.1) * random(i, *x.shape) for i, x in enumerate(leaves)]
    # Added by NumPy: an operation outside jit is a program for every shape.
    moved = [jnp.asarray(np.asarray(x) + y) for x, y in zip(leaves, shift)]
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
    strides = (1, 2, 4, 8, 16)
    sizes = [(-(-9 // stride), -(-14 // stride)) for stride in strides]

    @runtime.jit
    def visible(mask):
        context = PassInfo(mask=mask)
        return [context.visible(jnp.zeros((3, *size, 5))) for size in sizes]

    for found, stride, size in zip(visible(mask), strides, sizes, strict=True):
        expected = site_visible(mask, stride, *size)
        np.testing.assert_array_equal(found[..., 0], expected)
    assert PassInfo().visible(jnp.zeros((1, 2, 2, 1))) is None


@functools.cache
def encoded(name, norm):
    """run(images, mask) -> (maps, statistics), in training; and what the maps are."""
    config = ModelConfig(name, image_size=(13, 10), norm=norm, width=0.25)
    module = build_encoder(config, rngs=nnx.Rngs(0))
    network, params, stats = Network.create(module)
    params = shaken(params)
    run = runtime.jit(lambda x, m: network.apply(params, stats, x, mask=m, train=True))
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
    "conv-patches": ("none",),
}

NORM = ("group", "batch", "batch", "layer", "none")
QUICK = list(zip(FAMILIES, NORM, strict=True))


@pytest.mark.parametrize(
    ("name", "norm"),
    cases(
        [(name, norm) for name in FAMILIES for norm in NORMS[name]],
        QUICK,
    ),
)
def test_masked_pixels_change_no_map_and_no_statistic(name, norm):
    """In training too, where moments are of the batch; for any size of patch."""
    run, info = encoded(name, norm)
    images = random(1, 3, 13, 10, 3)
    for seed, patch in enumerate((1, 3, 4)):
        mask = patches(seed, (3, 13, 10), patch, 0.6)
        noise = np.float32(1e3) * random(seed + 5, 3, 13, 10, 3)
        noise[0, 0, 0] = np.nan
        other = np.where(mask[..., None], noise, images)
        (maps, stats), (again, moved) = run(images, mask), run(other, mask)
        for one, two, level in zip(maps, again, info, strict=True):
            np.testing.assert_array_equal(one, two)
            shown = site_visible(mask, level.stride, *one.shape[1:3])
            assert not np.asarray(one)[~shown].any()
            assert np.asarray(one)[shown].any()
        jax.tree.map(np.testing.assert_array_equal, stats, moved)
        # The law can fail: what is visible is seen.
        seen = run(np.where(mask[..., None], images, 2 * images + 1), mask)[0]
        assert np.any(np.asarray(seen[-1]) != np.asarray(maps[-1]))


@pytest.mark.parametrize(
    ("name", "norm"),
    cases([(name, (NORMS[name] * 2)[1]) for name in FAMILIES], QUICK[:1]),
)
def test_without_a_mask_and_with_an_empty_one_maps_are_the_same(name, norm):
    run, _ = encoded(name, norm)
    images = random(1, 3, 13, 10, 3)
    open_eyes = run(images, np.zeros((3, 13, 10), bool))[0]
    for one, two in zip(run(images, None)[0], open_eyes, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3)


def mixers():
    """Everything that mixes sites, from maps of 8 channels."""
    rngs = nnx.Rngs(0)
    large = ModelConfig("resnet18", image_size=(224, 224), channels=8)
    return {
        "conv": layers.Conv(8, 8, rngs=rngs),
        "strided": layers.Conv(8, 8, stride=2, rngs=rngs),
        "strided-1x1": layers.Conv(8, 8, 1, stride=2, rngs=rngs),
        "patchify": layers.Patchify(8, 8, 2, rngs=rngs),
        "depthwise": layers.DepthwiseConv(8, rngs=rngs),
        "depthwise-2": layers.DepthwiseConv(8, 3, stride=2, same=True, rngs=rngs),
        "group": layers.GroupNorm(8),
        "batch": layers.BatchNorm(8),
        "response": blocks.GlobalResponseNorm(8),
        "basic": blocks.BasicBlock(8, 8, "batch", stride=2, rngs=rngs),
        "bottleneck": blocks.BottleneckBlock(8, 8, "group", stride=2, rngs=rngs),
        "convnext": blocks.ConvNeXtBlock(8, "layer", rngs=rngs),
        "pool": ClassicStage(8, 8, 3, "group", rngs),
        "pool of 5x5": ClassicStage(8, 8, 5, "group", rngs),
        "stem-pool": ResNetStem(large, rngs),
        "down": ConvNeXtDown(8, 8, "layer", rngs),
        "patches": WhitenedPatches(8, 8, 3, 2, rngs=rngs),
    }


MIXERS = mixers()


@functools.cache
def mixed(name):
    """run(x, mask) -> (map, its visible sites), in training."""
    graph, state = nnx.split(MIXERS[name])
    state = jax.tree.map(lambda x: jnp.asarray(np.asarray(x) + np.float32(0.1)), state)

    @runtime.jit
    def run(state, x, mask):
        context = PassInfo(train=True, mask=mask)
        out = nnx.merge(graph, state)(x, context)
        out = out[0] if isinstance(out, tuple) else out
        return out, context.visible(out)

    return functools.partial(run, state)


@settings(
    deadline=None,
    max_examples=10,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 1000), patch=st.sampled_from([1, 2, 3, 4]))
@pytest.mark.parametrize("name", list(MIXERS))
def test_every_layer_that_mixes_leaves_masked_sites_out(name, seed, patch):
    """Deep inside masked sites hold anything; it must not come back."""
    mask = patches(seed, (2, 10, 12), patch, 0.5)
    x = random(seed, 2, 10, 12, 8)
    other = np.where(mask[..., None], np.float32(np.nan), x)
    (one, visible), (two, _) = mixed(name)(x, mask), mixed(name)(other, mask)
    shown = np.asarray(visible)[..., 0]
    np.testing.assert_array_equal(np.asarray(one)[shown], np.asarray(two)[shown])


@pytest.mark.parametrize(
    "make", [layers.GroupNorm, layers.BatchNorm, blocks.GlobalResponseNorm]
)
def test_a_masked_half_is_as_if_it_were_not_there(make):
    """Values and running moments are those of the visible half alone."""
    x = random(0, 2, 4, 8, 8)
    mask = np.zeros((2, 4, 8), bool)
    mask[:, :, 4:] = True
    layer = make(8)
    layer.scale[...] = np.linspace(0.5, 1.5, 8, dtype=np.float32)
    graph, state = nnx.split(layer)

    @runtime.jit
    def run(state, x, mask):
        module = nnx.merge(graph, state)
        out = module(x, PassInfo(train=True, mask=mask))
        return out, nnx.state(module)

    found, moved = run(state, x, mask)
    alone, expected = run(state, x[:, :, :4], None)
    np.testing.assert_allclose(found[:, :, :4], alone, atol=1e-5)
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(close, moved, expected)


PAIRS = [(name, kind) for name in FAMILIES for kind in ("hierarchical", "block")]


@functools.cache
def reconstructed(name, decoder, **changes):
    """run(inputs, images, mask) -> (reconstruction, {path: gradient of its loss})."""
    config = ModelConfig(name, (12, 9), width=0.25, decoder=decoder, **changes)
    module = build_autoencoder(config, rngs=nnx.Rngs(0))
    network, params, stats = Network.create(module)
    params = shaken(params)

    @runtime.jit
    def run(inputs, images, mask):
        def loss(params):
            out, _ = network.apply(params, stats, inputs, mask=mask)
            error = jnp.square(out - images)
            return jnp.where(mask[..., None], error, 0).mean(), out

        (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return out, flatten(gradients)

    return run


@pytest.mark.parametrize(("name", "decoder"), cases(PAIRS, PAIRS[:2]))
def test_every_parameter_of_the_masked_autoencoder_learns(name, decoder):
    images, mask = random(0, 3, 12, 9, 3), patches(0, (3, 12, 9), 3, 0.6)
    mask[0] = True  # a token at every stage, whatever the strides
    out, gradients = reconstructed(name, decoder)(images, images, mask)
    assert out.shape == images.shape
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient != 0), path


@pytest.mark.parametrize(
    ("name", "decoder", "changes"),
    cases(
        [(*pair, {}) for pair in PAIRS]
        + [("conv", kind, {"bottleneck": 5, "remat": True}) for _, kind in PAIRS[:2]],
        [(*pair, {}) for pair in PAIRS[:2]],
    ),
)
def test_the_reconstruction_does_not_see_masked_pixels(name, decoder, changes):
    """Nor does any gradient."""
    images, mask = random(0, 3, 12, 9, 3), patches(1, (3, 12, 9), 3, 0.6)
    run = reconstructed(name, decoder, **changes)
    other = np.where(mask[..., None], np.float32(7), images)
    one, two = run(images, images, mask), run(other, images, mask)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    seen, _ = run(images + 1, images, mask)
    assert np.any(np.asarray(seen) != np.asarray(one[0]))
