import json
import pathlib
import types

import numpy as np
import pytest

from afterimage.checkpoints.files import RunLock
from afterimage.errors import DataError, UserError
from afterimage.evaluation.configs import EvaluateConfig
from afterimage.finetune.evaluate import evaluate
from afterimage.finetune.presets import PRESETS as FINETUNE
from afterimage.pretrain.presets import PRESETS as PRETRAIN
from benchmarks import programs, representations
from benchmarks.recipes import ERROR, TABLES, Row, Table
from benchmarks.representations import Representations

SHARED = pathlib.Path(__file__).parent.parent.parent / "shared" / "data"
WANTED = {
    "mnist-masci": [f"{k}-{n}" for n in ("1k", "10k", "all") for k in ("pretrained",)],
    "mnist-labels": ["best-100", "scratch-100", "best-1000", "best-all"],
    "cifar10-masci": ["pretrained-1k", "scratch-10k", "pretrained-all"],
    "cifar10": ["linear-probe", "fine-tuned", "scratch", "fine-tuned-4000"],
    "cifar10-patches": ["linear-probe"],
}


def test_every_row_that_is_asked_for_is_there_with_its_control():
    assert set(TABLES) == set(WANTED)
    for name, table in TABLES.items():
        assert set(WANTED[name]) <= set(table.rows)
        kinds = {(row.labels, row.kind) for row in table.rows.values()}
        for labels, kind in kinds:
            if kind == "pretrained":
                assert (labels, "scratch") in kinds
            if kind == "linear-probe":
                assert (labels, "untrained-probe") in kinds


@pytest.mark.parametrize("name", TABLES)
def test_every_recipe_is_a_configuration_that_can_work(name):
    from afterimage.finetune.config import FinetuneConfig
    from afterimage.pretrain.config import PretrainConfig

    for row in TABLES[name].rows.values():
        PretrainConfig(data="digits", out="x", **TABLES[name].pretrain | row.pretrain)
        settings = TABLES[name].finetune | row.settings
        FinetuneConfig(from_="a", data="digits", out="x", labels=row.labels, **settings)
        small = TABLES[name].stand_in
        settings |= small["finetune"]
        FinetuneConfig(from_="a", data="digits", out="x", labels=row.labels, **settings)
        settings = TABLES[name].pretrain | row.pretrain | small["pretrain"]
        PretrainConfig(data="digits", out="x", **settings)


def test_the_rows_of_a_preset_have_its_settings():
    found = Representations().settings_of("mnist-labels", "propagated-100")
    preset = dict(FINETUNE["mnist-pseudo-labels"].settings)
    assert found["labels"] == 10 * preset.pop("labels_per_class")
    assert found["finetune"] == preset


def test_budgets_are_told_apart():
    def budget(**settings):
        return Representations(**settings).settings_of("mnist-masci", "pretrained-1k")

    assert budget()["budget"] == "full"
    assert (
        budget(steps=10)["budget"] == budget(finetune_steps=10)["budget"] == "stand-in"
    )
    assert budget(steps=10)["pretrain"]["steps"] == 10
    assert budget(seeds=2) != budget()
    small = budget(stand_in=True)
    assert small["budget"] == "stand-in"
    assert (small["pretrain"]["steps"], small["finetune"]["steps"]) == (1440, 120)
    assert budget(stand_in=True, steps=10)["pretrain"]["steps"] == 10


def test_the_stand_in_of_cifar_10_has_a_network_for_a_cpu():
    both = (
        Representations(stand_in=small).settings_of("cifar10", "fine-tuned")
        for small in (False, True)
    )
    assert [s["pretrain"]["model"] for s in both] == ["resnet18", "conv"]


def test_the_stand_in_of_cifar_10_is_the_preset_for_a_cpu():
    found = Representations(stand_in=True).settings_of("cifar10", "fine-tuned")
    for stage, presets in (("pretrain", PRETRAIN), ("finetune", FINETUNE)):
        whole = {"precision": "float32", **presets["small-photos"].settings}
        assert found[stage] == whole


def test_settings_and_data_that_cannot_work_are_all_named(tmp_path):
    with pytest.raises(UserError, match=r"(?s)'mnist'.*best-10.*seeds=0"):
        Representations(table=("mnist", "mnist-labels"), only=("best-10",), seeds=0)
    with pytest.raises(DataError, match=r"missing: .*mnist\.npz"):
        representations.run(
            Representations(table=("mnist-labels",), folder=str(tmp_path))
        )


@pytest.fixture
def small(monkeypatch, tmp_path, tiny):
    """A table of 300 MNIST images, with one row of each kind."""
    file = SHARED / "mnist.npz"
    if not file.is_file():
        pytest.skip("needs ../shared/data/mnist.npz")
    with np.load(file) as arrays:
        few = {name: arrays[name][:300] for name in arrays}
    np.savez(tmp_path / "mnist.npz", **few)
    tuning = TABLES["mnist-masci"].finetune | {"batch_size": 16, "steps": 3}
    table = Table(
        data="npz:{}/mnist.npz",
        pretrain={"model": "conv-masci", "width": 0.1, "steps": 4, "batch_size": 16},
        finetune=tuning | {"head_width": 8},
        rows={
            "best-100": Row(100, "pretrained", metric=ERROR),
            "scratch-100": Row(100, "scratch", metric=ERROR),
            "linear-probe": Row(None, "linear-probe", metric=ERROR),
            "views-100": Row(
                100, "pretrained", metric=ERROR, views="flip", runs="best-100"
            ),
            "views-linear-probe": Row(
                None, "linear-probe", metric=ERROR, views="flip", grid_3=True
            ),
        },
        stand_in={"pretrain": {}, "finetune": {}},
    )
    monkeypatch.setitem(TABLES, "small", table)
    return Representations(
        table=("small",),
        seeds=1,
        steps=2,
        folder=str(tmp_path),
        out=str(tmp_path / "runs"),
        results=str(tmp_path / "results"),
    )


def test_a_table_is_measured_kept_and_measured_again(small, tmp_path, capsys):
    rows = representations.run(small)
    assert [r["row"] for r in rows] == list(TABLES["small"].rows)
    for entry in rows:
        assert entry["n"] == 1
        settings = entry["settings"]
        # From scratch the pretraining decides nothing: one step makes the network.
        network = {"model": "conv-masci", "width": 0.1, "steps": 1}
        scratch = settings["kind"] == "scratch"
        assert settings["budget"] == ("full" if scratch else "stand-in")
        assert (settings["pretrain"] == network) == scratch
        assert scratch or settings["pretrain"]["steps"] == 2
        assert all(0 <= value <= 100 for value in entry["each"])
        assert entry["mean"] == pytest.approx(np.mean(entry["each"]))
    # The probe sees what three steps of tuning do not.
    assert rows[2]["mean"] < 60
    assert rows[4]["settings"]["grid_3"]
    assert rows[4]["mean"] != rows[2]["mean"]
    # Views are of the other row's run, and of nothing else.
    (run,) = (tmp_path / "runs" / "small").glob("best-100-*")
    assert not list(run.parent.glob("views*"))
    where = {"from_": str(run), "data": f"npz:{tmp_path / 'mnist.npz'}"}
    found = evaluate(EvaluateConfig(**where, split="test", views="flip"))
    assert rows[3]["mean"] == pytest.approx(100 * (1 - found["accuracy"]["value"]))
    assert "kept" not in capsys.readouterr().out
    again = representations.run(small)
    assert again == rows
    assert capsys.readouterr().out.count("kept, measured") == 5
    # A killed run loses the rows it had not written, and no other.
    file = tmp_path / "results" / "representations.json"
    file.write_text(json.dumps([r for r in rows if r["row"] != "scratch-100"]))
    found = {r["row"]: r for r in representations.run(small)}
    assert found["scratch-100"]["each"] == rows[1]["each"]
    assert capsys.readouterr().out.count("kept, measured") == 4


@pytest.mark.slow
def test_an_encoder_that_another_program_has_is_waited_for(
    tmp_path, monkeypatch, capsys
):
    lock, waits = RunLock(tmp_path / "encoder"), []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            lock.release()

    monkeypatch.setattr(programs, "time", types.SimpleNamespace(sleep=sleep))
    with lock:
        run = programs.pretrained(
            "digits", lock.folder, 0, model="conv", width=0.1, steps=1
        )
    assert len(waits) == 2
    assert capsys.readouterr().out.count("Asked again") == 1
    assert (pathlib.Path(run) / "report.html").is_file()


def test_a_row_may_want_an_encoder_of_its_own():
    config = Representations()
    latent, best = (
        config.settings_of("mnist-labels", name)["pretrain"]
        for name in ("latent-100", "best-100")
    )
    assert latent == best | {
        "objective": {**best["objective"], "name": "latent", "weight": 1.0, "patch": 8}
    }
