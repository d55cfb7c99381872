"""All that only an accelerator can show, in one command of at most twelve minutes.

    python -m benchmarks.accelerator          # on the accelerator
    python -m benchmarks.accelerator --toy    # tiny sizes, to try it on a CPU

In this order, each part written to benchmarks/results/accelerator.{json,md} as soon as
it is measured: training steps beside PyTorch's (if it is installed), in bfloat16 on a
GPU; the steps of presets beside what `afterimage plan` foretells; features beside the
forward pass; the wait for images and for checkpoints; then the preset
`cifar-contrastive` for the time that is left, with its probes. A part that
fails, or takes the time that the later ones need, is reported and the next one runs;
the exit code is then 1.

`python -m benchmarks.plan --cases cifar-contrastive@h100:1` compiles that preset's step
for a GPU that is not there.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from afterimage.models import ModelConfig
from benchmarks import features, results, speed, start
from benchmarks.programs import quietly

NAME, TITLE = "accelerator", "On an accelerator"
PRESET = "cifar-contrastive"
PRESETS = ("small-images", PRESET, "photos-64", "photos-224")
"""In the order of their memory."""
_PROBES = 60.0
"""Seconds kept for compiling, reading and probes beside the recipe's steps."""
NOTES = (
    "Steps: forward, backward and AdamW of the same network; "
    "`time_ratio_to_best_torch` below 1 is faster than PyTorch. Plans: a preset's own "
    "training step on zeros. MFU: the program's FLOPs by the vendor's peak "
    "(`afterimage/planning/devices.py`). Checkpoints: extra seconds of a run for each."
)


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is."""

    steps: Sequence[tuple[ModelConfig, int]]
    """(network, images a step)."""
    plan: dict[str, Any]
    """Settings of the plans that win over the presets'."""
    features: Sequence[tuple[str, int, int]]
    """(network, side in pixels, images a batch)."""
    batches: int
    """Batches of features in a round."""
    rounds: int
    seconds: float
    """Of each sample of a step."""
    saves: int
    """Checkpoints of the run that is timed."""


FULL = Scale(
    steps=[
        (ModelConfig("conv", image_size=(32, 32), channels=3), 1024),
        (ModelConfig("resnet18", image_size=(32, 32), channels=3), 512),
        (ModelConfig("convnext-tiny", image_size=(224, 224), channels=3), 128),
    ],
    plan={},
    features=[("resnet18", 32, 1024), ("resnet50", 224, 256)],
    batches=32,
    rounds=5,
    seconds=1.0,
    saves=20,
)
TOY = Scale(
    steps=[(ModelConfig("conv", width=0.25, image_size=(16, 16), channels=3), 4)],
    plan={"model": "conv", "width": 0.25, "image_size": 16, "batch_size": 4},
    features=[("conv", 16, 8)],
    batches=2,
    rounds=2,
    seconds=0.01,
    saves=2,
)
Rows = list[dict[str, Any]]


def training_steps(scale: Scale, given: argparse.Namespace) -> Rows:
    """Milliseconds of a step, beside PyTorch's."""
    rows = []
    asked = argparse.Namespace(
        plain=False, compile=not given.toy, rounds=scale.rounds, seconds=scale.seconds
    )
    for config, batch in scale.steps:
        rows += speed.run_case(config, batch, asked)
    return rows


def plans(scale: Scale, given: argparse.Namespace) -> Rows:
    """Memory and images/s of presets' steps, forecast and measured here."""
    from afterimage.pretrain.plan import make_plan
    from afterimage.pretrain.plan_text import plan_text

    rows, highest = [], 0.0
    for preset in PRESETS:
        plan = make_plan(_plan_of(preset, scale))
        print(plan_text(plan), flush=True)
        if plan.forecast is None:
            continue
        rate, bounds = plan.measured["images_per_second"], plan.bounds()
        figures = {"images/s": rate, "seconds to compile": plan.forecast.seconds}
        if bounds:
            figures["MFU, %"] = 100 * rate / bounds["compute"]
            figures["of the bound, %"] = 100 * rate / min(bounds.values())
        # The peak is the process's: only what is above the earlier ones is this one's.
        if plan.measured.get("memory", 0.0) > highest:
            highest = plan.measured["memory"]
            figures["memory, MiB"] = plan.measured["memory"] / 2**20
            figures["memory by the forecast, MiB"] = plan.forecast.needs / 2**20
        name = f"{preset}, batch {plan.config.batch_size}, {plan.config.precision}"
        rows += [results.row("plans", name, what, n) for what, n in figures.items()]
    return rows


def _plan_of(preset: str, scale: Scale) -> Any:
    """The PlanConfig of a preset on this machine, for colour images."""
    from afterimage.pretrain.plan_config import PlanConfig
    from afterimage.pretrain.presets import PRESETS as KNOWN

    side = {} if "image_size" in KNOWN[preset].settings else {"image_size": 32}
    settings = {"channels": 3, **side, **scale.plan}
    return PlanConfig(preset=preset, search="none", **settings)


def of_features(scale: Scale, given: argparse.Namespace) -> Rows:
    """Images/s of `Encoder.features`, and its share of the forward pass's speed."""
    rows = []
    for name, side, batch in scale.features:
        with tempfile.TemporaryDirectory() as folder:
            encoder = features.encoder_of(name, side, pathlib.Path(folder))
        count = scale.batches * batch
        found = features.measure(encoder, count, batch, scale.rounds)
        label = f"{name} {side} px, batch {batch}"
        rows += [results.row("features", label, what, v) for what, v in found.items()]
    return rows


def waiting(scale: Scale, given: argparse.Namespace) -> Rows:
    """The share of training that waits for images, and what a checkpoint costs."""
    rows, metric = [], "input stall, % of training time"
    with tempfile.TemporaryDirectory() as name:
        home = pathlib.Path(name)
        os.environ["AFTERIMAGE_CACHE"] = str(home / "cache")
        start.write_images(home / "images", 64 if given.toy else 2000)
        many = {"width": 0.25, "batch_size": 8} if given.toy else {"batch_size": 256}
        settings = {**many, "steps": 8 if given.toy else 400, "probe_images": 0}

        def timed(**more: Any) -> tuple[float, dict[str, Any]]:
            out, began = home / str(time.monotonic_ns()), time.perf_counter()
            last = _pretrained(f"folder:{home / 'images'}", out, **settings | more)
            return time.perf_counter() - began, last

        timed()  # compiles
        once, last = timed()
        often, _ = timed(save_every=max(1, settings["steps"] // scale.saves))
        _, streamed = timed(resident=False)
    for where, found in (("on the device", last), ("from the host", streamed)):
        stall = 100 * found["time/input_stall"]
        rows.append(results.row("waiting", f"images {where}", metric, stall))
    each = (often - once) / (scale.saves - 1)
    return [*rows, results.row("waiting", "a checkpoint", "seconds more", each)]


def _pretrained(data: str, out: pathlib.Path, **settings: Any) -> dict[str, Any]:
    """The last value of every metric of a run."""
    from afterimage.pretrain.config import PretrainConfig
    from afterimage.pretrain.run import pretrain

    quiet = {"pictures": 0, "tensorboard": False, "eval_every": settings["steps"]}
    quiet |= {"log_every": max(1, settings["steps"] // 4)}
    quiet |= {"save_every": settings["steps"]}
    quietly(pretrain, PretrainConfig(data=data, out=str(out), **quiet | settings))
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


def recipe(scale: Scale, given: argparse.Namespace) -> Rows:
    """The contrastive preset in the time left, and its probes on held-out images."""
    from afterimage.pretrain.plan import make_plan
    from afterimage.pretrain.presets import PRESETS as KNOWN
    from benchmarks.recipes import CIFAR

    plan = make_plan(_plan_of(PRESET, scale))
    batch = plan.config.batch_size
    left = given.until - time.monotonic() - _PROBES
    steps = max(1, int(left * plan.measured["images_per_second"] / batch))
    data = given.data or ("digits" if given.toy else CIFAR.replace("{}", given.folder))
    settings = {**KNOWN[PRESET].settings, **scale.plan, "epochs": None}
    settings |= {"steps": 4 if given.toy else steps, "image_size": None}
    with tempfile.TemporaryDirectory() as folder:
        found = _pretrained(data, pathlib.Path(folder) / "run", **settings)
    name = f"{PRESET}, {settings['steps']:,} steps of {batch}"
    return [
        results.row("recipe", name, f"{key} on validation images, %", 100 * value)
        for key in ("knn", "ridge", "knn_raw_pixels", "ridge_raw_pixels")
        if (value := found.get(f"eval/{key}")) is not None
    ]


PARTS: Mapping[str, tuple[Callable[[Scale, argparse.Namespace], Rows], float]] = {
    "training steps": (training_steps, 150),
    "plans": (plans, 180),
    "features": (of_features, 60),
    "waiting": (waiting, 60),
    "recipe": (recipe, 90),
}
"""{name: (what it runs, the least seconds it needs)}, in order."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts for which there is time; 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=12.0, help="for all parts")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--folder", default="../shared/data", help="with cifar10/")
    parser.add_argument("--data", help="other labelled images for the recipe")
    parser.add_argument("--toy", action="store_true", help="tiny sizes; not recorded")
    parser.add_argument("--out", help="a folder for the results instead")
    given = parser.parse_args(argv)
    until = time.monotonic() + 60 * given.minutes
    if len(given.only) == 1:
        _run(given.only[0], until, given)
        return 0
    failed = []
    for number, name in enumerate(given.only):
        left = until - time.monotonic()
        if left < PARTS[name][1] and not given.toy:
            print(f"{name}: left out, {left:.0f} s are too few", flush=True)
            continue
        most = _most(left, given.only[number:])
        # A process of its own: its memory is free afterwards, and a crash is its own.
        flags = ["--only", name, "--minutes", str(most / 60)]
        command = [sys.executable, "-m", "benchmarks.accelerator"]
        words = list(sys.argv[1:] if argv is None else argv)
        try:
            done = subprocess.run([*command, *words, *flags], timeout=most)
        except subprocess.TimeoutExpired:
            print(f"{name}: stopped after {most:.0f} s", flush=True)
            failed.append(name)
            continue
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _most(left: float, names: Sequence[str]) -> float:
    """Seconds that the first of these parts may take: all but what the others need, but
    never less than it needs itself."""
    first, *others = (PARTS[name][1] for name in names)
    return max(first, left - sum(others))


def _run(name: str, until: float, given: argparse.Namespace) -> None:
    """Runs one part, prints its rows and writes them."""
    print(f"{name}: {until - time.monotonic():.0f} s left", flush=True)
    given.until = until
    rows = PARTS[name][0](TOY if given.toy else FULL, given)
    for row in rows:
        print(f"  {row['row']}: {row['mean']:.4g} {row['metric']}", flush=True)
    if given.out or not given.toy:
        _write(rows, {"folder": pathlib.Path(given.out)} if given.out else {})


def _write(rows: Rows, place: Mapping[str, Any]) -> None:
    """Writes rows, replacing earlier ones of the same name on the same device."""
    new = {(row["table"], row["row"], row["device"]) for row in rows}
    kept = [
        row
        for row in results.read_results(NAME, **place)
        if (row["table"], row["row"], row["device"]) not in new
    ]
    results.write_results(NAME, kept + rows, title=TITLE, notes=NOTES, **place)


if __name__ == "__main__":
    sys.exit(main())
