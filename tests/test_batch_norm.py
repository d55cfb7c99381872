"""Encoders with BatchNorm: where statistics are of the batch, and where they are not.

Masks: tests/test_models_masked.py. Running means: tests/test_step.py and
tests/test_pretrain_program.py. Freezing: tests/test_finetune_stage.py and
tests/test_finetune_program.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afterimage import runtime
from afterimage.data import Preprocessing
from afterimage.models import ModelConfig, Network
from afterimage.pretrain.objective import Forward, ModelSetup
from afterimage.pretrain.objectives.masked import Masked
from afterimage.pretrain.objectives.plain import Plain
from tests.helpers import run_python

SIZE = (16, 16)


@pytest.mark.parametrize("objective", [Plain(), Masked(patch=4, target="hog")])
def test_an_evaluation_uses_running_moments_and_a_step_those_of_the_batch(objective):
    """So the measured loss of an image does not depend on the others, which pad it."""
    decoder = objective.default_decoder
    model = ModelConfig("conv", SIZE, 1, norm="batch", width=0.25, decoder=decoder)
    network, params, stats = Network.create(objective.build(model, nnx.Rngs(0)))
    # As after training: not the identity, and a decoder that outputs something.
    params = jax.tree.map(lambda x: jnp.asarray(x) + np.float32(0.05), params)
    stats = jax.tree.map(lambda x: jnp.asarray(x) + np.float32(0.3), stats)
    rule = Preprocessing(SIZE, (0.4,), (0.2,), 1)
    setup = ModelSetup(model, network, rule)
    key = jax.random.key(1)

    @runtime.jit
    def both(pixels):
        evaluated = Forward(setup, params, stats, key)
        training = Forward(setup, params, stats, key, step=jnp.asarray(0))
        one, two = (objective.measure(f, pixels)[0] for f in (evaluated, training))
        return one["loss"], two["loss"]

    images = np.random.default_rng(0).random((4, *SIZE, 1), np.float32)
    alone, in_step = both(images)
    again, moved = both(np.concatenate([images[:1], images[1:] ** 3]))
    np.testing.assert_allclose(alone[0], again[0], rtol=1e-6)
    assert abs(in_step[0] - moved[0]) > 1e-3 * in_step[0]
    assert abs(in_step[0] - alone[0]) > 1e-3 * in_step[0]


DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from afterimage import runtime
from afterimage.models import ModelConfig, Network, build_encoder
from afterimage.training.batches import make_mesh, replicate

rng = np.random.default_rng(0)
model = ModelConfig("conv", (8, 8), 1, norm="batch", width=0.25)
network, params, stats = Network.create(build_encoder(model, rngs=nnx.Rngs(0)))
images = rng.normal(size=(8, 8, 8, 1)).astype(np.float32)
images *= 1 + np.arange(8, dtype=np.float32).reshape(-1, 1, 1, 1)
# As many masked patches in each image as its number: shares of devices differ.
order = rng.permuted(np.tile(np.arange(16), (8, 1)), axis=1) < np.arange(8)[:, None]
mask = np.kron(order.reshape(8, 4, 4), np.ones((1, 2, 2), bool))

@runtime.jit
def loss(params, stats, images, mask):
    def value(params):
        maps, moved = network.apply(params, stats, images, mask=mask, train=True)
        return sum(jnp.square(m).mean() for m in maps), moved
    return jax.value_and_grad(value, has_aux=True)(params)

found = []
for devices in (1, 2):
    mesh = make_mesh(devices)
    split = NamedSharding(mesh, PartitionSpec("data"))
    batch = [jax.device_put(x, split) for x in (images, mask)]
    assert len(batch[0].sharding.device_set) == devices
    found.append(loss(replicate(params, mesh), replicate(stats, mesh), *batch))
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)
jax.tree.map(close, *found)
print("same")
"""


@pytest.mark.slow
def test_moments_of_masked_images_are_of_all_devices():
    """Also where devices see different numbers of sites."""
    assert "same" in run_python(DEVICES, devices=2)
