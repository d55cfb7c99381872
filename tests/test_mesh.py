"""Several devices compute what one does."""

import pytest

from afterimage.errors import UserError
from afterimage.training.batches import check_batch, make_mesh
from tests.helpers import run_python

COMPARE = """
import jax, numpy as np, sys
import jax.numpy as jnp
from afterimage.data import open_data
from afterimage.training.batches import BatchLoader
from afterimage.training.optimiser import split_groups
from afterimage.training.batches import make_mesh, replicate
from afterimage.training.optimiser import make_optimiser, make_schedule
from afterimage.training.options import TrainingOptions
from afterimage.training.step import init_state
from afterimage.training.step import compile_step, compile_steps, make_step

images = open_data("synthetic:8x8x3").train
options = TrainingOptions(batch_size=16, steps=6, accumulate=int(sys.argv[1]),
                          resident=sys.argv[2] == "resident")

def loss(params, stats, batch, key, step):
    x = batch["image"].astype(jnp.float32) / 255
    x = x + 0.1 * jax.random.normal(key, x.shape)
    flat = x.reshape(x.shape[0], -1)
    hidden = jax.nn.relu(flat @ params["w"])
    return jnp.mean((hidden @ params["v"] - flat) ** 2), ({}, stats)

def train(devices, stretch=False):
    mesh = make_mesh(devices)
    rng = np.random.default_rng(0)
    shapes = {"w": (192, 32), "v": (32, 192)}
    params = {
        k: (rng.normal(size=shape) * 0.1).astype(np.float32)
        for k, shape in shapes.items()
    }
    part = split_groups(params)
    tx = make_optimiser(options, part)
    state = init_state(params, {}, optimiser=tx, partition=part, seed=0, ema=False)
    state = replicate(state, mesh)
    step = make_step(loss, optimiser=tx, schedule=make_schedule(options, 6, 0),
                     partition=part, options=options)
    feed = BatchLoader(images, options=options, mesh=mesh)
    losses, rows = [], []
    run = compile_steps(step) if stretch else compile_step(step)
    for n, index, batch in feed.blocks(0, iter([3, 3] if stretch else [1] * 6)):
        used = batch["index"].sharding.device_set
        assert len(used) == devices, used
        state, metrics = run(state, batch, feed.data)
        losses += np.ravel(metrics["loss"]).tolist()
        rows += index.tolist()
    return losses, rows, jax.tree.map(np.asarray, state["params"])

assert jax.device_count() == 8
one, rows_one, params_one = train(1)
many, rows_many, params_many = train(8)
stretch, rows_stretch, params_stretch = train(8, stretch=True)
assert rows_one == rows_many == rows_stretch
np.testing.assert_allclose(one, many, rtol=1e-5)
np.testing.assert_allclose(one, stretch, rtol=1e-5)
for k in params_one:
    np.testing.assert_allclose(params_one[k], params_many[k], rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(params_one[k], params_stretch[k], rtol=2e-3, atol=1e-5)
assert one[-1] < one[0]
print("same")
"""


@pytest.mark.parametrize(
    ("accumulate", "where"),
    [
        (2, "host"),
        pytest.param(1, "resident", marks=pytest.mark.slow),
        pytest.param(1, "host", marks=pytest.mark.slow),
        pytest.param(2, "resident", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_compute_what_one_does(accumulate, where):
    assert "same" in run_python(COMPARE, str(accumulate), where, devices=8)


def test_a_batch_that_does_not_divide_names_one_that_does():
    mesh = make_mesh()
    with pytest.raises(UserError, match="try 8 or 12"):
        check_batch(10, 4, mesh)
    check_batch(12, 4, mesh)


def test_too_many_devices_are_refused():
    with pytest.raises(UserError, match="devices=99: this machine has"):
        make_mesh(99)
