"""Saved on N devices, restored on M: the same numbers, placed as the target says."""

import os
import socket
import subprocess
import sys

import pytest

from afterimage.checkpoints import inspect
from afterimage.checkpoints.store import Store

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from afterimage.checkpoints.store import Store

devices = int(sys.argv[1])
assert jax.device_count() == devices
mesh = Mesh(np.array(jax.devices()), ("data",))
spread, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
state = {
    "w": jax.device_put(jnp.arange(64.0).reshape(16, 4), spread),
    "b": jax.device_put(jnp.arange(3, dtype=jnp.bfloat16), whole),
    "step": jax.device_put(jnp.int32(5), whole),
}
for work in sys.argv[2:]:
    action, saved_on, folder = work.split(":", 2)
    store = Store(folder)
    if action == "save":
        store.save(5, state, manifest={"devices": devices}, wait=True)
        continue
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    step, tree, manifest = store.restore(target)
    assert (step, manifest) == (5, {"devices": int(saved_on)})
    for name, want in state.items():
        have = tree[name]
        assert have.sharding == want.sharding, name
        assert have.dtype == want.dtype
        np.testing.assert_array_equal(np.asarray(have), np.asarray(want))
    plain = store.restore()[1]
    np.testing.assert_array_equal(plain["w"], np.asarray(state["w"]))
"""


def run(devices, *work):
    flag = f"--xla_force_host_platform_device_count={devices}"
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(devices), *work],
        env=os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
        check=True,
    )


def test_device_counts_may_change(tmp_path):
    eight, one = tmp_path / "eight", tmp_path / "one"
    run(8, f"save:8:{eight}")
    run(1, f"restore:8:{eight}", f"save:1:{one}")
    run(2, f"restore:8:{eight}", f"restore:1:{one}")


PROCESS = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
import jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from afterimage.checkpoints.store import Store
from tests.manifests import encoder_manifest

assert jax.process_count() == 2
mesh = Mesh(np.array(jax.devices()), ("data",))
def put(array, spec):
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(array.shape, sharding, lambda i: array[i])
spread, whole = np.arange(64.0, dtype=np.float32).reshape(16, 4), np.arange(3)
store = Store(sys.argv[1], keep_last=1)
for step in (1, 2):
    state = {"w": put(spread + step, P("data")), "b": put(whole + step, P())}
    state["b"] = state["b"].astype(jnp.bfloat16)
    store.save(step, state, manifest={"n": step},
               encoder=({"b": state["b"]}, {}, encoder_manifest(n=step)))
step, tree, manifest = store.restore(state)
assert (step, manifest) == (2, {"n": 2})
for name in state:
    assert tree[name].sharding == state[name].sharding
    pairs = zip(tree[name].addressable_shards, state[name].addressable_shards)
    for have, want in pairs:
        np.testing.assert_array_equal(np.asarray(have.data), np.asarray(want.data))
print("good")
"""


@pytest.mark.slow
def test_two_processes_save_and_restore_one_checkpoint(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path), address, str(index)],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        said = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [text.endswith("good\n") for text in said] == [True, True]
    assert inspect.verify(tmp_path) == []
    step, tree, _ = Store(tmp_path).restore()
    assert step == 2
    assert tree["w"].shape == (16, 4)
    assert Store(tmp_path).steps() == [2]
