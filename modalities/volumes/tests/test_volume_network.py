"""The network, what it may see, and how training volumes are changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from afterimage_volumes.network import (
    Conv3,
    Double,
    Encoder,
    Halve,
    VolumeModel,
    augment,
    fresh,
    network,
    vectors,
)
from afterimage_volumes.pretraining import counted, draw_mask
from flax import nnx
from jax import lax

MODEL = VolumeModel(2)
changed = jax.jit(augment, static_argnames="flip")


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape, np.float32))


def in_three(x, kernel, strides, padding):
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=numbers
    )


def test_layers_on_joined_planes_are_convolutions_in_three_dimensions():
    x = drawn(2, 4, 6, 8, 3)
    conv = Conv3(3, 5, rngs=nnx.Rngs(0))
    # [h, w, (d, i), o] -> [d, h, w, i, o]
    kernel = conv.flat.kernel[...].reshape(3, 3, 3, 3, 5).transpose(2, 0, 1, 3, 4)
    expected = in_three(x, kernel, (1, 1, 1), "SAME")
    np.testing.assert_allclose(jax.jit(conv)(x), expected, atol=1e-5)
    halve = Halve(3, 5, rngs=nnx.Rngs(0))
    kernel = halve.flat.kernel[...].reshape(2, 2, 2, 3, 5).transpose(2, 0, 1, 3, 4)
    expected = in_three(x, kernel, (2, 2, 2), "VALID")
    np.testing.assert_allclose(halve(x), expected, atol=1e-5)
    double = Double(3, 2, rngs=nnx.Rngs(0))(x)
    assert double.shape == (2, 8, 12, 16, 2)
    alone = Double(3, 2, rngs=nnx.Rngs(0))(x[:, 1:2, 2:3, 3:4])
    np.testing.assert_allclose(double[:, 2:4, 4:6, 6:8], alone, atol=1e-6)


def test_hidden_blocks_are_not_seen():
    """Their values change nothing, and the maps are 0 there."""
    params = fresh(Encoder, MODEL, 0)
    encode = jax.jit(lambda *args: network(Encoder, MODEL).apply(params, {}, *args)[0])
    mask = draw_mask(jax.random.key(0), 2, 16, 0.5)
    voxels = jnp.repeat(jnp.repeat(jnp.repeat(mask, 8, 1), 8, 2), 8, 3)
    x = drawn(2, 16, 16, 16)
    maps = encode(x, mask)
    other = encode(jnp.where(voxels, jnp.nan, x), mask)
    assert [m.shape[1:] for m in maps] == [(8, 8, 8, 2), (4, 4, 4, 4), (2, 2, 2, 8)]
    for one, two in zip(maps, other):
        np.testing.assert_array_equal(one, two)
    assert not np.asarray(maps[2])[np.asarray(mask)].any()
    seen = encode(x)
    assert np.abs(seen[2] - maps[2]).max() > 0.1
    assert vectors(seen).shape == (2, 14 * MODEL.width)


@pytest.mark.parametrize(("share", "hidden"), [(0.6, 38), (0.001, 1), (0.999, 63)])
def test_as_many_blocks_of_every_volume_are_hidden(share, hidden):
    mask = draw_mask(jax.random.key(1), 5, 32, share)
    np.testing.assert_array_equal(mask.sum((1, 2, 3)), hidden)
    assert len({m.tobytes() for m in np.asarray(mask)}) > 1


def test_flat_blocks_do_not_count():
    x = drawn(1, 16, 16, 16).at[:, :8].set(0.3)
    mask = jnp.zeros((1, 2, 2, 2), bool).at[0, :, 0, 0].set(True)
    expected = np.zeros((1, 16, 16, 16))
    expected[0, 8:, :8, :8] = 1
    np.testing.assert_array_equal(jax.jit(counted)(x, mask), expected)


def test_changed_volumes_stay_in_range_and_keep_their_side_without_flips():
    x = jnp.zeros((64, 16, 16, 16)).at[:, :8].set(0.5)
    for flip in (True, False):
        y = np.asarray(changed(jax.random.key(0), x, flip=flip))
        assert y.min() >= 0
        assert y.max() <= 1
        assert len({round(float(v.max()), 3) for v in y}) > 40  # of different tone
        mirrored = y[:, 8:].mean((1, 2, 3)) > y[:, :8].mean((1, 2, 3))
        assert (20 < mirrored.sum() < 44) if flip else not mirrored.any()


def test_objects_are_scaled_and_moved_a_little():
    side = 32
    x = jnp.zeros((200, side, side, side)).at[:, 12:20, 12:20, 12:20].set(1.0)
    y = np.asarray(changed(jax.random.key(1), x, flip=False))
    mass = y.sum((2, 3))
    middle = (mass * np.arange(side)[None]).sum(1) / mass.sum(1)
    assert np.abs(middle - 15.5).max() < 0.05 * side / 0.85 + 0.2
    assert middle.std() > 0.5
    wide = (y.max((2, 3)) > 0.5 * y.max((1, 2, 3))[:, None]).sum(1)
    assert set(wide) <= {6, 7, 8, 9, 10}
    assert wide.std() > 0.3
