"""The decoder on every encoder, whatever the size of the images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from afterimage_segmentation.network import SegmentationNetwork, UNetDecoder
from flax import nnx

from afterimage.data import Preprocessing
from afterimage.errors import UserError
from afterimage.models import FeatureInfo, ModelConfig, models

DROPS = {"inception_v3", "inception_v3_keras"}
"""Encoders whose maps lack the borders of images."""
PREPROCESSING = Preprocessing((32, 32), (0.5,) * 3, (0.2,) * 3, 3)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", [n for n in models() if n not in DROPS])
def test_every_encoder_gives_scores_at_every_pixel(name):
    def scored(images):
        config = ModelConfig(name, image_size=(32, 32), channels=3)
        network, params, stats = SegmentationNetwork.create(config, PREPROCESSING, 5)
        return network.logits(params, stats, images, train=True)[0]

    odd = jax.ShapeDtypeStruct((2, 37, 50, 3), jnp.uint8)
    assert jax.eval_shape(scored, odd).shape == (2, 37, 50, 5)


def test_sides_that_are_no_multiple_of_the_stride_are_continued():
    config = ModelConfig("conv", image_size=(32, 32), channels=3, width=0.25)
    network, params, stats = SegmentationNetwork.create(config, PREPROCESSING, 3)
    images = np.random.default_rng(0).integers(0, 256, (1, 31, 31, 3), np.uint8)
    whole = np.pad(images, [(0, 0), (0, 1), (0, 1), (0, 0)], mode="edge")
    few, _ = network.logits(params, stats, images)
    many, _ = network.logits(params, stats, whole)
    np.testing.assert_allclose(few, many[:, :31, :31], atol=1e-5)


@pytest.mark.parametrize("name", sorted(DROPS))
def test_maps_without_borders_are_refused(name):
    def scored(images):
        config = ModelConfig(name, image_size=(96, 96), channels=3)
        network, params, stats = SegmentationNetwork.create(config, PREPROCESSING, 5)
        return network.logits(params, stats, images)[0]

    with pytest.raises(UserError, match="borders"):
        jax.eval_shape(scored, jax.ShapeDtypeStruct((1, 128, 160, 3), jnp.uint8))


def test_maps_that_are_no_pyramid_are_refused():
    info = (FeatureInfo("a", 8, 2), FeatureInfo("b", 8, 3))
    with pytest.raises(UserError, match=r"\[2, 3\]"):
        UNetDecoder(info, 3, 2, rngs=nnx.Rngs(0))
