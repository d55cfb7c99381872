"""Fine-tuning as a whole: every mode on a tiny encoder and an npz of three classes."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afterimage.checkpoints.errors import TransferError, UsageError
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.checkpoints.weights import read_encoder, write_encoder
from afterimage.classifier import load_classifier
from afterimage.data import Preprocessing
from afterimage.encoder import load_encoder
from afterimage.errors import DataError, UserError
from afterimage.evaluation.configs import EvaluateConfig
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.evaluate import evaluate, text
from afterimage.finetune.modes import Partial, TwoPhase
from afterimage.finetune.run import finetune
from afterimage.models import ModelConfig, Network, build_encoder
from afterimage.training.loop import Callbacks

MODEL = ModelConfig(name="conv", image_size=(8, 8), channels=1, width=0.25)
PREPROCESSING = Preprocessing((8, 8), (0.4,), (0.3,), 1)


def draw(seed, count, names=("bars", "dots", "rings")):
    """uint8 [n, 8, 8, 1] of three patterns in noise, and their names."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    patterns = np.zeros((3, 8, 8))
    patterns[0, :, ::2] = patterns[1, ::3, ::3] = 1
    patterns[2, 1:7, 1:7] = 1
    patterns[2, 2:6, 2:6] = 0
    images = 150 * patterns[labels] + rng.uniform(0, 100, (count, 8, 8))
    return images.astype(np.uint8)[..., None], np.array(names)[labels]


def write_npz(path, train=60, test=30, **names):
    x_train, y_train = draw(0, train, **names)
    x_test, y_test = draw(1, test, **names)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return f"npz:{path}"


def write_domain(path, change):
    """Images of the same three patterns as another domain: changed by `change`."""
    (x, y), (x_test, y_test) = draw(2, 60), draw(3, 30)
    x, x_test = change(x), change(x_test)
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)


def make_encoder(folder, model=MODEL, extra=None, **preprocessing):
    module = build_encoder(model, rngs=nnx.Rngs(7))
    info = [vars(i) for i in module.feature_info]
    _, params, stats = Network.create(module)
    manifest = {
        "model": model.to_dict(),
        "preprocessing": PREPROCESSING.to_dict() | preprocessing,
        "feature_info": info,
        "data": {"name": "patterns", "fingerprint": "0"},
        "trained": {"steps": 0},
    }
    write_encoder(folder, {**params, **(extra or {})}, stats, manifest)
    return str(folder)


@pytest.fixture
def home(tmp_path_factory, tiny):
    """A folder with an encoder of two stages and data that no test changes."""
    folder = tmp_path_factory.mktemp("finetune")
    make_encoder(folder / "encoder")
    write_npz(folder / "data.npz")
    return folder


def config(home, out, **settings):
    usual = {
        "from_": str(home / "encoder"),
        "data": f"npz:{home / 'data.npz'}",
        "steps": 4,
        "batch_size": 12,
        "augment": "none",
        "tensorboard": False,
        "log_every": 1,
    }
    return FinetuneConfig(out=str(out), **{**usual, **settings})


def rows(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
        for line in lines
    ]


@pytest.mark.parametrize(
    ("mode", "settings", "frozen"),
    [
        ("probe", {}, ""),
        pytest.param(Partial(stages=1), {}, "stages/0/", marks=pytest.mark.slow),
        pytest.param(
            "full",
            {"layer_decay": 0.7, "ema": 0.9},
            "^$",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            Partial(unfreeze=("norm",)),
            {"layer_decay": 0.5},
            "^(?!.*norm)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_modes_freeze_what_they_say(home, tmp_path, mode, settings, frozen):
    """Bit-identical leaves with weight decay on; the rest moved; all of it loads."""
    result = finetune(config(home, tmp_path / "run", mode=mode, lr=0.01, **settings))
    before, after = (
        flatten(read_encoder(p)[0]) for p in (home / "encoder", result.run)
    )
    for path, leaf in after.items():
        still = np.array_equal(leaf, before[path])
        # A bias before a norm may have no gradient.
        if re.search(frozen, path):
            assert still, path
        elif "kernel" in path or "norm" in path:
            assert not still, path
    assert result.results["mode"] == getattr(mode, "name", mode)
    assert result.results["test"]["examples"] == 30
    images = draw(1, 5)[0]
    loaded = load_classifier(str(result.run))
    encoder = load_encoder(result.run)
    maps, _ = loaded.network.maps(
        loaded.params, loaded.stats, PREPROCESSING.normalise(images)
    )
    np.testing.assert_allclose(
        encoder.features(images), maps[-1].mean((1, 2)), rtol=1e-4, atol=1e-5
    )


def test_it_learns_and_the_report_holds_the_figures(home, tmp_path):
    settings = {"steps": 60, "lr": 3e-3, "labels_per_class": 5}
    result = finetune(config(home, tmp_path / "run", mode="full", **settings))
    report = result.results["test"]
    assert report["accuracy"]["value"] > 0.9
    page = result.report.read_text()
    assert "confuses" in page
    assert "rings" in page
    assert "rings" in (result.run / "confusion.md").read_text()
    assert "last step" in result.summary()
    stored = json.loads((result.run / "results.json").read_text())
    assert stored["test"]["accuracy"] == report["accuracy"]
    # Scored again from the artefact alone, with the classes numbered otherwise.
    other = write_npz(tmp_path / "other.npz", names=("bars", "dots", "rings"))
    again = evaluate(EvaluateConfig(from_=str(result.run), data=other))
    assert again["confusion"] == report["confusion"]
    images, names = draw(1, 30)
    keep = names != "bars"
    np.savez(tmp_path / "two.npz", images=images[keep], labels=names[keep])
    two = evaluate(
        EvaluateConfig(from_=str(result.run), data=f"npz:{tmp_path / 'two.npz'}")
    )
    assert two["absent"] == ["bars"]
    assert np.array(two["confusion"])[1:].tolist() == report["confusion"][1:]


def test_labels_are_balanced_recorded_and_seeded(home, tmp_path):
    def listed(name, **settings):
        result = finetune(
            config(home, tmp_path / name, mode="probe", steps=1, labels=7, **settings)
        )
        return json.loads((result.run / "labels.json").read_text())

    one, same, other = listed("a"), listed("b"), listed("c", seed=1)
    assert sorted(len(ids) for ids in one["train"].values()) == [2, 2, 3]
    assert one["classes"] == ["bars", "dots", "rings"]
    assert one["train"] == same["train"]
    assert one["train"] != other["train"]
    _, names = draw(0, 60)
    for name, ids in one["train"].items():
        assert {names[int(i.rsplit("/", 1)[-1])] for i in ids} == {name}


def test_transfer_is_reported_leaf_by_leaf(home, tmp_path, capsys):
    finetune(config(home, tmp_path / "run", mode="probe", steps=1))
    found = json.loads((tmp_path / "run" / "transfer.json").read_text())
    leaves = len(flatten(read_encoder(home / "encoder")[0]))
    assert found["params"]["totals"]["loaded"]["leaves"] == leaves
    status = {row["path"]: row["status"] for row in found["params"]["rows"]}
    assert status["heads/classes/linear/kernel"] == "re-initialised"
    assert "re-initialised  heads/classes/linear/kernel" in capsys.readouterr().out


@pytest.mark.slow
def test_scratch_takes_the_architecture_and_no_weights(home, tmp_path):
    run = finetune(config(home, tmp_path / "run", mode="scratch", steps=1, lr=1e-9)).run
    assert not (run / "transfer.json").exists()
    before, after = (flatten(read_encoder(p)[0]) for p in (home / "encoder", run))
    assert before.keys() == after.keys()
    kernels = [path for path in before if path.endswith("kernel")]
    assert not any(np.allclose(before[p], after[p], atol=1e-4) for p in kernels)


def test_leaves_that_do_not_fit_are_an_error_unless_named(home, tmp_path):
    extra = {"neck": {"kernel": np.zeros((2, 2), np.float32)}}
    odd = make_encoder(tmp_path / "odd", extra=extra)
    with pytest.raises(TransferError, match=r"ignored +encoder/neck/kernel"):
        finetune(config(home, tmp_path / "a", from_=odd, mode="probe"))
    named = config(
        home, tmp_path / "b", from_=odd, mode="probe", steps=1, may_differ=("/neck/",)
    )
    assert finetune(named).results["test"] is not None


@pytest.mark.slow
def test_other_channels_need_to_be_asked_for_and_named(home, tmp_path):
    grey = make_encoder(
        tmp_path / "rgb",
        ModelConfig("conv", (8, 8), 3, width=0.25),
        mean=[0.4] * 3,
        std=[0.3] * 3,
        channels=3,
    )
    with pytest.raises(
        TransferError, match=r"mismatched +encoder/stages/0/down/kernel"
    ):
        finetune(config(home, tmp_path / "a", from_=grey, mode="probe", channels=1))
    rule = ("^encoder/stages/0/down/kernel$",)
    result = finetune(
        config(
            home,
            tmp_path / "b",
            from_=grey,
            mode="probe",
            steps=1,
            channels=1,
            may_differ=rule,
        )
    )
    assert load_encoder(result.run).preprocessing.channels == 1


@pytest.mark.parametrize("cut", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_resume_is_exact_at_the_boundary_and_inside_a_phase(
    home, tmp_path, capsys, cut
):
    """A run cut back to any checkpoint and repeated ends as the whole one did."""
    settings = {
        "mode": TwoPhase(head_steps=3),
        "steps": 6,
        "save_every": 1,
        "eval_every": 2,
        "keep_last": 10,
        "ema": 0.9,
        "augment": "shift",
    }
    whole = finetune(config(home, tmp_path / "whole", **settings)).run
    _, expected, _ = Store(whole).restore(step=6)
    run = tmp_path / f"cut-{cut}"
    shutil.copytree(whole, run)
    for step in range(cut + 1, 7):
        shutil.rmtree(run / "checkpoints" / str(step))
    for name in ("results.json", "report.html"):
        (run / name).unlink()
    finetune(config(home, run, **settings))
    assert f"Continuing after step {cut}" in capsys.readouterr().out
    _, found, _ = Store(run).restore(step=6)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert rows(run) == rows(whole)
    for name in ("test", "selection"):
        stored = [json.loads((r / "results.json").read_text()) for r in (run, whole)]
        assert stored[0][name] == stored[1][name]


@pytest.mark.slow
def test_averaged_weights_carry_averaged_moments(home, tmp_path):
    """Of an encoder with BatchNorm, in the artefact of the step that is kept."""
    model = dataclasses.replace(MODEL, norm="batch")
    source = make_encoder(home / "batch", model)
    settings = {"from_": source, "mode": "full", "ema": 0.9, "save_every": 1}
    result = finetune(config(home, tmp_path / "run", select="last", **settings))
    _, state, _ = Store(result.run).restore(step=4)
    loaded = flatten(read_encoder(result.run)[1])
    averaged, live = flatten(state["ema_stats"]), flatten(state["stats"]["encoder"])
    assert set(loaded) == set(live)
    for path, leaf in loaded.items():
        np.testing.assert_array_equal(leaf, averaged[f"encoder/{path}"])
        assert not np.array_equal(leaf, live[path])
    kept = load_classifier(str(result.run)).stats
    jax.tree.map(np.testing.assert_array_equal, flatten(kept["encoder"]), loaded)


@pytest.mark.slow
def test_the_report_is_there_from_the_first_evaluation_on(home, tmp_path):
    """It says how far the run is, and has the curves so far."""
    out, pages = tmp_path / "run", {}

    def read(step, metrics):
        pages[step] = (out / "report.html").read_text()
        assert "train_accuracy" in metrics

    settings = config(home, out, mode="probe", eval_every=2)
    result = finetune(settings, callbacks=Callbacks(on_evaluation=read))
    assert list(pages) == [2, 4]
    assert "Not finished: step 2 of 4." in pages[2]
    assert "<svg" in pages[2]
    assert "Not finished" not in result.report.read_text()
    assert "test accuracy" in result.report.read_text()


@pytest.mark.slow
def test_data_and_target_as_objects(home, tmp_path):
    """Arrays in place of a spec; the run knows them again, and others are refused."""
    (x, y), (x_test, y_test) = draw(0, 60), draw(1, 30)
    arrays = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
    dark = {name: a // 3 if a.dtype == np.uint8 else a for name, a in arrays.items()}
    settings = {"data": None, "mode": "full", "methods": "coral", "target": "given"}
    given = config(home, tmp_path / "run", **settings)
    result = finetune(given, data=arrays, target=dark)
    assert result.results["test"]["examples"] == 30
    assert finetune(given, data=arrays, target=dark).complete
    with pytest.raises(UserError, match="fingerprint"):
        finetune(given, data=arrays, target=arrays)
    alone = config(home, tmp_path / "alone", data=None, mode="probe")
    for wrong, object_ in ((given, None), (alone, dark)):
        with pytest.raises(UserError, match="target='given'"):
            finetune(wrong, data=arrays, target=object_)
    with pytest.raises(UserError, match="no data"):
        finetune(config(home, tmp_path / "other", data=None, mode="probe"))


def test_a_complete_run_is_left_alone(home, tmp_path, capsys):
    first = finetune(config(home, tmp_path / "run", mode="probe", steps=2))
    before = {p: p.stat().st_mtime_ns for p in first.run.rglob("*.json")}
    again = finetune(config(home, tmp_path / "run", mode="probe", steps=2))
    assert again.complete
    assert "is complete" in capsys.readouterr().out
    assert again.results == json.loads((first.run / "results.json").read_text())
    assert {p: p.stat().st_mtime_ns for p in first.run.rglob("*.json")} == before
    with pytest.raises(UserError, match="mode: 'probe' in the folder, 'full' now"):
        finetune(config(home, tmp_path / "run", mode="full", steps=2))


@pytest.mark.slow
def test_what_a_complete_run_lost_is_made_again(home, tmp_path):
    run = tmp_path / "run"

    def again():
        return finetune(config(home, run, mode="probe", steps=2))

    whole = again()
    parts = ("encoder", "classifier")
    files = [run / part / "weights.safetensors" for part in parts]
    before = [file.read_bytes() for file in files]

    def check():
        made = again()
        assert not made.complete
        assert made.results["test"] == whole.results["test"]
        assert [file.read_bytes() for file in files] == before

    for part in parts:
        shutil.rmtree(run / part)
    check()
    for name in ("report.html", "confusion.md", "encoder/manifest.json"):
        (run / name).unlink()
    check()
    assert (run / "confusion.md").is_file()
    for damaged in ("", "[]", '{"files": 1}'):
        (run / "results.json").write_text(damaged)
        check()
    assert again().complete


def test_the_best_step_on_validation_is_kept(home, tmp_path):
    result = finetune(
        config(
            home,
            tmp_path / "run",
            mode="full",
            steps=6,
            lr=0.03,
            eval_every=1,
            schedule="constant",
            select="validation",
            validation=0.2,
            select_by="loss",
            keep_last=1,
        )
    )
    found = {r["step"]: r["eval/loss"] for r in rows(result.run) if "eval/loss" in r}
    chosen = result.results["selection"]
    assert chosen["step"] == min(found, key=found.__getitem__)
    assert "best loss on 12 validation images cut from the 60" in chosen["rule"]
    listed = json.loads((result.run / "labels.json").read_text())
    train, held = (
        {i for ids in listed[k].values() for i in ids} for k in ("train", "validation")
    )
    assert (len(train), len(held), len(train & held)) == (48, 12, 0)


def test_wrong_data_is_named(home, tmp_path):
    images, names = draw(0, 12)
    cases = {
        "one class": ({"images": images, "labels": np.zeros(12, int)}, "has 1 class"),
        "no labels": ({"images": images}, "no labels"),
        "channels": ({"images": np.repeat(images, 5, -1), "labels": names}, "5"),
    }
    for name, (arrays, message) in cases.items():
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(UserError, match=message):
            finetune(config(home, tmp_path / name, data=f"npz:{tmp_path / 'bad.npz'}"))


@pytest.mark.slow
def test_evaluate_says_how_many_of_the_images_were_trained_on(
    home, tmp_path, monkeypatch
):
    run = finetune(config(home, tmp_path / "run", mode="probe", steps=1, labels=7)).run
    shutil.copy(home / "data.npz", tmp_path / "other.npz")
    monkeypatch.chdir(home)

    def said(data, split, place=run):
        settings = EvaluateConfig(from_=str(place), data=data, split=split)
        found = evaluate(settings)
        line = text(found).splitlines()[0]
        assert ("used for training" in line) == (found["trained_on"] > 0)
        return found["trained_on"]

    assert said("npz:data.npz", "train") == 7
    assert said("npz:data.npz", "train", run / "classifier") == 7
    assert said("npz:data.npz", "test") == 0
    assert said(f"npz:{tmp_path / 'other.npz'}", "train") == 0
    shutil.copytree(run / "classifier", tmp_path / "alone")
    assert said("npz:data.npz", "train", tmp_path / "alone") == 0


@pytest.mark.slow
def test_evaluate_takes_the_mean_of_several_views(home, tmp_path):
    settings = {"steps": 60, "lr": 3e-3, "labels_per_class": 5}
    run = finetune(config(home, tmp_path / "run", mode="full", **settings)).run

    def said(**settings):
        where = {"from_": str(run), "data": f"npz:{home / 'data.npz'}"}
        return evaluate(EvaluateConfig(**where, **settings))

    one, several = said(), said(views="flip")
    assert (one["views"], several["views"]) == ("none", "flip")
    assert "several views of each (flip)" in text(several).splitlines()[0]
    assert "views" not in text(one).splitlines()[0]
    assert several["calibration_error"] != one["calibration_error"]
    (images, names), loaded = draw(1, 30), load_classifier(str(run))
    total = sum(
        jax.nn.softmax(
            loaded.network.predict(loaded.params, loaded.stats, view, "classes")
        )
        for view in (jnp.asarray(images), jnp.asarray(images[:, :, ::-1]))
    )
    told = np.array(loaded.class_names["classes"])[np.argmax(total, axis=1)]
    assert several["accuracy"]["value"] == pytest.approx(np.mean(told == names))


def test_evaluate_refuses_what_it_cannot_score(home, tmp_path):
    with pytest.raises(UsageError, match="no classifier"):
        evaluate(EvaluateConfig(from_=str(home), data="digits"))
    run = finetune(config(home, tmp_path / "run", mode="probe", steps=1)).run
    strange = write_npz(tmp_path / "s.npz", names=("bars", "stars", "rings"))
    with pytest.raises(DataError, match=r"not trained on: stars.*bars, dots"):
        evaluate(EvaluateConfig(from_=str(run), data=strange))
    with pytest.raises(UserError, match=r"validation.*train, test"):
        evaluate(EvaluateConfig(from_=str(run), data=strange, split="validation"))


def test_a_missing_encoder_is_named(home, tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        finetune(config(home, tmp_path / "run", from_=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("mode", "moves"),
    [("probe", False), pytest.param("full", True, marks=pytest.mark.slow)],
)
def test_frozen_batch_statistics_stay_bit_identical(home, tmp_path, mode, moves):
    """Moments of a frozen BatchNorm do not move; those of one that learns do."""
    model = ModelConfig("conv", (8, 8), 1, norm="batch", width=0.25)
    source = make_encoder(tmp_path / "batch", model)
    before = flatten(read_encoder(source)[1])
    assert before
    run = finetune(config(home, tmp_path / mode, from_=source, mode=mode)).run
    after = flatten(read_encoder(run)[1])
    assert before.keys() == after.keys()
    for path, leaf in after.items():
        assert np.array_equal(leaf, before[path]) != moves, (mode, path)
