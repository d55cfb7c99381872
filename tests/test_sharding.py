"""A state split over eight devices trains as copies do; saved, it loads anywhere."""

import json

import pytest

from tests.helpers import run_python

TRAIN = """
import sys, jax, numpy as np
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.run import pretrain
from afterimage.training import loop

def train(out, **more):
    pretrain(PretrainConfig(
        data="synthetic:8x8x1", width=0.5, batch_size=32, steps=2, save_every=1,
        eval_every=2, log_every=1, ema=0.9, probe_images=0, pictures=0,
        tensorboard=False, out=out, **more))
    step, tree, _ = Store(out).restore()
    return step, {k: np.asarray(v) for k, v in flatten(tree).items()}
"""

COMPARE = (
    TRAIN
    + """
kept = {}
whole_fit = loop.fit
def fit(plan, step, state, *rest, **more):
    state = whole_fit(plan, step, state, *rest, **more)
    kept["state"] = state
    return state
from afterimage.training import job
job.fit = fit

def held():
    '''Numbers of the largest share of a device, by kind of array.'''
    return {
        kind: sum(max(shard.data.size for shard in leaf.addressable_shards)
                  for leaf in jax.tree.leaves(kept["state"][kind]))
        for kind in ("params", "opt", "ema")
    }

assert jax.device_count() == 8
step, copies = train(sys.argv[1] + "/copies")
full = held()
step, split = train(sys.argv[1] + "/split", shard_parameters=True)
part = held()
assert step == 2
assert copies.keys() == split.keys()
for path in copies:
    np.testing.assert_allclose(split[path], copies[path], rtol=1e-3, atol=2e-5,
                               err_msg=path)
    assert np.array_equal(split[path], copies[path]) or path.split("/")[0] != "key"
for kind in ("params", "opt", "ema"):
    print(kind, full[kind], part[kind])
    assert part[kind] < 0.16 * full[kind], kind  # an eighth, and the small arrays
"""
)

CONTINUE = (
    TRAIN
    + """
import pathlib, shutil
out = sys.argv[1] + "/split"
expected = {k: np.asarray(v) for k, v in flatten(Store(out).restore()[1]).items()}
shutil.rmtree(out + "/checkpoints/2")
assert jax.device_count() == int(sys.argv[2])
step, state = train(out, shard_parameters=sys.argv[3] == "split")
assert step == 2
for path in expected:
    np.testing.assert_allclose(state[path], expected[path], rtol=1e-3, atol=2e-5,
                               err_msg=path)
"""
)

COMPILE = """
import sys, jax, json
from jax.sharding import NamedSharding, PartitionSpec
from afterimage.data import open_data
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.run import _Pretraining
from afterimage.runs import Run
from afterimage.training.step import abstract, compile_step

found = {}
for split in (False, True):
    config = PretrainConfig(data="synthetic:32x32x3", width=1.0, batch_size=64, steps=4,
                            out=sys.argv[1], shard_parameters=split, resident=False)
    job = _Pretraining(config, Run(config.out, kind="pretrain", config=config),
                       open_data(config.data))
    state = abstract(job.template())
    rows = NamedSharding(job.mesh, PartitionSpec("data"))
    batch = {"image": jax.ShapeDtypeStruct((64, 32, 32, 3), "uint8", sharding=rows),
             "index": jax.ShapeDtypeStruct((64,), "int32", sharding=rows)}
    program = compile_step(job.trainer.phases[0].step).lower(state, batch, {}).compile()
    memory = program.memory_analysis()
    shardings = jax.tree.map(lambda x: x.sharding, state)
    after = program.output_shardings[0]
    same = jax.tree.map(lambda a, b, x: a.is_equivalent_to(b, x.ndim),
                        shardings, after, state)
    assert all(jax.tree.leaves(same))
    text = program.as_text()
    found[split] = [memory.argument_size_in_bytes, memory.temp_size_in_bytes,
                    text.count("all-gather"), text.count("reduce-scatter")]
print(json.dumps(found))
"""


SMALL = """
import jax, numpy as np
import jax.numpy as jnp
from afterimage.training.batches import make_mesh, place, replicate
from afterimage.training.optimiser import make_optimiser, make_schedule, split_groups
from afterimage.training.options import TrainingOptions
from afterimage.training.sharding import part, sharded_loss, sharded_step, spread
from afterimage.training.step import compile_step, init_state, make_step

options = TrainingOptions(batch_size=16, steps=6, accumulate=2, ema=0.9)
mesh = make_mesh()
rng = np.random.default_rng(0)
rows = rng.normal(size=(6, 16, 192)).astype(np.float32)
shapes = {"w": (192, 40), "v": (40, 192), "b": (192,), "odd": (33, 41)}
params = {k: (rng.normal(size=s) * 0.1).astype(np.float32) for k, s in shapes.items()}
partition = split_groups(params)

def loss(params, stats, batch, key, step):
    x = batch["image"]
    hidden = jax.nn.relu(x @ params["w"])
    error = jnp.mean((hidden @ params["v"] + params["b"] - x) ** 2)
    return error + jnp.mean(params["odd"] ** 2), ({}, stats)

def train(sharded):
    optimiser = make_optimiser(options, partition)
    state = init_state(params, {"m": rows[0]}, optimiser=optimiser, partition=partition,
                       seed=0, ema=True)
    step = make_step(sharded_loss(loss, mesh) if sharded else loss, optimiser=optimiser,
                     schedule=make_schedule(options, 6, 0), partition=partition,
                     options=options)
    step = compile_step(sharded_step(step, mesh) if sharded else step)
    state = (spread if sharded else replicate)(state, mesh)
    losses = []
    for batch in rows:
        state, metrics = step(state, place({"image": batch}, mesh), {})
        losses.append(float(metrics["loss"]))
    return losses, state

losses, copies = train(False)
split_losses, split = train(True)
assert losses[-1] < losses[0]
np.testing.assert_allclose(split_losses, losses, rtol=1e-5)
for one, other in zip(jax.tree.leaves(split), jax.tree.leaves(copies), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    assert one.sharding.is_equivalent_to(part(one.shape, mesh), one.ndim), one.shape
w, odd = split["params"]["w"], split["params"]["odd"]
assert {s.data.shape for s in w.addressable_shards} == {(24, 40)}
assert odd.is_fully_replicated
"""


def test_a_split_state_trains_as_copies_do():
    run_python(SMALL, devices=8)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_on_eight_devices_holds_an_eighth_and_loads_anywhere(tmp_path):
    print(run_python(COMPARE, str(tmp_path), devices=8, timeout=900))
    # Saved on eight devices, continued on one, in full.
    run_python(CONTINUE, str(tmp_path), "1", "copies", timeout=900)
    # Saved on one, continued on four, split.
    run_python(CONTINUE, str(tmp_path), "4", "split", devices=4, timeout=900)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_for_64_devices_each_holds_a_64th(tmp_path):
    said = run_python(COMPILE, str(tmp_path / "run"), devices=64, timeout=900)
    found = json.loads(said.splitlines()[-1])
    print(found)
    (full, *_), (part, _, gathers, _) = found["false"], found["true"]
    assert part < full / 20
    assert gathers > 0
