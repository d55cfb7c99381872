"""The demo: pretrain on embedded digits, fine-tune with 100 labels, compare.

`python -m benchmarks.demo --out runs/demo` (or `make demo`). If the runs are already
complete, it only prints the table. `--record` also writes the rows to
benchmarks/results/demo.json.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
import time

from afterimage import runtime
from afterimage.commands import exit_code
from benchmarks.programs import quietly
from benchmarks.results import row, write_results

MODES = {
    "probe": "frozen encoder, new head",
    "partial": "last stage and head",
    "two-phase": "head, then everything",
    "full": "everything at once",
    "scratch": "random weights, same budget",
}


@dataclasses.dataclass(frozen=True)
class Demo:
    """Pretrain on digits, fine-tune with 100 labels in five ways, print one table."""

    out: str = "runs/demo"
    """Folder for the runs."""
    seeds: int = 3
    """Seeds of pretraining, of the choice of labels and of fine-tuning."""
    record: bool = False
    """Write the table to benchmarks/results/demo.json."""


def _finetune(out: pathlib.Path, mode: str, seed: int) -> dict:
    from afterimage.finetune.presets import preset_config
    from afterimage.finetune.run import finetune

    settings = {"mode": mode, "seed": seed, "tensorboard": False, "eval_every": 30}
    if mode == "partial":
        settings["mode"] = {"name": "partial", "stages": 1}
    config = preset_config(
        "digits",
        from_=str(out / f"pretrain-{seed}"),
        out=str(out / f"{mode}-{seed}"),
        **settings,
    )
    return dict(quietly(finetune, config).results["test"])


def run(demo: Demo) -> None:
    """Runs everything, one line per run; then prints the table, folders and picture."""
    from afterimage.pretrain.presets import preset_config
    from afterimage.pretrain.run import pretrain

    runtime.start()
    out, began = pathlib.Path(demo.out), time.perf_counter()
    accuracy: dict[str, list[float]] = {mode: [] for mode in MODES}
    picture = None
    for seed in range(demo.seeds):
        clock = time.perf_counter()
        config = preset_config(
            "digits", out=str(out / f"pretrain-{seed}"), seed=seed, eval_every=300
        )
        # The first run shows its progress as a user would see it.
        result = pretrain(config) if seed == 0 else quietly(pretrain, config)
        picture = picture or result.picture
        spent = time.perf_counter() - clock
        print(f"seed {seed}: pretrained without labels, {spent:.0f} s", flush=True)
        for mode in MODES:
            clock = time.perf_counter()
            test = _finetune(out, mode, seed)
            accuracy[mode].append(100 * test["accuracy"]["value"])
            spent = time.perf_counter() - clock
            print(
                f"seed {seed}: {mode:9}  100 labels -> test accuracy "
                f"{accuracy[mode][-1]:.1f} %, {spent:.0f} s",
                flush=True,
            )
    _report(demo, out, accuracy, picture, time.perf_counter() - began)


def _report(demo, out, accuracy, picture, seconds) -> None:
    count = demo.seeds
    print(
        f"\nTest accuracy on 359 digits after 100 labels, {count} seeds, "
        f"{seconds:.0f} s"
    )
    print("\n| fine-tuning | what learns | accuracy, % |\n|---|---|---|")
    rows = []
    for mode, what in MODES.items():
        values = accuracy[mode]
        std = statistics.stdev(values) if count > 1 else 0.0
        mean = statistics.mean(values)
        print(f"| {mode} | {what} | {mean:.1f} ± {std:.1f} |")
        rows.append(row("digits-100", mode, "test accuracy, %", values))
    print(f"\nRun folders: {out}/pretrain-SEED, {out}/MODE-SEED (open report.html)")
    print(f"Input | corrupted | reconstruction: {picture}")
    if demo.record:
        write_results("demo", rows, title="The demo: digits, 100 labels")


def _parsed() -> Demo:
    """From argparse: the demo needs nothing that the package does not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo")
    parser.add_argument("--out", default=Demo.out, help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=Demo.seeds, help="how many seeds")
    parser.add_argument("--record", action="store_true", help="write the table to disk")
    return Demo(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(_parsed())))
