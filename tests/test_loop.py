"""The loop: lines, evaluations, checkpoints, exact resume, stops, divergence."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.checkpoints.store import Store
from afterimage.data import open_data
from afterimage.errors import Diverged, Interrupted, UserError
from afterimage.runs import Run
from afterimage.training.batches import BatchLoader, make_mesh, replicate
from afterimage.training.loop import (
    NO_CALLBACKS,
    Callbacks,
    Fit,
    Interval,
    StopSignal,
    fit,
)
from afterimage.training.optimiser import make_optimiser, make_schedule, split_groups
from afterimage.training.options import RunOptions, TrainingOptions
from afterimage.training.step import abstract, init_state, make_step
from tests.forms import milliseconds


@pytest.fixture(scope="module")
def images():
    return open_data("synthetic:8x8x1").train


def _loss(params, stats, batch, key, step):
    x = batch["image"].astype(jnp.float32).reshape(batch["image"].shape[0], -1) / 255
    noisy = x + 0.1 * jax.random.normal(key, x.shape)
    out = jax.nn.relu(noisy @ params["w"]) @ params["v"]
    return jnp.mean((out - x) ** 2), ({}, stats)


def _nan_from(bad_step):
    def loss(params, stats, batch, key, step):
        value, rest = _loss(params, stats, batch, key, step)
        return jnp.where(step >= bad_step, jnp.nan, value), rest

    return loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(TrainingOptions, RunOptions):
    """What a stage's configuration has of both."""


def train(
    out, images, *, loss=_loss, evaluate=None, callbacks=NO_CALLBACKS, **settings
):
    """One run of 12 steps; saves every 4, evaluates every 6."""
    training = Settings(
        batch_size=8,
        steps=12,
        ema=0.9,
        out=str(out),
        eval_every=6,
        save_every=4,
        tensorboard=False,
        **{"log_every": 2} | settings,
    )
    calls = []

    def default_evaluate(state, step, stop):
        calls.append(step)
        return {"mse": float(jnp.abs(state["params"]["w"]).mean())}

    mesh = make_mesh()
    rng = np.random.default_rng(0)
    params = {
        "w": rng.normal(size=(64, 16)).astype(np.float32) * 0.1,
        "v": rng.normal(size=(16, 64)).astype(np.float32) * 0.1,
    }
    part = split_groups(params)
    optimiser = make_optimiser(training, part)
    state = init_state(
        params, {}, optimiser=optimiser, partition=part, seed=0, ema=True
    )
    state = replicate(state, mesh)
    step = make_step(
        loss,
        optimiser=optimiser,
        schedule=make_schedule(training, 12, 2),
        partition=part,
        options=training,
    )
    with (
        Run(out, kind="test", config=training) as run,
        Store(out, best="min") as store,
        StopSignal() as stop,
    ):
        start, manifest = 0, {}
        if store.steps():
            start, state, manifest = store.restore(abstract(state))
        run.metrics.start(start)
        plan = Fit(
            run=run,
            store=store,
            config=training,
            callbacks=callbacks,
            total=12,
            evaluate=evaluate or default_evaluate,
            best="mse",
            interval=Interval(manifest.get("interval")),
        )
        feed = BatchLoader(images, options=training, mesh=mesh)
        state = fit(plan, step, state, feed, end=12, stop=stop)
    return state, start, calls


def _lines(out):
    rows = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in rows]


def _same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_lines_evaluations_and_checkpoints_come_when_due(tmp_path, images):
    state, start, calls = train(tmp_path / "run", images)
    assert start == 0
    assert calls == [6, 12]
    assert int(state["step"]) == 12
    lines = _lines(tmp_path / "run")
    assert [r["step"] for r in lines] == [2, 4, 6, 6, 8, 10, 12, 12]
    assert Store(tmp_path / "run").steps() == [4, 8, 12]
    losses = [r["train/loss"] for r in lines if "train/loss" in r]
    assert losses[-1] < losses[0]


def test_a_line_has_the_means_of_the_steps_since_the_last(tmp_path, images):
    train(tmp_path / "each", images, log_every=1)
    train(tmp_path / "run", images, log_every=5)
    each = [r for r in _lines(tmp_path / "each") if "train/loss" in r]
    lines = [r for r in _lines(tmp_path / "run") if "train/loss" in r]
    assert [r["step"] for r in lines] == [5, 10, 12]
    for line, first in zip(lines, (0, 5, 10), strict=True):
        steps = each[first : line["step"]]
        for name in ("train/loss", "train/grad_norm"):
            assert line[name] == pytest.approx(np.mean([r[name] for r in steps]))
        assert line["train/lr"] == steps[-1]["train/lr"]


def test_steps_that_are_not_finite_are_no_part_of_a_mean(tmp_path, images):
    spoiled = lambda *a: (  # noqa: E731
        jnp.where(a[-1] == 1, jnp.nan, (found := _loss(*a))[0]),
        found[1],
    )
    train(tmp_path / "each", images, loss=spoiled, log_every=1)
    train(tmp_path / "run", images, loss=spoiled, log_every=3)
    each, line = _lines(tmp_path / "each"), _lines(tmp_path / "run")[0]
    mean = (each[0]["train/loss"] + each[2]["train/loss"]) / 2
    assert each[1]["train/loss"] is None
    assert line["train/loss"] == pytest.approx(mean)
    assert line["train/skipped"] == 1


@pytest.mark.parametrize("stop_at", [3, 7])
def test_a_continued_run_has_the_means_of_steps_before_it_stopped(
    tmp_path, images, stop_at
):
    """Checkpoints lie between lines, and so does the stop."""
    train(tmp_path / "whole", images, log_every=5)

    def loss(params, stats, batch, key, step):
        _kill_at(step, stop_at - 1)
        return _loss(params, stats, batch, key, step)

    with pytest.raises(Interrupted):
        train(tmp_path / "run", images, loss=loss, log_every=5)
    train(tmp_path / "run", images, log_every=5)
    assert _lines(tmp_path / "run") == _lines(tmp_path / "whole")


def test_callbacks_are_called_when_each_is_due(tmp_path, images):
    seen = []
    callbacks = Callbacks(
        on_log=lambda step, metrics: seen.append(("log", step, metrics["loss"] > 0)),
        on_evaluation=lambda step, metrics: seen.append(("eval", step, *metrics)),
        on_checkpoint=lambda step, folder: seen.append(
            ("saved", step, (folder / "manifest.json").is_file())
        ),
    )
    train(tmp_path / "run", images, callbacks=callbacks)
    assert [s for kind, s, _ in seen if kind == "log"] == [2, 4, 6, 8, 10, 12]
    assert [row for row in seen if row[0] == "eval"] == [
        ("eval", 6, "mse"),
        ("eval", 12, "mse"),
    ]
    saved = [("saved", step, True) for step in (4, 8, 12)]
    assert [row for row in seen if row[0] == "saved"] == saved


def test_an_error_in_a_callback_ends_the_run_and_the_run_continues(tmp_path, images):
    def fail(step, metrics):
        if step == 6:
            raise RuntimeError("not mine")

    with pytest.raises(RuntimeError, match="not mine"):
        train(tmp_path / "run", images, callbacks=Callbacks(on_log=fail))
    state, start, _ = train(tmp_path / "run", images)
    whole, _, _ = train(tmp_path / "whole", images)
    assert start == 4
    _same(state["params"], whole["params"])


def test_images_a_second_are_of_steps_that_are_finished(tmp_path, images):
    """A step that takes long is not called fast for having been dispatched at once."""

    def work(step):
        square = jnp.full((512, 512), 1e-3 * (step + 1))
        return jax.lax.fori_loop(0, 30, lambda _, x: jnp.tanh(x @ x), square)

    def slow(params, stats, batch, key, step):
        value, rest = _loss(params, stats, batch, key, step)
        return value + 1e-9 * work(step)[0, 0], rest

    train(tmp_path / "run", images, loss=slow)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line).get("time/images_per_second") for line in lines]
    found = [rate for rate in rates if rate]
    alone = jax.jit(work)
    # No step is faster than its slow part at its best: others on the machine only add.
    (least,) = milliseconds(lambda: alone(0).block_until_ready())
    assert found
    assert max(found) < 4 * 8 * 1e3 / least


def test_an_evaluation_that_is_not_finite_ends_the_run_before_its_checkpoint(
    tmp_path, images
):
    def evaluate(state, step, stop):
        return {"mse": float("nan") if step == 12 else 1.0}

    said = r"after step 12 gave mse nan\. The last good checkpoint is from step 8"
    with pytest.raises(Diverged, match=said):
        train(tmp_path / "run", images, evaluate=evaluate)
    assert Store(tmp_path / "run").steps() == [4, 8]
    with pytest.raises(Diverged, match="No checkpoint"):
        train(tmp_path / "first", images, loss=_nan_from(0), max_bad_steps=3)


def test_no_checkpoint_amid_steps_that_are_not_finite(tmp_path, images):
    with pytest.raises(Diverged, match="checkpoint is from step 4"):
        train(tmp_path / "run", images, loss=_nan_from(7))
    assert Store(tmp_path / "run").steps() == [4]


def test_a_stop_amid_steps_that_are_not_finite_saves_none(tmp_path, images):
    def loss(params, stats, batch, key, step):
        _kill_at(step, 7)
        return _nan_from(6)(params, stats, batch, key, step)

    with pytest.raises(Interrupted, match="continues after step 4"):
        train(tmp_path / "run", images, loss=loss)
    assert Store(tmp_path / "run").steps() == [4]
    whole, _, _ = train(tmp_path / "whole", images)
    again, start, _ = train(tmp_path / "run", images)
    assert start == 4
    _same(again, whole)


def _kill_at(step, when):
    jax.debug.callback(
        lambda s: os.kill(os.getpid(), signal.SIGTERM) if int(s) == when else None, step
    )


@pytest.mark.parametrize("stop_at", [3, 6, 8])
def test_a_stopped_run_continues_bit_for_bit(tmp_path, images, stop_at):
    whole, _, _ = train(tmp_path / "whole", images)

    def loss(params, stats, batch, key, step):
        _kill_at(step, stop_at - 1)
        return _loss(params, stats, batch, key, step)

    with pytest.raises(Interrupted, match="same command"):
        train(tmp_path / "run", images, loss=loss)
    assert Store(tmp_path / "run").steps()[-1] >= stop_at
    again, start, _ = train(tmp_path / "run", images)
    assert start >= stop_at
    _same(again, whole)
    assert _lines(tmp_path / "run") == _lines(tmp_path / "whole")


def test_a_stop_during_evaluation_repeats_the_evaluation(tmp_path, images):
    whole, _, _ = train(tmp_path / "whole", images)

    def evaluate(state, step, stop):
        os.kill(os.getpid(), signal.SIGTERM)
        stop.check()
        return {}

    with pytest.raises(Interrupted):
        train(tmp_path / "run", images, evaluate=evaluate)
    again, start, calls = train(tmp_path / "run", images)
    assert (start, calls) == (6, [6, 12])
    _same(again, whole)
    assert _lines(tmp_path / "run") == _lines(tmp_path / "whole")


def test_a_checkpoint_of_a_stopped_evaluation_gets_its_metric_later(tmp_path, images):
    """Else the best step could never be one at which a run was stopped."""

    def evaluate(state, step, stop):
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)
            stop.check()
        return {"mse": 1.0}

    def metric():
        _, _, content = Store(tmp_path / "run").restore(step=12)
        return content["metrics"]

    with pytest.raises(Interrupted):
        train(tmp_path / "run", images, evaluate=evaluate)
    assert metric() == {}
    train(tmp_path / "run", images)
    assert set(metric()) == {"mse"}


def test_a_complete_run_is_left_as_it_is(tmp_path, images):
    first, _, _ = train(tmp_path / "run", images)
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    again, start, calls = train(tmp_path / "run", images)
    assert (start, calls) == (12, [])
    _same(first, again)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_bad_steps_in_a_row_stop_the_run_and_name_the_images(tmp_path, images):
    with pytest.raises(Diverged, match="3 consecutive steps, up to step 8"):
        train(tmp_path / "run", images, loss=_nan_from(5), max_bad_steps=3)
    report = json.loads((tmp_path / "run/nonfinite/00000006.json").read_text())
    assert len(report["ids"]) == 8
    assert set(report["ids"]) <= set(images.ids)
    _, state, _ = Store(tmp_path / "run").restore()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state["params"]))


def test_a_few_bad_steps_are_skipped_and_counted(tmp_path, images):
    def loss(params, stats, batch, key, step):
        value, rest = _loss(params, stats, batch, key, step)
        return jnp.where((step == 3) | (step == 4), jnp.inf, value), rest

    state, _, _ = train(tmp_path / "run", images, loss=loss)
    assert int(state["skipped"]) == 2
    assert _lines(tmp_path / "run")[-2]["train/skipped"] == 2


def test_changed_settings_are_refused_with_the_difference(tmp_path, images):
    train(tmp_path / "run", images)
    with pytest.raises(UserError, match=r"lr: 0.001 in the folder, 0.5 now"):
        train(tmp_path / "run", images, lr=0.5)


def test_settings_may_be_corrected_before_anything_is_saved(tmp_path):
    with Run(tmp_path / "run", kind="test", config={"accumulate": 1}) as run:
        run.check_data("folder:x", "aaa")
        (run.path / "baselines.json").write_text("{}")
    with Run(tmp_path / "run", kind="test", config={"accumulate": 2}) as run:
        run.check_data("folder:x", "bbb")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["config"] == {"accumulate": 2}
    assert stored["data"] == {"name": "folder:x", "fingerprint": "bbb"}
    assert not (tmp_path / "run" / "baselines.json").exists()


def test_changed_data_is_refused(tmp_path):
    with Run(tmp_path / "run", kind="test", config={"a": 1}) as run:
        run.check_data("folder:x", "aaa")
    with Run(tmp_path / "run", kind="test", config={"a": 1}) as run:
        run.check_data("folder:x", "aaa")
        with pytest.raises(UserError, match="fingerprint"):
            run.check_data("folder:x", "bbb")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_text("x")
    with pytest.raises(UserError, match=r"contains other files \(holiday.jpg\)"):
        Run(tmp_path, kind="test", config={}).__enter__()
    with pytest.raises(UserError, match=r"contains other files \(holiday.jpg\)"):
        Run(tmp_path, kind="test", config={}).check_settings()
    assert (tmp_path / "holiday.jpg").exists()
    with Run(tmp_path / "run", kind="pretrain", config={}):
        pass
    with pytest.raises(UserError, match="contains a pretrain run"):
        Run(tmp_path / "run", kind="finetune", config={}).__enter__()
