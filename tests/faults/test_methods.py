"""Every method of the transfer stage on two devices as on one, in bfloat16, resumed."""

import json
import pathlib
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.episodes.options import EpisodeOptions
from afterimage.finetune.program import finetune
from afterimage.models import ModelConfig
from tests.conftest import shrink
from tests.helpers import cut_back, run_python
from tests.test_finetune_episodes import draw as bars
from tests.test_finetune_program import draw, make_encoder, write_domain, write_npz
from tests.test_finetune_target import EVERYTHING

STEPS = 4
TARGET = {"target": "npz:{}/dark.npz"}
SURE = {**TARGET, "unlabelled": "target", "confidence": 0.3}
FEW = {"labels": 12, "unlabelled": "rest", "confidence": 0.3}
SEQUENCE = {"data": "npz:{}/eight.npz", "sequence": ("0,1", "2,3")}
EPISODES = {
    "data": "npz:{}/eight.npz",
    "ways": 2,
    "queries": 2,
    "episodes_per_step": 2,
    "test_classes": 0.5,
    "test_episodes": 4,
    "weight_decay": 0.0,
}
METHODS: dict[str, dict] = {
    "full": {},
    "probe": {"mode": "probe"},
    "partial": {"mode": "partial", "unfreeze_stages": 1},
    "two-phase": {"mode": "two-phase", "head_steps": 2},
    "gradual": {"mode": "gradual"},
    "scratch": {"mode": "scratch"},
    "layer-decay, ema": {"layer_decay": 0.7, "ema": 0.9},
    **{
        name: {"feature_selection": name, "keep_features": 9}
        for name in ("mutual-information", "l1", "fisher")
    },
    "l2-sp": {"l2_sp": 0.01, "l2_head": 0.01, "weight_decay": 0.0},
    "l2-sp-fisher": {
        "from_": "{}/teacher",
        "l2_sp": 0.01,
        "l2_sp_fisher": True,
        "weight_decay": 0.0,
    },
    "kl": {"from_": "{}/teacher", "kl": 1.0},
    "delta": {"delta": 0.1},
    **{
        name: {**TARGET, "align": (name,)}
        for name in ("dann", "cdan", "cdan-e", "mmd", "jmmd", "coral", "jdot")
    },
    **{
        f"density-ratio {name}": {**TARGET, "density_ratio": name}
        for name in ("classifier", "kmm", "ulsif")
    },
    "bbse": {**TARGET, "label_shift": "bbse"},
    "em": {**TARGET, "label_shift": "em"},
    **{
        f"statistics, {name}": {
            **TARGET,
            "from_": "{}/normed",
            "align": ("mmd",),
            "domain_statistics": name,
        }
        for name in ("source", "target", "joint", "frozen")
    },
    "pseudo-labels": {**FEW, "alignment_momentum": 0.9, "distribution_alignment": True},
    "propagation": {**FEW, "propagation": 0.5},
    "target pseudo-labels": {**SURE, "distribution_alignment": True},
    "counted frequencies": {
        **SURE,
        "distribution_alignment": True,
        "alignment_momentum": 0.9,
        "alignment_frequencies": "predicted",
    },
    "ink": {**SURE, "compose": "ink"},
    "sources": {"sources": ("npz:{}/bright.npz",), "source_weights": (1.0, 3.0)},
    "several sources, mdan": {
        **TARGET,
        "sources": ("npz:{}/bright.npz",),
        "align": ("mdan",),
    },
    "distil": {
        "from_": "{}/teacher",
        "teacher": "{}/teacher",
        "mode": "scratch",
        "distil": ("logits", "features", "relational"),
    },
    **{
        f"tasks, {name}": {
            "data": "npz:{}/two.npz",
            "tasks": ("light",),
            "task_weighting": name,
        }
        for name in ("fixed", "uncertainty", "pcgrad")
    },
    **{
        f"sequence, {name}": {**SEQUENCE, "continual": name} for name in ("none", "lwf")
    },
    "sequence, ewc": {**SEQUENCE, "continual": "ewc", "weight_decay": 0.0},
    "sequence, replay": {**SEQUENCE, "continual": "replay", "memory": 3},
    **{
        name: {**EPISODES, "meta": name}
        for name in get_args(get_type_hints(EpisodeOptions)["meta"])
        if name != "none"
    },
    "everything": {**TARGET, "mode": "two-phase", "head_steps": 2, **EVERYTHING},
}
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
