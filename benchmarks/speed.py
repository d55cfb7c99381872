"""Time of a training step against PyTorch and against plain Flax.

    python -m benchmarks.speed            # every preset, batch 256 and 32: an hour
    python -m benchmarks.speed --only conv --rounds 3 --no-compile

One process, rounds interleaved: each round times every variant once, so that a host
that slows down slows all of them. The best PyTorch (eager, channels_last, compile) is
the one with the least median; the ratio's mean and deviation are over rounds. Without
PyTorch the script says so and measures the rest. On a GPU it computes in bfloat16.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from afterimage import runtime
from afterimage.models import ModelConfig, Network, build_autoencoder
from benchmarks import plain, results

Step = Callable[[], None]
CASES = [
    ModelConfig("conv", image_size=(28, 28), channels=1),
    ModelConfig("conv", image_size=(32, 32), channels=3),
    ModelConfig("conv-classic", image_size=(28, 28), channels=1),
    ModelConfig("resnet18", image_size=(32, 32), channels=3),
    ModelConfig("convnext-atto", image_size=(32, 32), channels=3),
]
BATCHES = (256, 32)


def _gpu() -> bool:
    return jax.default_backend() == "gpu"


def _images(config: ModelConfig, batch: int) -> np.ndarray:
    shape = (batch, *config.image_size, config.channels)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def jax_step(config: ModelConfig, batch: int, jit: Callable = runtime.jit) -> Step:
    """One donated step on a batch on the device: forward, backward, AdamW."""
    network, params, stats = Network.create(
        build_autoencoder(config, rngs=nnx.Rngs(0)),
        dtype="bfloat16" if _gpu() else "float32",
    )
    optimiser = optax.adamw(1e-3, weight_decay=0.05)
    images = jnp.asarray(_images(config, batch))

    def step(params, opt, images):
        def loss(params):
            out, _ = network.apply(params, stats, images)
            return jnp.square(out - images).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = optimiser.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, value

    compiled = jit(step, donate_argnums=(0, 1))
    carry = [params, optimiser.init(params)]

    def run() -> None:
        carry[0], carry[1], value = compiled(*carry, images)
        jax.block_until_ready(value)

    run()
    return run


def plain_step(config: ModelConfig, batch: int) -> Step:
    """The same step with Flax's own layers and plain `jax.jit`."""
    with plain.plain_forms():
        return jax_step(config, batch, jax.jit)


def torch_steps(
    config: ModelConfig, batch: int, compiled: bool
) -> Iterator[tuple[str, Step]]:
    """PyTorch's variants by name; any that cannot run here are reported and skipped."""
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed (pip install 'afterimage[bench]'): no ratio")
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield "torch eager", _torch_step(config, batch, torch.contiguous_format, None)
    last = torch.channels_last
    yield "torch channels_last", _torch_step(config, batch, last, None)
    if not compiled:
        return
    for name, layout in (
        ("torch compile", torch.contiguous_format),
        ("torch compile channels_last", last),
    ):
        torch._dynamo.reset()
        try:
            yield name, _torch_step(config, batch, layout, torch.compile)
        except Exception as error:  # no C++ compiler, no Triton, ...
            print(f"{name} does not run here: {type(error).__name__}")


def _torch_step(config: ModelConfig, batch: int, layout: Any, wrap: Any) -> Step:
    import torch

    from benchmarks import torch_models

    device = "cuda" if _gpu() and torch.cuda.is_available() else "cpu"
    model = torch_models.build(config).to(device)
    # PyTorch documents `memory_format`, but no overload has it.
    model.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    images = torch.tensor(_images(config, batch).transpose(0, 3, 1, 2))
    images = images.to(device, memory_format=layout)
    optimiser = torch.optim.AdamW(
        model.parameters(), 1e-3, weight_decay=0.05, fused=True
    )

    def loss(images):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return (model(images).float() - images).square().mean()

    loss = wrap(loss) if wrap else loss

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss(images).backward()
        optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()

    run()
    return run


def measure(
    steps: dict[str, Step], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Milliseconds per step, one value per round: the mean over about `seconds`."""
    repeats = {}
    for name, step in steps.items():
        step()
        start = time.perf_counter()
        step()
        repeats[name] = max(1, round(seconds / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step()  # meanwhile the other library's threads release the cores
            start = time.perf_counter()
            for _ in range(repeats[name]):
                step()
            spent = time.perf_counter() - start
            times[name].append(1e3 * spent / repeats[name])
    return times


def rows_of(label: str, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Milliseconds of every variant, and ours relative to the best of each peer."""
    rows = [
        results.row("speed", label, f"{name} ms per step", values)
        for name, values in times.items()
    ]
    ours = times["afterimage"]
    rivals = [name for name in times if name.startswith("torch")]
    if rivals:
        best = min(rivals, key=lambda name: statistics.median(times[name]))
        ratios = [a / b for a, b in zip(ours, times[best], strict=True)]
        rows.append(
            results.row("speed", label, "time_ratio_to_best_torch", ratios, best=best)
        )
    if "plain flax" in times:
        ratios = [b / a for a, b in zip(ours, times["plain flax"], strict=True)]
        rows.append(results.row("speed", label, "speedup_over_plain_flax", ratios))
    return rows


def run_case(config: ModelConfig, batch: int, args: argparse.Namespace) -> list[dict]:
    """Measure one model at one batch size."""
    h, w = config.image_size
    label = f"{config.name} {h}x{w}x{config.channels} {batch}"
    steps = {"afterimage": jax_step(config, batch)}
    if args.plain:
        steps["plain flax"] = plain_step(config, batch)
    steps |= dict(torch_steps(config, batch, args.compile))
    rows = rows_of(label, measure(steps, args.rounds, args.seconds))
    for entry in rows:
        spread = f" ± {entry['std']:.3g}" if entry["std"] is not None else ""
        print(f"{label:28s} {entry['metric']:40s} {entry['mean']:.4g}{spread}")
    return rows


def main() -> None:
    """Measure, print, and write benchmarks/results/speed.json and speed.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--only", nargs="*", help="models (default: all)")
    parser.add_argument("--batch", nargs="*", type=int, default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="per sample")
    parser.add_argument("--compile", action=flag, default=True, help="torch.compile")
    parser.add_argument("--plain", action=flag, default=True, help="plain Flax")
    parser.add_argument("--write", action=flag, default=True, help="write results")
    args = parser.parse_args()
    for config in CASES:
        if args.only and config.name not in args.only:
            continue
        for batch in args.batch:
            rows = run_case(config, batch, args)
            if args.write:
                _write(rows)


def _write(rows: list[dict[str, Any]]) -> None:
    """Writes rows, replacing earlier ones of the same case on the same device."""
    new = {(entry["row"], entry["device"]) for entry in rows}
    earlier = results.read_results("speed")
    kept = [e for e in earlier if (e["row"], e["device"]) not in new]
    notes = (
        "One training step (forward, backward, AdamW) of the same network."
        " `time_ratio_to_best_torch`: below 1 is faster than PyTorch."
    )
    path = results.write_results("speed", kept + rows, title="Speed", notes=notes)
    print(f"written: {path}", flush=True)


if __name__ == "__main__":
    main()
