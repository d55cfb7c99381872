"""The job in Afterimage: its own command, with two hooks of this benchmark.

One fills the batch of a step with NaN, if the environment says so; the other reports
the latest step in `metrics.jsonl`.
"""

import dataclasses
import json
import os
import pathlib
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np

from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.commands import main as afterimage
from afterimage.pretrain import program as pretraining
from benchmarks.reliability.words import arguments, nan_step, report, report_final


def spoil(bad: int) -> None:
    """Makes the images of step `bad` NaN, as inputs and as targets."""
    make_stage = pretraining.make_stage

    def spoiled_stage(*args):
        stage = make_stage(*args)

        def spoiled(params, stats, batch, key, step, trainable):
            rules = dict(stage.providers(params, stats, batch, key, step, trainable))
            view, now = rules["train/view"], step + 1 == bad
            rules["train/view"] = lambda ctx: jnp.where(now, jnp.nan, view(ctx))
            return rules

        return dataclasses.replace(stage, providers=spoiled)

    pretraining.make_stage = spoiled_stage


def follow(path: pathlib.Path) -> None:
    """Reports each new step in the metrics, until the program ends."""
    last = None
    while True:
        try:
            with path.open("rb") as file:
                file.seek(max(os.path.getsize(path) - 4096, 0))
                step = json.loads(file.read().splitlines()[-1])["step"]
        except (OSError, ValueError, IndexError, KeyError):
            step = None
        if step is not None and step != last:
            report("step", step)
            last = step
        time.sleep(0.005)


def main() -> int:
    """Trains, continues if there is a checkpoint, and reports the final weights."""
    args = arguments()
    if nan_step():
        spoil(nan_step())
    path = pathlib.Path(args.out) / "metrics.jsonl"
    threading.Thread(target=follow, args=[path], daemon=True).start()
    noise = ("gaussian", "--plain.corruption-strength", str(args.noise))
    code = afterimage(
        [
            *("pretrain", "--data", f"folder:{args.data}", "--out", args.out),
            *("--model", "conv", "--seed", str(args.seed), "--keep-last", "3"),
            *("--steps", str(args.steps), "--batch-size", str(args.batch_size)),
            *("--save-every", str(args.save_every), "--eval-every", str(args.steps)),
            *("--plain.corruption", *(noise if args.noise else ("none",))),
            *("--log-every", "1", "--pictures", "0", "--probe-images", "0"),
            "--no-tensorboard",
        ]
    )
    if code == 0:
        step, state, _ = Store(args.out).restore()
        leaves = flatten(state["params"])
        report_final(step, [np.asarray(leaves[name]) for name in sorted(leaves)])
    return code


if __name__ == "__main__":
    sys.exit(main())
