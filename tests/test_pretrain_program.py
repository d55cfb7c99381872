"""The pretraining program end to end, a few steps at a time, on CPU."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import afterimage
from afterimage.checkpoints import schemas
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.checkpoints.weights import read_encoder
from afterimage.data import (
    Preprocessing,
    channel_statistics,
    hold_out,
    open_data,
)
from afterimage.errors import DataError, Diverged, Interrupted, UserError
from afterimage.evaluation import knn_accuracy
from afterimage.models import ModelConfig, Network, build_encoder
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.run import pretrain as run_program
from afterimage.training.batches import spaced
from afterimage.training.loop import Callbacks, StopSignal

STEPS = 60


def config(out, **changes):
    settings = {
        "data": "digits",
        "out": str(out),
        "model": "conv",
        "width": 0.5,
        "steps": STEPS,
        "batch_size": 64,
        "lr": 1e-2,
        "eval_every": 30,
        "log_every": 10,
        "objective": {
            "name": "plain",
            "corruption": "gaussian",
            "corruption_strength": 0.5,
        },
        "ema": 0.5,
        "tensorboard": False,
        "pictures": 3,
    }
    return PretrainConfig(**settings | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole run and its result, shared by the tests that only look at it."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return run_program(config(out))


def rows(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def timeless(run):
    """metrics.jsonl without what depends on the machine."""
    return [
        {k: v for k, v in row.items() if not k.startswith("time/")} for row in rows(run)
    ]


def assert_equal_runs(one, other):
    """Same state (parameters, EMA, moments, key) and the same metrics, bit for bit."""
    assert timeless(one) == timeless(other)
    (step, a, _), (other_step, b, _) = (Store(run).restore() for run in (one, other))
    assert step == other_step
    a, b = flatten(a), flatten(b)
    assert set(a) == set(b)
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_run_folder_holds_everything(finished):
    assert not finished.complete
    run = finished.run
    for name in ("config.json", "metrics.jsonl", "report.html", "baselines.json"):
        assert (run / name).stat().st_size > 0
    assert sorted(p.name for p in (run / "pictures").iterdir()) == [
        "step-0000030.png",
        "step-0000060.png",
    ]
    assert finished.picture == run / "pictures" / "step-0000060.png"
    stored = json.loads((run / "config.json").read_text())
    assert stored["kind"] == "pretrain"
    assert stored["config"]["objective"]["corruption"] == "gaussian"
    assert not (run / "skipped.txt").exists()


def test_it_learns(finished):
    assert 0 < finished.metrics["relative_loss"] < 1
    first, *_, last = [r["train/loss"] for r in rows(finished.run) if "train/loss" in r]
    assert last < first
    # The run's own relative loss and loss agree on the mean image's loss.
    ratios = [
        r["eval/loss"] / r["eval/relative_loss"]
        for r in rows(finished.run)
        if "eval/loss" in r
    ]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)


def test_probes_stand_beside_their_baselines(finished):
    *_, evaluation = (r for r in rows(finished.run) if "eval/loss" in r)
    for probe in ("knn", "ridge_10", "ridge"):
        for suffix in ("_raw_pixels", "_hog", "_untrained"):
            assert 0.5 < evaluation[f"eval/{probe}{suffix}"] <= 1
    # Raw digits are easy for kNN; a wrong pairing of images and labels would show.
    assert finished.metrics["knn_raw_pixels"] > 0.9
    summary = finished.summary()
    assert "raw pixels" in summary
    assert str(finished.encoder) in summary


def test_the_encoder_has_the_best_vector_and_the_probes_it_passed(finished):
    encoder = afterimage.load_encoder(finished.run)
    entry, probes = encoder.manifest["vector"], encoder.manifest["probes"]
    assert encoder.vector is not None
    assert entry["pool"] == encoder.vector.pool
    scores = {(row["pool"], row["transform"]): row for row in entry["scores"]}
    # A digit's last map has one site: no grid of it.
    assert {pool for pool, _ in scores} == {"last", "pyramid-grid"}
    assert probes == finished.probes
    assert set(probes["accuracy"]) == {
        "this encoder",
        "raw pixels",
        "HOG",
        "untrained encoder",
    }
    stored = json.loads((finished.run / "config.json").read_text())["config"]
    train, held = hold_out(open_data("digits").train, stored["validation"], 0)
    train = train.subset(spaced(len(train), probes["train"]))
    x, z = (encoder.features(s.gather(np.arange(len(s)))) for s in (train, held))
    measured = knn_accuracy(x, train.labels, z, held.labels, k=stored["probe_k"])
    assert probes["accuracy"]["this encoder"]["knn"] == pytest.approx(measured)
    assert scores[entry["pool"], entry["transform"]]["knn"] == pytest.approx(measured)
    assert f"kNN: {100 * measured:.1f} %" in repr(encoder)
    assert f"kNN: {100 * measured:.1f} %" in finished.summary()
    # A step's encoder is pooled alike, without statistics.
    step = afterimage.load_encoder(finished.run / "checkpoints" / "60")
    assert step.vector is not None
    assert step.vector.fitted == {}


def test_baselines_are_measured_once(finished):
    before = (finished.run / "baselines.json").read_bytes()
    assert schemas.mistakes(json.loads(before), schemas.Baselines) == []


def test_mean_image_loss_is_that_of_the_mean_image(finished):
    stored = json.loads((finished.run / "config.json").read_text())["config"]
    train, held = hold_out(open_data("digits").train, stored["validation"], 0)
    mean, std = channel_statistics(open_data("digits").train)
    x = [s.gather(np.arange(len(s))) / 255 for s in (train, held)]
    x = [(images - mean) / std for images in x]
    expected = np.mean((x[1] - x[0].mean(0)) ** 2)
    got = finished.metrics["loss"] / finished.metrics["relative_loss"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_encoder_loads_alone_and_is_the_average(finished):
    params, stats, manifest = read_encoder(finished.encoder)
    step, state, _ = Store(finished.run).restore()
    average = {
        path.removeprefix("encoder/"): leaf
        for path, leaf in flatten(state["ema"]).items()
        if path.startswith("encoder/")
    }
    loaded = flatten(params)
    assert set(loaded) == set(average)
    for path in loaded:
        np.testing.assert_array_equal(loaded[path], average[path])
    assert manifest["trained"]["steps"] == step == STEPS
    assert manifest["trained"]["objective"] == "plain"
    assert manifest["trained"]["settings"]["loss"] == "mse"
    assert manifest["data"]["fingerprint"] == open_data("digits").train.fingerprint
    model = ModelConfig.from_dict(manifest["model"])
    from flax import nnx

    network, wanted, _ = Network.create(build_encoder(model, rngs=nnx.Rngs(0)))
    assert set(flatten(wanted)) == set(loaded)
    preprocessing = Preprocessing.from_dict(manifest["preprocessing"])
    images = preprocessing.normalise(jnp.zeros((2, 8, 8, 1), jnp.uint8))
    params = jax.tree.map(jnp.asarray, params)
    stats.pop("vector", None)  # of the feature vector, not of the network
    features, _ = network.apply(params, stats, images, method="features")
    assert features.shape == (2, manifest["feature_info"][-1]["channels"])


@pytest.mark.slow
def test_averaged_weights_carry_averaged_moments(tmp_path, tiny):
    """With BatchNorm the encoder has the running mean of its moments too, is scored
    with it, and a run that was cut goes on with both, bit for bit."""
    settings = {"norm": "batch", "steps": 4, "eval_every": 2, "save_every": 2}
    whole = run_program(config(tmp_path / "whole", **settings, keep_last=9)).run
    _, stats, _ = read_encoder(whole / "encoder")
    _, state, _ = Store(whole).restore()
    vector = flatten(stats.pop("vector"))  # it has whitened or standardised features
    loaded, live = flatten(stats), flatten(state["stats"]["encoder"])
    averaged = flatten(state["ema_stats"])
    assert set(loaded) == set(live)
    for path, leaf in loaded.items():
        np.testing.assert_array_equal(leaf, averaged[f"encoder/{path}"])
        assert not np.array_equal(leaf, live[path])
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "4")
    shutil.rmtree(cut / "encoder")
    (cut / "report.html").unlink()
    run_program(config(cut, **settings, keep_last=9))
    assert_equal_runs(cut, whole)
    again = flatten(read_encoder(cut / "encoder")[1])
    every = loaded | {f"vector/{path}": leaf for path, leaf in vector.items()}
    assert set(again) == set(every)
    for path, leaf in every.items():
        np.testing.assert_array_equal(leaf, again[path])


def test_report_shows_loss_pictures_and_probes(finished):
    page = finished.report.read_text()
    for part in ("<polyline", "data:image/png", "raw pixels", "untrained encoder"):
        assert part in page
    assert "plain.corruption-strength" in page


def test_the_same_command_again_says_that_the_run_is_complete(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.run.rglob("*.png")}
    lines = timeless(finished.run)
    again = run_program(config(finished.run))
    assert again.complete
    assert "is complete: 60 of 60 steps" in capsys.readouterr().out
    assert again.metrics == finished.metrics
    assert timeless(finished.run) == lines
    assert {p: p.stat().st_mtime_ns for p in finished.run.rglob("*.png")} == before


def test_a_complete_run_without_its_checkpoints_is_left_as_it_is(
    finished, tmp_path, capsys
):
    run = shutil.copytree(finished.run, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    encoder = (run / "encoder/weights.safetensors").read_bytes()
    again = run_program(config(run))
    assert again.complete
    assert again.metrics == finished.metrics
    assert "checkpoints were deleted" in capsys.readouterr().out
    with pytest.raises(UserError, match="other settings"):
        run_program(config(run, lr=0.1))
    assert (run / "encoder/weights.safetensors").read_bytes() == encoder


@pytest.mark.parametrize(
    "lost",
    [
        "encoder",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                *("metrics", "encoder/weights.safetensors", "report.html", "pictures"),
            )
        ),
    ],
)
def test_what_a_complete_run_lost_is_made_again(finished, tmp_path, lost):
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    gone = run / ("metrics.jsonl" if lost == "metrics" else lost)
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    again = run_program(config(run))
    assert not again.complete
    assert again.metrics == finished.metrics
    assert again.picture.read_bytes() == finished.picture.read_bytes()
    assert "untrained encoder" in again.report.read_text()
    for one, other in zip(read_encoder(run)[:2], read_encoder(finished.run)[:2]):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert (run / "encoder" / "weights.safetensors").is_file()
    assert run_program(config(run)).complete


@pytest.mark.slow
def test_a_damaged_encoder_of_a_complete_run_is_made_again(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    weights = run / "encoder" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert not run_program(config(run)).complete
    assert weights.read_bytes() == whole


def test_another_setting_on_the_same_folder_is_refused(finished):
    with pytest.raises(UserError, match=r"lr: 0\.01 in the folder, 0\.1 now"):
        run_program(config(finished.run, lr=0.1))


def test_another_setting_is_refused_before_the_data_are_opened(finished):
    with pytest.raises(UserError, match=r"other settings:\n  data: .*nowhere"):
        run_program(config(finished.run, data="folder:nowhere"))


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(5, id="between"),
        pytest.param(32, id="during-evaluation", marks=pytest.mark.slow),
    ],
)
def test_interrupted_and_repeated_equals_uninterrupted(
    finished, tmp_path, monkeypatch, at
):
    """Asked to stop after a step, or in the middle of an evaluation; then continued."""

    class StopAt(StopSignal):
        steps = 0

        def requested(self):
            StopAt.steps += 1
            if StopAt.steps >= at:
                self.name = self.name or "SIGTERM"
            return bool(self.name)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("afterimage.training.job.StopSignal", StopAt)
        with pytest.raises(Interrupted, match="SIGTERM"):
            run_program(config(out))
    assert not (out / "report.html").exists()
    result = run_program(config(out))
    assert not result.complete
    assert_equal_runs(out, finished.run)
    assert result.metrics == finished.metrics


@pytest.mark.slow
@pytest.mark.parametrize("during", [False, True], ids=["before", "during"])
def test_stopped_while_the_results_are_made(finished, tmp_path, monkeypatch, during):
    """All steps are taken: the signal ends the run, the same command finishes it."""

    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    def saved(step, folder):
        del folder
        if step == STEPS and not during:
            stop()

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        if during:
            patch.setattr("afterimage.pretrain.run.write_encoder", stop)
        with pytest.raises(Interrupted, match="SIGTERM"):
            run_program(config(out), callbacks=Callbacks(on_checkpoint=saved))
    assert not (out / "encoder").exists()
    result = run_program(config(out))
    assert not result.complete
    assert_equal_runs(out, finished.run)


@pytest.mark.slow
def test_the_report_is_there_from_the_first_evaluation_on(tmp_path):
    pages = []
    report = tmp_path / "run" / "report.html"
    callbacks = Callbacks(
        on_evaluation=lambda step, _: pages.append((step, report.read_text()))
    )
    settings = {"steps": 4, "eval_every": 2, "probe_images": 0, "pictures": 0}
    run_program(config(tmp_path / "run", **settings), callbacks=callbacks)
    assert [step for step, _ in pages] == [2, 4]
    for step, page in pages:
        assert f"Not finished: step {step} of 4." in page
    assert "Not finished" not in report.read_text()


@pytest.mark.slow
def test_data_may_be_an_object(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 1), np.uint8)
    settings = {"steps": 2, "eval_every": 2, "data": None, "pictures": 0}
    mine = config(tmp_path / "run", **settings)
    result = run_program(mine, data={"images": images})
    assert np.isfinite(result.metrics["loss"])
    assert run_program(mine, data={"images": images}).complete
    with pytest.raises(UserError, match="fingerprint"):
        run_program(mine, data={"images": images[::-1]})


def test_data_are_given_once(tmp_path):
    images = np.zeros((80, 8, 8, 1), np.uint8)
    with pytest.raises(UserError, match="and an object"):
        run_program(config(tmp_path / "run"), data=images)
    with pytest.raises(UserError, match="no data"):
        run_program(config(tmp_path / "run", data=None))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_again(finished, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    stored = json.loads((finished.run / "config.json").read_text())
    stored["config"]["out"] = str(out)
    (out / "config.json").write_text(json.dumps(stored))
    (out / "metrics.jsonl").write_text('{"step": 2, "train/loss": 9.0}\n{"step')
    assert_equal_runs(run_program(config(out)).run, finished.run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"loss": "bce"}},
        {"objective": {"loss": "ssim", "corruption": "erasing"}},
        {
            "objective": {
                "loss": "l1",
                "target": "image",
                "corruption": "salt-and-pepper",
            }
        },
        {"objective": {"loss": "huber"}, "bottleneck": 8, "accumulate": 2},
        {"model": "conv-classic", "norm": "batch", "augment": "light"},
        {"precision": "bfloat16", "remat": True, "resident": False},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_kind_of_setting_trains(tmp_path, changes):
    settings = {"steps": 2, "eval_every": 2, "ema": 0.0}
    usual = {"corruption": "gaussian"}
    objective = {"name": "plain", **changes.get("objective", usual)}
    changes = settings | changes | {"objective": objective}
    result = run_program(config(tmp_path / "run", **changes))
    assert np.isfinite(list(result.metrics.values())).all()
    assert 0 < result.metrics["relative_loss"] < 3


@pytest.mark.slow
def test_a_rate_far_too_high_ends_as_diverged(tmp_path):
    settings = {"steps": 8, "eval_every": 1, "ema": 0.0, "max_bad_steps": 100}
    with pytest.raises(Diverged, match="lower --lr"):
        run_program(config(tmp_path / "run", lr=1e30, warmup_steps=0, **settings))


@pytest.mark.slow
def test_odd_shapes_and_channels_without_labels_or_validation(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (70, 9, 12, 2), np.uint8)
    np.savez(tmp_path / "plain.npz", images=images)
    changes = {"data": f"npz:{tmp_path}/plain.npz", "validation": 0.0, "steps": 2}
    changes["channels"] = 2
    result = run_program(config(tmp_path / "run", **changes))
    always = {"loss", "relative_loss", "effective_rank", "own_view"}
    assert set(result.metrics) == always
    assert "kNN" not in result.report.read_text()
    assert not (tmp_path / "run" / "baselines.json").exists()


@pytest.mark.slow
def test_identical_images_divide_by_nothing(tmp_path):
    np.savez(tmp_path / "flat.npz", images=np.full((40, 8, 8, 1), 90, np.uint8))
    changes = {"data": f"npz:{tmp_path}/flat.npz", "steps": 2, "batch_size": 8}
    result = run_program(config(tmp_path / "run", **changes))
    assert np.isfinite(list(result.metrics.values())).all()


@pytest.mark.slow
def test_broken_images_stop_the_run_or_are_skipped_and_listed(tmp_path):
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (10, 10, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"<html>not found</html>")
    # Neither labels nor validation: no probes, and figures of training images.
    changes = {"data": f"folder:{folder}", "validation": 0.0, "steps": 1}
    changes |= {"batch_size": 4}
    with pytest.raises(DataError, match=r"broken\.png"):
        run_program(config(tmp_path / "fails", **changes))
    result = run_program(config(tmp_path / "run", on_bad_image="skip", **changes))
    listed = (result.run / "skipped.txt").read_text()
    assert "broken.png\t" in listed
    assert len(listed.splitlines()) == 1
    assert set(result.metrics) == {"loss", "relative_loss", "effective_rank"}
    assert not (result.run / "baselines.json").exists()
