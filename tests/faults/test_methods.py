"""Every method of the transfer stage on two devices as on one, in bfloat16, resumed."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.method import METHODS as REGISTERED
from afterimage.finetune.run import finetune
from afterimage.models import ModelConfig
from tests.conftest import shrink
from tests.helpers import cut_back, run_python
from tests.test_finetune_episodes import draw as bars
from tests.test_finetune_program import draw, make_encoder, write_domain, write_npz
from tests.test_finetune_target import EVERYTHING

STEPS = 4
TARGET = {"target": "npz:{}/dark.npz"}
SURE = {"images": "target", "confidence": 0.3}
FEW = {"labels": 12}
SEQUENCE = {
    "data": "npz:{}/eight.npz",
    "task": {"name": "continual", "sequence": ("0,1", "2,3")},
}
EPISODES = {
    "data": "npz:{}/eight.npz",
    "task": {
        "name": "episodes",
        "ways": 2,
        "queries": 2,
        "per_step": 2,
        "test_classes": 0.5,
        "test_episodes": 4,
    },
    "weight_decay": 0.0,
}


def method(name: str, **settings: Any) -> dict[str, Any]:
    """One method with settings."""
    return {"methods": ({"name": name, **settings},)}


METHODS: dict[str, dict] = {
    "full": {},
    "probe": {"mode": "probe"},
    "partial": {"mode": {"name": "partial", "stages": 1}},
    "two-phase": {"mode": {"name": "two-phase", "head_steps": 2}},
    "gradual": {"mode": "gradual"},
    "scratch": {"mode": "scratch"},
    "layer-decay, ema": {"layer_decay": 0.7, "ema": 0.9},
    **{
        name: method("feature-selection", score=name, keep=9)
        for name in ("mutual-information", "l1", "fisher")
    },
    "l2-sp": {**method("l2-sp", head=0.01), "weight_decay": 0.0},
    "l2-sp-fisher": {
        "from_": "{}/teacher",
        **method("l2-sp", fisher=True),
        "weight_decay": 0.0,
    },
    "kl": {"from_": "{}/teacher", **method("kl-to-source")},
    "delta": method("delta"),
    "mixup": method("mixup", cutmix=0.5),
    "stochastic-depth": method("stochastic-depth", rate=0.5),
    "dropout": method("dropout", rate=0.5),
    **{
        name: {**TARGET, **method(name)}
        for name in ("dann", "cdan", "mmd", "jmmd", "coral", "jdot")
    },
    "cdan-e": {**TARGET, **method("cdan", entropy=True)},
    **{
        f"density-ratio {name}": {**TARGET, **method("density-ratio", estimator=name)}
        for name in ("classifier", "kmm", "ulsif")
    },
    "bbse": {**TARGET, **method("label-shift", estimator="bbse")},
    "em": {**TARGET, **method("label-shift", estimator="em")},
    **{
        f"statistics, {name}": {
            **TARGET,
            "from_": "{}/normed",
            **method("mmd"),
            "domain_statistics": name,
        }
        for name in ("source", "target", "joint", "frozen")
    },
    "pseudo-labels": {
        **FEW,
        **method(
            "pseudo-labels",
            confidence=0.3,
            alignment_momentum=0.9,
            distribution_alignment=True,
        ),
    },
    "propagation": {**FEW, **method("pseudo-labels", confidence=0.3, propagation=0.5)},
    "target pseudo-labels": {
        **TARGET,
        **method("pseudo-labels", **SURE, distribution_alignment=True),
    },
    "counted frequencies": {
        **TARGET,
        **method(
            "pseudo-labels",
            **SURE,
            distribution_alignment=True,
            alignment_momentum=0.9,
            alignment_frequencies="predicted",
        ),
    },
    "ink": {
        **TARGET,
        "methods": (
            {"name": "pseudo-labels", **SURE},
            {"name": "compose", "kind": "ink"},
        ),
    },
    "sources": method("sources", images=("npz:{}/bright.npz",), weights=(1.0, 3.0)),
    "several sources, mdan": {
        **TARGET,
        "methods": ({"name": "sources", "images": ("npz:{}/bright.npz",)}, "mdan"),
    },
    "distil": {
        "from_": "{}/teacher",
        "mode": "scratch",
        **method(
            "distil",
            teacher="{}/teacher",
            kinds=("logits", "features", "relational"),
        ),
    },
    **{
        f"tasks, {name}": {
            "data": "npz:{}/two.npz",
            **method("tasks", columns=("light",), weighting=name),
        }
        for name in ("fixed", "uncertainty", "pcgrad")
    },
    "sequence, none": SEQUENCE,
    "sequence, lwf": {**SEQUENCE, **method("lwf")},
    "sequence, ewc": {**SEQUENCE, **method("ewc"), "weight_decay": 0.0},
    "sequence, replay": {**SEQUENCE, **method("replay", memory=3)},
    **{
        name: {**EPISODES, **method(name)}
        for name in ("maml", "proto-maml", "reptile", "prototypes")
    },
    "maml, first order": {**EPISODES, **method("maml", first_order=True)},
    "anil": {**EPISODES, **method("maml", only_head=True)},
    "everything": {
        **TARGET,
        "mode": {"name": "two-phase", "head_steps": 2},
        **EVERYTHING,
    },
}


def test_every_method_is_here():
    """And no name that is none."""
    used = {
        one if isinstance(one, str) else one["name"]
        for given in METHODS.values()
        if given is not METHODS["everything"]
        for one in given.get("methods", ())
    }
    assert used == set(REGISTERED.names())


NORMED = ModelConfig(name="resnet18", image_size=(8, 8), channels=1, width=0.25)


def prepared(home: pathlib.Path, method: str) -> None:
    """Encoders and data of every method, and a teacher for those that have one."""
    make_encoder(home / "encoder")
    make_encoder(home / "normed", NORMED)
    write_npz(home / "data.npz")
    write_domain(home / "dark.npz", lambda x: x // 3)
    write_domain(home / "bright.npz", lambda x: 255 - x)
    (x, y), (x_test, y_test) = draw(0, 60), draw(1, 30)
    arrays = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
    light = {"y_train_light": np.arange(60) % 2, "y_test_light": np.arange(30) % 2}
    np.savez(home / "two.npz", **arrays, **light)
    (x, y), (x_test, y_test) = bars(0, 12), bars(1, 4)
    arrays = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
    np.savez(home / "eight.npz", **arrays)
    if METHODS[method].get("from_") == "{}/teacher":
        finetune(configured(home, "teacher", "full"))


def configured(home: pathlib.Path, out: str, method: str, **more: Any):
    """The settings of one run, with the folder for each {}."""
    usual = {
        "from_": "{}/encoder",
        "data": "npz:{}/data.npz",
        "mode": "full",
        "batch_size": 12,
        "augment": "none",
        "steps": STEPS,
        "save_every": 2,
        "eval_every": 2,
        "keep_last": 9,
        "lr": 1e-2,
        "log_every": 1,
        "tensorboard": False,
        "out": f"{{}}/{out}",
    }

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{}", str(home))
        if isinstance(value, dict):
            return {name: filled(each) for name, each in value.items()}
        return tuple(map(filled, value)) if isinstance(value, tuple) else value

    given = {**usual, **METHODS[method], **more}
    return FinetuneConfig(**{name: filled(value) for name, value in given.items()})


def learned(run: pathlib.Path) -> np.ndarray:
    """All parameters after the last step, in one row."""
    _, state, _ = Store(run).restore(step=STEPS)
    leaves = flatten(state["params"]).values()
    return np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])


def losses(run: pathlib.Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


def everywhere(method: str, folder: str) -> None:
    """What the test asserts, in a process with two devices."""
    home = pathlib.Path(folder)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        prepared(home, method)
        run = {
            name: finetune(configured(home, name, method, **more)).run
            for name, more in {
                "one": {"devices": 1},
                "two": {"devices": 2},
                "half": {"devices": 2, "precision": "bfloat16"},
            }.items()
        }
        cut = cut_back(run["two"], home / "cut", 2)
        finetune(configured(home, "cut", method, devices=2))
    one, two, half = (learned(run[name]) for name in ("one", "two", "half"))
    np.testing.assert_array_equal(learned(cut), two, "resumed")
    np.testing.assert_allclose(losses(run["two"]), losses(run["one"]), rtol=2e-3)
    assert np.linalg.norm(two - one) < 5e-3 * np.linalg.norm(one), "two devices"
    assert half.dtype == np.float32
    assert np.isfinite(half).all()
    np.testing.assert_allclose(losses(run["half"]), losses(run["one"]), rtol=0.2)


PROGRAM = """
import sys
from tests.faults.test_methods import everywhere

everywhere(*sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_on_two_devices_in_bfloat16_and_resumed(method, tmp_path):
    run_python(PROGRAM, method, str(tmp_path), devices=2)
