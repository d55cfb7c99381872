"""A plan: what pretraining needs of devices that need not be there.

The run's own step is compiled for them, with its mesh, shardings and donation.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from afterimage.console import say_doing
from afterimage.data.sets import ImageSet, array_set
from afterimage.errors import UserError
from afterimage.planning.compiled import (
    Compiled,
    DoesNotFit,
    compile_lowered,
    size_of,
)
from afterimage.planning.devices import Devices, find, here
from afterimage.planning.search import Largest, Trial, largest
from afterimage.plugins import OBJECTIVES
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.origin import Origin, reading_of
from afterimage.pretrain.plan_config import PlanConfig
from afterimage.pretrain.presets import PRESETS, preset_config
from afterimage.pretrain.program import Lowered, Program, image_problems
from afterimage.pretrain.recipe import PHOTOS
from afterimage.training.optimiser import count_parameters
from afterimage.training.options import check
from afterimage.training.progress import clock

_NOWHERE = "plan"  # neither data nor a folder is opened
_SOME = 8
"""Noise images. Statistics are taken from them, as no data are read."""


_RING: Mapping[str, Callable[[int], float]] = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1.0,
}
"""What each of n devices sends in a ring, by the size of the result."""


@dataclasses.dataclass(frozen=True)
class Forecast:
    """One program on one device."""

    memory: Mapping[str, int]
    """Bytes by what they hold; the sum is the need."""
    flops: float
    """An image."""
    bytes: float
    """An image."""
    collectives: Mapping[str, tuple[int, int]]
    """{name: (number, bytes on each device)} of a step."""
    host_calls: int
    """Of a step."""
    seconds: float
    """To compile it here."""
    text: str = dataclasses.field(repr=False)
    """The compiled program."""

    @property
    def needs(self) -> int:
        """Bytes of a device."""
        return sum(self.memory.values())


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `make_plan` found."""

    config: PretrainConfig
    devices: Devices
    parameters: int
    forecast: Forecast | None
    """None if the compiler found that it does not fit."""
    refused: int | None
    """Bytes of a device that it would need then, if the compiler said so."""
    largest: Mapping[str, Largest]
    """{variant: the largest batch}."""
    measured: Mapping[str, float]
    """`images_per_second` and perhaps `memory`, if the devices are there."""

    @property
    def fits(self) -> bool:
        """Whether every device has the memory; True where that is not known."""
        if self.forecast is None:
            return False
        kind = self.devices.kind
        return kind is None or self.forecast.needs <= kind.memory

    def bounds(self) -> dict[str, float]:
        """The roofline: images/s by what limits them; empty without peak figures.

        FLOPs by the peak of matrix products, bytes by the memory's bandwidth, and the
        collectives, as rings, by the links: arithmetic, not a measurement. Values that
        stay on the chip count as if they went through memory, so that a program as
        small as the caches can exceed the bound of memory; nothing exceeds that of
        compute.
        """
        kind, found = self.devices.kind, self.forecast
        if kind is None or found is None:
            return {}
        count = self.devices.mesh.size
        bounds = {
            "compute": count * kind.flops[self.config.precision] / found.flops,
            "memory": count * kind.bandwidth / found.bytes,
        }
        moved = sum(
            _RING.get(name, lambda n: 1.0)(count) * size
            for name, (_, size) in found.collectives.items()
        )
        if moved:
            bounds["links"] = self.config.batch_size * kind.link / 2 / moved
        return bounds


def make_plan(settings: PlanConfig) -> Plan:
    """Compiles the training step as `settings` say, and reads what it needs.

    Raises:
      UserError: settings that cannot work, unknown devices, a missing extra, or a
        program that the compiler refuses.
    """
    devices = here() if settings.devices is None else find(settings.devices)
    config = config_of(settings, devices)
    build = builder(settings, devices, config)
    say_doing(
        f"Compiling the step of {config.batch_size} images for {devices.title}; this "
        "takes one to four minutes for a large model"
    )
    program, lowered = build.lowered(config)
    found, refused = None, None
    try:
        found = forecast(config, lowered, compile_lowered(lowered.program))
    except DoesNotFit as error:
        refused = error.needs
    measured: Mapping[str, float] = {}
    if settings.measure and found is not None and _present(devices):
        measured = _measure(config, program, lowered)
    return Plan(
        config=config,
        devices=devices,
        parameters=count_parameters(program.initial[0]),
        forecast=found,
        refused=refused,
        largest=_searched(settings, config, build, found),
        measured=measured,
    )


@dataclasses.dataclass
class Builder:
    """Programs for the same devices and images."""

    devices: Devices
    train: ImageSet
    resident: int
    origin: Origin | None = None

    def lowered(self, config: PretrainConfig) -> tuple[Program, Lowered]:
        """The program with these settings, and what a run dispatches."""
        program = Program.build(
            config,
            self.train,
            self.train,
            self.devices.mesh,
            origin=self.origin,
            images=max(self.resident, config.batch_size),
            shapes_only=True,
        )
        return program, program.lower(config, resident=self.resident)


def builder(settings: PlanConfig, devices: Devices, config: PretrainConfig) -> Builder:
    """Builds programs for images of noise; UserError if they cannot be trained on."""
    origin = Origin.of(config)
    train = _noise(config)
    check(image_problems(config, train, origin))
    return Builder(devices, train, settings.images, origin)


def config_of(settings: PlanConfig, devices: Devices) -> PretrainConfig:
    """The run's settings, with a batch that the devices can share."""
    given = {"data": _NOWHERE, "out": _NOWHERE, **settings.changes()}
    preset = PRESETS.get(settings.preset or "")
    augmented = preset is not None and "augment" in preset.settings
    views = OBJECTIVES.get(settings.objective).views if settings.objective else ()
    if len(views) > 1 and not augmented:
        given.setdefault("augment", PHOTOS)
    if settings.preset is None:
        config = PretrainConfig(**given)
    else:
        config = preset_config(settings.preset, **given)
    shape = reading_of(config, Origin.of(config))
    names = "image_size", "channels"
    config = dataclasses.replace(config, **{name: shape[name] for name in names})
    if config.image_size is None:
        raise UserError(
            "image_size is not set, and there are no images to take it from; give "
            "--image-size"
        )
    unit = devices.mesh.size * config.accumulate
    if config.batch_size % unit:
        if settings.batch_size is not None:
            from afterimage.training.batches import check_batch

            check_batch(config.batch_size, config.accumulate, devices.mesh)
        batch = -(-config.batch_size // unit) * unit
        config = dataclasses.replace(config, batch_size=batch)
    return config


def _noise(config: PretrainConfig) -> ImageSet:
    side = config.image_size
    assert side is not None
    shape = (_SOME, side, side, config.channels or 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return array_set(images, None, None, "noise")


def forecast(config: PretrainConfig, lowered: Lowered, compiled: Compiled) -> Forecast:
    """What the compiled program says, by image and by what memory holds."""
    state = lowered.state
    parts = {
        "parameters": size_of(state["params"]),
        "moments": size_of(state["opt"]),
        "running mean": size_of(state["ema"]) + size_of(state["ema_stats"]),
        "images": size_of((lowered.batch, lowered.data)),
    }
    rest = compiled.arguments - sum(parts.values())
    parts["statistics, padding"] = max(rest, 0) + compiled.results
    parts["activations"] = compiled.temporary
    parts["code"] = compiled.code
    each = config.batch_size / jax.tree.leaves(lowered.batch)[0].sharding.mesh.size
    return Forecast(
        memory=parts,
        flops=compiled.flops / each,
        bytes=compiled.bytes / each,
        collectives={
            name: (one.count, one.bytes) for name, one in compiled.collectives.items()
        },
        host_calls=compiled.host_calls,
        seconds=compiled.seconds,
        text=compiled.text,
    )


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"remat": False, "accumulate": 1},
    "remat": {"remat": True, "accumulate": 1},
    "2 micro-batches": {"remat": False, "accumulate": 2},
    "remat, 2 micro-batches": {"remat": True, "accumulate": 2},
}


def _searched(
    settings: PlanConfig,
    config: PretrainConfig,
    build: Builder,
    found: Forecast | None,
) -> dict[str, Largest]:
    kind = build.devices.kind
    if settings.search == "none" or kind is None:
        return {}
    variants: Mapping[str, Mapping[str, Any]] = {"as given": {}}
    if settings.search == "all":
        variants = VARIANTS
    known: dict[str, Largest] = {}
    for name, change in variants.items():
        same = all(getattr(config, key) == value for key, value in change.items())
        first = [Trial(config.batch_size, found.needs)] if same and found else []
        accumulate = change.get("accumulate", config.accumulate)
        known[name] = largest(
            _trial(build, config, change),
            kind.memory,
            unit=build.devices.mesh.size * accumulate,
            start=config.batch_size,
            known=first,
            tell=_progress(name),
        )
    return known


def _trial(
    build: Builder, config: PretrainConfig, change: Mapping[str, Any]
) -> Callable[[int], int | None]:
    """The bytes that a batch needs; None if the compiler only says that it is more
    than there are."""

    def needs(batch: int) -> int | None:
        one = dataclasses.replace(config, batch_size=batch, **change)
        _, lowered = build.lowered(one)
        try:
            return forecast(one, lowered, compile_lowered(lowered.program)).needs
        except DoesNotFit as error:
            return error.needs

    return needs


def _progress(name: str) -> Callable[[int, int, int, float], None]:
    def tell(batch: int, done: int, most: int, seconds: float) -> None:
        left = f", at most {clock(seconds * (most - done))} left" if seconds else ""
        say_doing(
            f"Largest batch, {name}: compiling {batch} images, {done + 1} of at most "
            f"{most}{left}"
        )

    return tell


def _present(devices: Devices) -> bool:
    return set(devices.mesh.devices.flat) <= set(jax.devices())


def _measure(
    config: PretrainConfig, program: Program, lowered: Lowered, seconds: float = 3.0
) -> dict[str, float]:
    """Images/s of the step on zeros, after compiling, and the peak memory if known."""

    def zeros(leaf: jax.ShapeDtypeStruct) -> Any:
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

    run = lowered.program.compile()
    state, batch, data = jax.tree.map(
        zeros, (lowered.state, lowered.batch, lowered.data)
    )
    done, began = -1, 0.0
    while done < 3 or time.perf_counter() - began < seconds:
        state, metrics = run(state, batch, data)
        jax.block_until_ready(metrics["loss"])
        done += 1
        if not done:
            began = time.perf_counter()
    each = (time.perf_counter() - began) / done / lowered.steps
    found = {"images_per_second": config.batch_size / each}
    device = program.trainer.mesh.devices.flat[0]
    if stats := device.memory_stats():
        found["memory"] = float(stats["peak_bytes_in_use"])
    return found
