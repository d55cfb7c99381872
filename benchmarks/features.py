"""`python -m benchmarks.features`: how close `features` comes to the forward pass.

Compares `Encoder.features`, from a uint8 array in host memory to float32 in host
memory, with the same compiled function called repeatedly on one batch on the device.
Interleaved rounds; the ratio is forward time / features time of one round, 1 = no
overhead.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from afterimage.checkpoints.weights import write_encoder
from afterimage.data import Preprocessing
from afterimage.encoder import Encoder, load_encoder
from afterimage.models import ModelConfig, Network, build_encoder
from afterimage.runtime import jit
from benchmarks.results import row, write_results


def encoder_of(name: str, side: int, folder: Path) -> Encoder:
    """A freshly initialised encoder, saved and loaded like a trained one."""
    config = ModelConfig(name, image_size=(side, side), channels=3)
    _, params, stats = Network.create(build_encoder(config, rngs=nnx.Rngs(0)))
    preprocessing = Preprocessing((side, side), (0.5,) * 3, (0.25,) * 3, 3)
    manifest = {
        "model": config.to_dict(),
        "preprocessing": preprocessing.to_dict(),
        "feature_info": [],
        "data": {"name": "random", "fingerprint": "0"},
        "trained": {"steps": 0},
    }
    write_encoder(folder / "encoder", params, stats, manifest)
    return load_encoder(folder)


def seconds(function: Callable[[], Any]) -> float:
    """Wall-clock time of one call, until its result is on the host."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def measure(encoder: Encoder, count: int, batch: int, rounds: int) -> dict[str, list]:
    """Ratios and images/s of this many interleaved rounds."""
    size = encoder.config.image_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *size, 3), np.uint8)
    resident, forward = jax.device_put(images[:batch]), jit(encoder.apply)

    def forward_only() -> None:
        outs = [forward(encoder.params, resident) for _ in range(count // batch)]
        jax.block_until_ready(outs)

    def features() -> None:
        encoder.features(images, batch_size=batch)

    forward_only(), features()  # compile
    ratios, speeds = [], []
    for _ in range(rounds):
        reference, ours = seconds(forward_only), seconds(features)
        ratios.append(reference / ours)
        speeds.append(count / ours)
    return {"forward_time_ratio": ratios, "images_per_s": speeds}


def main() -> None:
    """Measures the given models, writes the table and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="conv", help="names, comma between")
    parser.add_argument("--side", type=int, default=32, help="pixels")
    parser.add_argument("--count", type=int, default=16_384, help="images a round")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    count = options.count // options.batch * options.batch
    rows = []
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            encoder = encoder_of(name, options.side, Path(folder))
        found = measure(encoder, count, options.batch, options.rounds)
        label = f"{name} {options.side} px, batch {options.batch}"
        rows += [row("features", label, metric, v) for metric, v in found.items()]
        print(f"{label}: {np.median(found['forward_time_ratio']):.3f} of forward speed")
    print(write_results("features", rows, title="Features beside the forward pass"))


if __name__ == "__main__":
    main()
