"""What presets need on accelerators that are not there, and ours beside plain Flax.

    python -m benchmarks.plan                       # every case that is not done yet
    python -m benchmarks.plan --cases photos-64@h100:1 photos-224@tpu-v5e:16
    python -m benchmarks.plan --search given        # and the largest batch of each
    python -m benchmarks.plan --plain --cases photos-64@h100:1
    JAX_OPTIMIZATION_LEVEL=O1 python -m benchmarks.plan --plain    # compiles faster

Compiles the training step as `afterimage plan` does; nothing is run. Each case is
written when it is done, and a later call leaves out what is done. Needs the extras
[plan-tpu] and [plan-cuda]. Writes benchmarks/results/plan.json and plan.md.
"""

import argparse
import contextlib
import os
from typing import Any

from benchmarks.results import read_results, row, write_results

CASES = (
    *("small-images@h100:1", "small-images@tpu-v5e:4"),
    *("small-images@l4:1", "small-images@tpu-v6e:4"),
    *("photos-64@h100:1", "photos-64@tpu-v5e:4"),
    *("photos-64@l4:1", "photos-64@tpu-v6e:4"),
    *("cifar-contrastive@h100:1", "cifar-contrastive@tpu-v5e:4"),
    *("photos-224@h100:8", "photos-224@tpu-v5e:16"),
    *("photos-224@l4:1", "photos-224@tpu-v6e:256"),
)
_LEVEL = os.environ.get("JAX_OPTIMIZATION_LEVEL")
LEVEL = f", {_LEVEL}" if _LEVEL else ""
"""The level of the compiler, in the names of rows if it is not the default."""
TITLE = "Plans: presets on accelerators that are not there"
NOTES = (
    "The training step of each preset, compiled for these devices on the CPU machine "
    "named below; nothing was run on an accelerator. Memory is that of one device, by "
    "the compiler's own account. FLOPs are those of the program before optimisation, "
    "bytes those its operations read and write after it, as if nothing stayed on the "
    "chip: a program small enough to stay there can exceed a bound set by them. The "
    "bound on images/s is arithmetic from the vendors' peak figures "
    "(`afterimage/planning/devices.py` has them and their sources), not a measurement."
)


def settings(case: str, **more: Any) -> Any:
    """The PlanConfig of PRESET@DEVICES."""
    from afterimage.pretrain.plan_config import PlanConfig
    from afterimage.pretrain.presets import PRESETS

    preset, _, devices = case.partition("@")
    if "image_size" not in PRESETS[preset].settings:
        more = {"image_size": 32, **more}
    return PlanConfig(preset=preset, devices=devices, measure=False, **more)


def planned(case: str, search: str) -> list[dict[str, Any]]:
    """The rows of one case."""
    from afterimage.pretrain.plan import make_plan
    from afterimage.pretrain.plan_text import plan_text

    plan = make_plan(settings(case, search=search))
    print(plan_text(plan), flush=True)
    found, bounds = plan.forecast, plan.bounds()
    name = f"{case.replace('@', ' on ')}, batch {plan.config.batch_size}{LEVEL}"
    figures: dict[str, float] = {}
    if found is not None:
        figures = {"memory of a device, MiB": found.needs / 2**20}
        figures |= {
            f"{part}, MiB": found.memory[part] / 2**20
            for part in ("parameters", "moments", "activations")
        }
        figures |= {"GFLOP an image": found.flops / 1e9}
        figures |= {"MB an image": found.bytes / 1e6}
        moved = sum(size for _, size in found.collectives.values())
        figures |= {"MB of collectives a step": moved / 1e6}
        figures |= {"host calls": found.host_calls}
        figures |= {"bound, images/s": min(bounds.values())}
        figures |= {"seconds to compile here": found.seconds}
    for variant, one in plan.largest.items():
        figures[f"largest batch, {variant}"] = one.batch
    return [
        row("plan", name, metric, value, case=case + LEVEL)
        for metric, value in figures.items()
    ]


def compared(case: str) -> list[dict[str, Any]]:
    """The rows of one case with our operations and Flax's own, as ratios."""
    import jax

    from afterimage.planning.compiled import compile_lowered
    from afterimage.planning.devices import find
    from afterimage.pretrain.plan import builder, config_of
    from benchmarks.plain import plain_forms

    asked = settings(case)
    devices = find(asked.devices)
    config = config_of(asked, devices)
    found = {}
    for name, forms in (("ours", contextlib.nullcontext), ("plain", plain_forms)):
        jax.clear_caches()
        with forms():
            _, lowered = builder(asked, devices, config).lowered(config)
            found[name] = compile_lowered(lowered.program)
    ours, plain = found["ours"], found["plain"]
    ratios = {
        "FLOPs": ours.flops / plain.flops,
        "bytes": ours.bytes / plain.bytes,
        "temporary memory": ours.temporary / plain.temporary,
    }
    print(case, ratios, flush=True)
    name = (
        f"{case.replace('@', ' on ')}, batch {config.batch_size}, ours / plain{LEVEL}"
    )
    return [
        row("ours / plain", name, metric, value, case=case + LEVEL)
        for metric, value in ratios.items()
    ]


def main() -> None:
    """Compiles every case that is not done; prints and writes the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--search", choices=["none", "given", "all"], default="none")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--again", action="store_true", help="also what is done")
    given = parser.parse_args()
    table = "ours / plain" if given.plain else "plan"
    for case in given.cases:
        rows = read_results("plan")
        mine = [r for r in rows if r["table"] == table and r["case"] == case + LEVEL]
        if mine and not given.again:
            print(f"{case} is done")
            continue
        found = compared(case) if given.plain else planned(case, given.search)
        rows = [r for r in read_results("plan") if r not in mine] + found
        write_results("plan", rows, title=TITLE, notes=NOTES)


if __name__ == "__main__":
    main()
