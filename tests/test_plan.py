"""Plans: the run's own program, compiled for devices that need not be there."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.commands import main
from afterimage.data import open_data
from afterimage.errors import UserError
from afterimage.models import ops
from afterimage.planning.compiled import (
    Collective,
    DoesNotFit,
    collectives,
    compile_lowered,
    needed,
    size_of,
)
from afterimage.planning.devices import KINDS, find
from afterimage.planning.search import Trial, largest
from afterimage.plugins import OBJECTIVES
from afterimage.pretrain import plan as plans
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.plan import Builder, make_plan
from afterimage.pretrain.plan_config import PlanConfig
from afterimage.pretrain.plan_text import plan_text
from afterimage.pretrain.presets import PRESETS
from afterimage.pretrain.program import Program
from afterimage.training.batches import BatchLoader, make_mesh
from afterimage.training.step import compile_step
from benchmarks import accelerator
from tests.helpers import run_python

TINY = {"model": "conv", "width": 0.25, "image_size": 8, "channels": 1}


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        pytest.param("h10:8", "did you mean 'h100'", id="near"),
        pytest.param("tpu-v5:4", "did you mean 'tpu-v5e'", id="near TPU"),
        pytest.param("h100:x", "expected KIND:NUMBER", id="no number"),
        pytest.param("", "expected KIND:NUMBER", id="empty"),
        pytest.param("tpu-v5e:3", "1, 4, 8, 16, 32, 64, 128 or 256", id="no slice"),
        pytest.param("h100:12", "a multiple of 8", id="no whole machine"),
        pytest.param("h100:0", "group of 0", id="none"),
        pytest.param("cpu:99", "device_count=99", id="too few CPU devices"),
    ],
)
def test_devices_that_cannot_be_are_named(devices, words):
    with pytest.raises(UserError) as error:
        find(devices)
    assert words in str(error.value)
    assert repr(devices) in str(error.value)


@pytest.mark.parametrize(
    ("devices", "extra"), [("tpu-v5e:4", "plan-tpu"), ("l4:1", "plan-cuda")]
)
def test_a_missing_extra_is_named(monkeypatch, devices, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'afterimage\[{extra}\]'"):
        find(devices)


def test_peak_figures_have_a_source():
    for kind in KINDS.values():
        assert kind.source.startswith("https://")
        assert set(kind.flops) == {"float32", "bfloat16"}
        # A device that could not read its memory in a minute has a wrong figure.
        assert kind.memory / kind.bandwidth < 60


TEXT = """
  %all-reduce.35 = (f32[]{:T(128)}, f32[3,3,4]{2,1,0}, bf16[8]{0}) all-reduce(%a, %b)
  %gte = f32[32]{0} get-tuple-element(%all-reduce.35), index=2
  ROOT %ag = (f32[4]{0}, f32[16]{0}) all-gather-start(%x), dimensions={0}
  %agd = f32[16]{0} all-gather-done(%ag)
  %ar.1 = pred[5]{0} all-reduce(%c), replica_groups={}
  %fusion = f32[64]{0} fusion(%all-reduce.35), kind=kLoop
"""


def test_collectives_are_read_from_a_programs_text():
    assert collectives(TEXT) == {
        "all-reduce": Collective(2, 4 + 4 * 36 + 2 * 8 + 5),
        "all-gather": Collective(1, 64),
    }


@pytest.mark.parametrize(
    ("message", "bytes_"),
    [
        ("... Used 24.50G of 15.75G hbm. Exceeded ...", int(24.5 * 2**30)),
        ("RESOURCE_EXHAUSTED: something else", None),
    ],
)
def test_what_a_refused_program_needs_is_read(message, bytes_):
    assert needed(message) == bytes_


MEMORY = 16_000


@pytest.mark.parametrize(
    ("needs", "unit", "start", "best"),
    [
        pytest.param(lambda b: 1000 + 10 * b, 8, 256, 1496, id="line"),
        pytest.param(lambda b: 1000 + 10 * b, 8, 9000, 1496, id="from above"),
        pytest.param(lambda b: int(900 + b**1.2), 4, 16, 3036, id="curved"),
        pytest.param(lambda b: 20_000 + b, 8, 64, 0, id="nothing fits"),
        pytest.param(
            lambda b: 10 * b if b < 2000 else None, 16, 32, 1600, id="unknown above"
        ),
        pytest.param(lambda b: None if b > 500 else 30 * b, 4, 1024, 440, id="blind"),
    ],
)
def test_the_largest_batch_is_found_with_few_compilations(needs, unit, start, best):
    calls = []

    def tried(batch):
        calls.append(batch)
        return needs(batch)

    found = largest(tried, MEMORY, unit=unit, start=start)
    assert len(calls) == len(set(calls)) <= 5
    assert all(batch % unit == 0 for batch in calls)
    if not found.batch:
        assert best == 0
        return
    assert found.batch in calls
    assert found.needs == needs(found.batch) <= MEMORY
    assert 0.85 * best <= found.batch <= best
    if found.above is not None:
        assert (needs(found.above) or math.inf) > MEMORY


def test_a_search_uses_what_is_known():
    calls = []

    def needs(batch):
        calls.append(batch)
        return 10 * batch

    found = largest(
        needs, MEMORY, unit=8, start=8, known=[Trial(800, 8000), Trial(1648, 16480)]
    )
    assert found.batch == 1600
    assert calls == [1600]


@dataclasses.dataclass
class FakeBuilder(Builder):
    """Builds nothing, and notes what it was asked for."""

    tried: list = dataclasses.field(default_factory=list)

    def lowered(self, config):
        self.tried.append(config)
        return None, types.SimpleNamespace(program=config)


def needed_by(config):
    """Bytes: 2 GiB and 32 MiB an image; less with remat or micro-batches."""
    each = 2**25 * (0.5 if config.remat else 1) / config.accumulate
    return 2**31 + int(each * config.batch_size)


def searched(monkeypatch, search, kind=KINDS["l4"], most=None, **changes):
    """(the largest batches, the settings that were compiled), of an L4's 24 GB."""

    def compile_(config):
        needs = needed_by(config)
        if most is not None and needs > most:
            raise DoesNotFit(None)
        return needs

    def forecast(config, lowered, needs):
        return types.SimpleNamespace(needs=needs)

    monkeypatch.setattr(plans, "compile_lowered", compile_)
    monkeypatch.setattr(plans, "forecast", forecast)
    settings = PlanConfig(**TINY, **changes, devices="cpu:1", search=search)
    devices = find("cpu:1")
    config = plans.config_of(settings, devices)
    train = plans.builder(settings, devices, config).train
    build = FakeBuilder(dataclasses.replace(devices, kind=kind), train, 0)
    memory = {"all": needed_by(config)}
    found = plans.Forecast(memory, 1.0, 1.0, {}, 0, 0.0, "")
    return plans._searched(settings, config, build, found), build.tried


def test_every_variant_is_searched_with_its_own_settings(monkeypatch):
    found, tried = searched(monkeypatch, "all", batch_size=32)
    assert list(found) == list(plans.VARIANTS)
    limit = KINDS["l4"].memory
    for name, change in plans.VARIANTS.items():
        own = [c for c in tried if all(getattr(c, k) == v for k, v in change.items())]
        assert len(own) <= 5
        assert all(c.batch_size % change["accumulate"] == 0 for c in own)
        # What is given is known already.
        assert (32 in [c.batch_size for c in own]) == (name != "plain")
        (best,) = [c for c in own if c.batch_size == found[name].batch]
        assert found[name].needs == needed_by(best)
        assert 0.95 * limit < found[name].needs <= limit
    batches = [one.batch for one in found.values()]
    each = np.array(batches) / batches[0]
    np.testing.assert_allclose(each, [1, 2, 2, 4], rtol=0.06)


def test_a_search_of_what_is_given_and_of_what_the_compiler_refuses(monkeypatch):
    most = 2**34
    found, tried = searched(
        monkeypatch, "given", most=most, batch_size=32, remat=True, accumulate=2
    )
    assert list(found) == ["as given"]
    assert {(c.remat, c.accumulate) for c in tried} == {(True, 2)}
    assert found["as given"].needs <= most
    assert found["as given"].above is not None


@pytest.mark.parametrize(("search", "kind"), [("none", KINDS["l4"]), ("all", None)])
def test_nothing_is_searched_unasked_or_without_a_size(monkeypatch, search, kind):
    assert searched(monkeypatch, search, kind) == ({}, [])


@pytest.fixture(scope="module")
def plan():
    settings = PlanConfig(**TINY, devices="cpu:1", batch_size=32, search="none")
    return make_plan(settings)


def test_memory_is_that_of_the_state_the_batch_and_the_activations(plan):
    memory = plan.forecast.memory
    assert memory["parameters"] == 4 * plan.parameters
    # Adam's two, and the counts.
    assert 0 <= memory["moments"] - 8 * plan.parameters < 100
    assert memory["running mean"] == 0
    assert memory["images"] == 32 * (8 * 8 + 4)
    assert memory["activations"] > 32 * 8 * 8 * 4
    assert plan.forecast.needs == sum(memory.values())
    assert plan.forecast.collectives == {}
    assert plan.measured["images_per_second"] > 0


def test_a_plan_is_printed(plan):
    text = plan_text(plan)
    assert "32 images of 8 pixels a step, float32, no remat" in text
    assert f"{plan.parameters:,} parameters" in text
    assert "no peak figures" in text
    assert "Measured here" in text
    h100 = dataclasses.replace(plan.devices, kind=KINDS["h100"])
    text = plan_text(dataclasses.replace(plan, devices=h100))
    assert "Fits: a device has" in text
    assert KINDS["h100"].source in text
    bounds = dataclasses.replace(plan, devices=h100).bounds()
    assert bounds["compute"] == pytest.approx(494e12 / plan.forecast.flops)
    assert f"Bound: {min(bounds.values()):,.0f} images/s" in text


def test_a_program_that_does_not_fit_is_told(plan):
    v5e = dataclasses.replace(plan.devices, kind=KINDS["tpu-v5e"])
    large = dataclasses.replace(plan, devices=v5e, forecast=None, refused=2**35)
    assert not large.fits
    assert "Does not fit: needs 32.0 GiB" in plan_text(large)


def test_the_program_is_the_runs_own(tmp_path):
    config = PretrainConfig(
        data="digits", out=str(tmp_path), steps=5, batch_size=16, width=0.25, ema=0.9
    )
    train, mesh = open_data("digits").train, make_mesh(1)
    planned = Program.build(config, train, train, mesh, shapes_only=True)
    lowered = planned.lower(config)
    real = Program.build(config, train, train, mesh)
    state = real.trainer.fresh(*real.initial, seed=config.seed, ema=True)
    options = dataclasses.replace(config, resident=False)
    blocks = BatchLoader(train, options=options, mesh=mesh).blocks(0, iter([1]))
    _, _, batch = next(blocks)
    blocks.close()
    batch = {name: batch[name] for name in ("index", "image")}
    run = compile_step(real.trainer.phases[0].step).lower(state, batch, {})
    assert run.as_text() == lowered.program.as_text()
    assert size_of(state) == size_of(lowered.state)


TWO = """
from afterimage.pretrain.plan import make_plan
from afterimage.pretrain.plan_config import PlanConfig
plan = make_plan(PlanConfig(model="conv", width=0.25, image_size=8, channels=1,
    devices="cpu:2", batch_size=32, search="none", measure=False))
print(plan.parameters, plan.forecast.memory["images"],
      *plan.forecast.collectives["all-reduce"])
"""


@pytest.mark.slow
def test_two_devices_share_the_batch_and_sum_the_gradients():
    done = run_python(TWO, devices=2)
    parameters, images, count, size = map(int, done.split()[-4:])
    assert images == 16 * (8 * 8 + 4)
    assert count >= 1
    assert 4 * parameters <= size < 4 * parameters + 200


def _for(platform, function, *args):
    """The program of a platform that need not be here, before the compiler."""
    traced = jax.jit(lambda *args: function(*args)).trace(*args)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def _network(x, kernel, depthwise):
    x = ops.conv2d(x, kernel)
    x = ops.depthwise_conv(x, depthwise)
    x = x * ops.per_channel(kernel[0, 0, 0], x)
    x = ops.patchify(ops.max_pool(x), kernel[:2, :2])
    return ops.conv_transpose_patch(x, kernel[:2, :2]).sum()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_programs_of_accelerators_have_no_form_of_the_cpu(platform):
    shapes = (2, 8, 8, 4), (3, 3, 4, 4), (3, 3, 1, 4)
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    gradient = jax.grad(_network, (0, 1, 2))
    here = _for("cpu", gradient, *args)
    there = _for(platform, gradient, *args)
    assert "optimization_barrier" in here
    assert "optimization_barrier" not in there
    # Its products are convolutions of the plain form, three for each of four layers.
    # The gradient of a sum needs no result of the last; no map is rearranged.
    assert there.count("stablehlo.convolution") == 11
    assert "stablehlo.dot_general" not in there


PRESETS_AND_OBJECTIVES = [
    *(
        pytest.param({"preset": name}, id=name, marks=() if few else pytest.mark.slow)
        for name in PRESETS
        for few in [name in ("cifar-contrastive", "patches", "photos-224")]
    ),
    *(
        pytest.param({"objective": name}, id=f"objective {name}")
        for name in OBJECTIVES.names()
        if name != "dictionary"  # has its own encoder, of preset patches
    ),
]


@pytest.mark.parametrize("asked", PRESETS_AND_OBJECTIVES)
def test_steps_on_accelerators_never_call_the_host(tiny, asked):
    settings = PlanConfig(
        **asked, image_size=32, channels=3, devices="cpu:1", batch_size=8, width=0.25
    )
    devices = find(settings.devices)
    config = plans.config_of(settings, devices)
    program, lowered = plans.builder(settings, devices, config).lowered(config)
    step = compile_step(program.trainer.phases[0].step)
    traced = step.trace(lowered.state, lowered.batch, lowered.data)
    assert "callback" not in str(traced.jaxpr)
    for platform in ("tpu", "cuda"):
        # A callback, or a form that only the CPU has, would be refused here.
        traced.lower(lowering_platforms=(platform,))


def test_calls_of_the_host_are_counted():
    def step(x):
        jax.debug.callback(lambda _: None, x)
        return 2 * x

    assert "callback" in str(jax.make_jaxpr(step)(jnp.ones(3)))
    compiled = compile_lowered(jax.jit(step).lower(jnp.ones(3)))
    assert compiled.host_calls == 1
    none = compile_lowered(jax.jit(lambda x: 2 * x).lower(jnp.ones(3)))
    assert none.host_calls == 0
    there = """
  %s = (f32[4]{0}, u32[], token[]) send(%x, %t), channel_id=3, is_host_transfer=true
  %d = token[] send-done(%s), channel_id=3, is_host_transfer=true
  %o = token[] outfeed(%y, %t), outfeed_shape=f32[4]{0}
  %n = (f32[4]{0}, u32[], token[]) send(%x, %t), channel_id=4
  %c = f32[4]{0} custom-call(%x), custom_call_target="xla_ffi_python_gpu_callback"
"""
    assert dataclasses.replace(none, text=there).host_calls == 3


@pytest.mark.parametrize(
    ("asked", "augment"),
    [
        pytest.param({"objective": "simclr"}, "photos", id="views"),
        pytest.param({"objective": "plain"}, "none", id="one view"),
        pytest.param(
            {"objective": "simclr", "augment": "crop,flip"}, "crop,flip", id="given"
        ),
        pytest.param(
            {"objective": "simclr", "preset": "photos-64"}, "crop-flip", id="preset"
        ),
    ],
)
def test_views_that_are_compared_are_augmented(asked, augment):
    settings = PlanConfig(**asked, image_size=32, devices="cpu:1", batch_size=8)
    config = plans.config_of(settings, find("cpu:1"))
    assert config.augment == augment
    cut = dataclasses.replace(settings, augment="crop", view_size=24)
    assert plans.config_of(cut, find("cpu:1")).view_size == 24


def test_settings_that_cannot_be_are_named(capsys):
    assert main(["plan", "--preset", "photo-224", "--devices", "cpu:1"]) == 2
    assert "did you mean 'photos-224'" in capsys.readouterr().err
    assert main(["plan", "--preset", "digits", "--devices", "cpu:1"]) == 2
    assert "give --image-size" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "package"),
    [("tpu-v5e:4", "libtpu"), ("h100:8", "jax_cuda13_plugin")],
)
def test_a_plan_for_devices_that_are_not_there(devices, package):
    pytest.importorskip(package)
    code = TWO.replace("cpu:2", devices)
    done = run_python(code)
    parameters, images, count, size = map(int, done.split()[-4:])
    assert count >= 1
    assert 4 * parameters <= size < 4 * parameters + 200
    assert np.isfinite(images)


BOTH = """
from afterimage.planning.devices import find
print(*(find(kind).mesh.devices.flat[0].platform for kind in ("tpu-v5e:4", "h100:1")))
"""


@pytest.mark.slow
def test_tpus_and_gpus_are_planned_for_in_one_process():
    for package in ("libtpu", "jax_cuda13_plugin"):
        pytest.importorskip(package)
    assert run_python(BOTH).split() == ["tpu", "gpu"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_parts_for_a_rented_device_run_at_toy_size(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accelerator", "--toy"]
    command += ["--out", str(tmp_path / "results")]
    env = {**os.environ, "AFTERIMAGE_CACHE": str(tmp_path / "cache")}
    subprocess.run(command, env=env, check=True, timeout=800)
    rows = json.loads((tmp_path / "results/accelerator.json").read_text())
    assert {row["table"] for row in rows} >= {"plans", "features", "waiting", "recipe"}
    assert all(np.isfinite(row["mean"]) for row in rows)


def test_the_parts_for_a_rented_device_end_in_time(monkeypatch, capsys):
    """One that hangs is stopped while the later ones can still run."""
    now, limits = [0.0], []

    def run(command, timeout):
        limits.append(timeout)
        name = command[-3]
        assert command[-1] == str(timeout / 60)
        if name == "plans":
            now[0] += timeout
            raise subprocess.TimeoutExpired(command, timeout)
        now[0] += 20
        return types.SimpleNamespace(returncode=0)

    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(accelerator, "time", clock)
    fake = types.SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(accelerator, "subprocess", fake)
    assert accelerator.main(["--minutes", "12"]) == 1
    assert len(limits) == len(accelerator.PARTS)
    assert now[0] + limits[-1] - 20 <= 720
    said = capsys.readouterr().out
    assert f"plans: stopped after {limits[1]:.0f} s" in said
    assert "failed: plans" in said
