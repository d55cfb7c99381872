"""Adaptation interrupted, on several devices, and begun by an older version."""

import json
import signal

import jax
import numpy as np
import pytest

from afterimage.checkpoints.store import Store
from afterimage.errors import Interrupted, UserError
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.modes import TwoPhase
from afterimage.finetune.run import FinetuneJob, finetune
from afterimage.runs import Run
from tests.helpers import run_python
from tests.test_finetune_program import draw, make_encoder, write_npz


@pytest.fixture
def home(tmp_path_factory, tiny):
    return prepared(tmp_path_factory.mktemp("adaptation"))


def prepared(folder):
    """An encoder, labelled images, and darker ones."""
    make_encoder(folder / "encoder")
    write_npz(folder / "data.npz")
    np.savez(folder / "dark.npz", images=draw(2, 40)[0] // 3)
    return folder


def settings(home, out, **more):
    return {
        "from_": str(home / "encoder"),
        "data": f"npz:{home / 'data.npz'}",
        "target": f"npz:{home / 'dark.npz'}",
        "methods": "dann",
        "mode": "full",
        "steps": 4,
        "batch_size": 12,
        "eval_every": 2,
        "tensorboard": False,
        "out": str(out),
        **more,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "phases",
    [
        {"mode": "full"},
        pytest.param(
            {"mode": TwoPhase(head_steps=2), "ema": 0.9}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_stopped_adversary_continues_bit_identical(
    home, tmp_path, monkeypatch, phases
):
    """SIGTERM inside the phase, or at the boundary; then the same command."""
    finetune(FinetuneConfig(**settings(home, tmp_path / "whole", **phases)))
    stopped = FinetuneConfig(**settings(home, tmp_path / "stopped", **phases))
    real = FinetuneJob.evaluate

    def signalled(job, state, step, stop):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return real(job, state, step, stop)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneJob, "evaluate", signalled)
        with pytest.raises(Interrupted):
            finetune(stopped)
    assert max(Store(stopped.out).steps()) == 2
    finetune(stopped)
    states = [Store(tmp_path / name).restore(step=4) for name in ("whole", "stopped")]
    assert "dann" in states[0][1]["params"]["terms"]
    jax.tree.map(np.testing.assert_array_equal, states[0][1], states[1][1])


TWO_DEVICES = """
import json, sys
import jax
import numpy as np
from afterimage import runtime
from afterimage.checkpoints.store import Store
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.modes import TwoPhase
from afterimage.finetune.run import FinetuneJob, finetune

runtime.compiler_options = lambda *_: {"xla_backend_optimization_level": 0}
found = []
for devices in (1, 2):
    given = json.loads(sys.argv[1])
    given |= {"devices": devices, "out": given["out"] + str(devices)}
    run = finetune(FinetuneConfig(**given)).run
    found.append(Store(run).restore(step=given["steps"])[1])
assert jax.device_count() == 2
one, two = found
jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    (one["params"], one["stats"]),
    (two["params"], two["stats"]),
)
print("same")
"""


@pytest.mark.slow
def test_two_devices_adapt_as_one(tmp_path):
    given = settings(prepared(tmp_path), tmp_path / "run", steps=2)
    assert "same" in run_python(TWO_DEVICES, json.dumps(given), devices=2)


def test_a_run_of_an_older_version_continues(home, tmp_path):
    """Settings that did not exist then count as their defaults."""

    def opened(**more):
        given = settings(home, tmp_path / "run", **more)
        with Run(given["out"], kind="finetune", config=FinetuneConfig(**given)) as run:
            return run.path

    folder = opened()
    path = folder / "config.json"
    stored = json.loads(path.read_text())
    for name in ("domain_statistics", "class_weights", "task"):
        del stored["config"][name]
    del stored["config"]["methods"][0]["weight"]
    path.write_text(json.dumps(stored))
    (folder / "checkpoints" / "2").mkdir(parents=True)
    opened()
    changed = r"dann.weight: 1.0 in the folder, 0.5 now"
    with pytest.raises(UserError, match=changed):
        opened(methods={"name": "dann", "weight": 0.5})
    with pytest.raises(
        UserError, match=r"methods: \['dann'\] in the folder, \['mmd'\]"
    ):
        opened(methods="mmd")
