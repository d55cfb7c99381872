"""Masked pretraining at 224 px: images a second and memory, with and without remat.

`python -m benchmarks.scale` takes a few hundred steps in bfloat16 on an accelerator and
a handful in float32 on a CPU, every case in its own process, with the program that
users run. Writes benchmarks/results/scale.json and scale.md.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.results import row, write_results

MODELS = ("convnext-tiny", "resnet50")
TITLE = "Masked pretraining at 224 pixels"
NOTES = (
    "Mask ratio 0.6, patches of 32 pixels, hierarchical decoder, synthetic images in "
    "memory. Memory is the device's peak on an accelerator, the process's on a CPU. "
    "The first step, which compiles, is not timed. The loss is relative to predicting "
    "the mean image, over the last third of the steps."
)


def case(model: str, remat: bool, steps: int, batch: int) -> dict[str, Any]:
    """One run, in this process: images a second, peak memory, loss."""
    import jax

    from afterimage import runtime
    from afterimage.pretrain.config import PretrainConfig
    from afterimage.pretrain.objectives.masked import Masked
    from afterimage.pretrain.run import pretrain

    runtime.start()
    accelerator = jax.default_backend() != "cpu"
    with tempfile.TemporaryDirectory() as out:
        pretrain(
            PretrainConfig(
                data="synthetic:224x224x3",
                out=out,
                model=model,
                objective=Masked(ratio=0.6, patch=32),
                decoder="hierarchical",
                remat=remat,
                precision="bfloat16" if accelerator else "float32",
                steps=steps,
                batch_size=batch,
                log_every=max(1, steps // 12),
                eval_every=steps,
                save_every=steps,
                validation=0.01,
                probe_images=0,
                pictures=0,
                tensorboard=False,
            )
        )
        lines = pathlib.Path(out, "metrics.jsonl").read_text().splitlines()
    rows = [r for r in map(json.loads, lines) if "train/loss" in r]
    last = [r["train/relative_loss"] for r in rows[-(len(rows) // 3) :]]
    return {
        "rate": rows[-1]["time/images_per_second"],
        "memory": _peak_memory(accelerator),
        "loss": statistics.fmean(last),
    }


def _peak_memory(accelerator: bool) -> float:
    """Peak memory, GiB."""
    import resource

    import jax

    if accelerator:
        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Runs every case; prints and writes the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--steps", type=int, default=None, help="300, or 6 on a CPU")
    parser.add_argument("--batch", type=int, default=None, help="256, or 8 on a CPU")
    parser.add_argument("--remat", choices=["yes", "no"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.remat is not None:  # a case in one of the processes started below
        (model,) = given.models
        print(json.dumps(case(model, given.remat == "yes", given.steps, given.batch)))
        return
    import jax

    accelerator = jax.default_backend() != "cpu"
    steps = given.steps or (300 if accelerator else 6)
    batch = given.batch or (256 if accelerator else 8)
    rows = []
    for model in given.models:
        for remat in ("no", "yes"):
            command = [sys.executable, "-m", "benchmarks.scale", "--models", model]
            command += ["--steps", str(steps), "--batch", str(batch), "--remat", remat]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
            found = json.loads(done.stdout.splitlines()[-1])
            name = f"{model} 224x224x3 {batch}, remat {remat}"
            more = {"steps": steps, "precision": "bfloat16" if accelerator else None}
            rows += [
                row("scale", name, "images/s", found["rate"], **more),
                row("scale", name, "peak memory, GiB", found["memory"], **more),
                row("scale", name, "relative loss", found["loss"], **more),
            ]
            print(
                f"{name:40} {found['rate']:8.2f} images/s, "
                f"{found['memory']:.2f} GiB, relative loss {found['loss']:.3f}",
                flush=True,
            )
    write_results("scale", rows, title=TITLE, notes=NOTES)


if __name__ == "__main__":
    main()
