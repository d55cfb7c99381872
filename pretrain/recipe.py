"""The recipe: settings chosen by looking at the images, the machine and the time."""

import dataclasses
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from afterimage import runtime
from afterimage.checkpoints import schemas
from afterimage.console import say, say_reading
from afterimage.data import ImageSet, Splits, object_spec, open_data
from afterimage.data.sets import Sizes
from afterimage.data.sources import source_of
from afterimage.data.views import is_writing
from afterimage.errors import UserError
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.origin import Origin, reading_of
from afterimage.pretrain.run import NO_DATA, pace
from afterimage.reading import ReadingOptions
from afterimage.runs import Run
from afterimage.settings import from_dict, merge
from afterimage.storage.reading import look
from afterimage.training.batches import subsample

MINUTES = 10.0
"""Length of a run if none is asked for."""
_SMALL = 40
"""Images up to this side are kept as they are."""
_STORED = {"cpu": 48, "long": 96, "accelerator": 128}
"""Side that larger images are reduced to, by the machine and the time."""
_LONG = 240  # core minutes: 4 hours on one core
_VIEW = 2 / 3  # of that side: smaller views are faster, and look closer
_FEWEST, _MOST_EPOCHS = 20, 1_000
_INSTRUMENTS = 0.1
"""Share of a run for what is not training: evaluations, pictures, the report."""
_CARE = 1.05
"""Steps are planned as if they took this much longer, for a machine that slows down."""
_LOOKED_AT = 256
RECIPE: Mapping[str, Any] = {
    "norm": "batch",
    "objective": "simclr",
    "normalise": "image",
    "lr": 2e-3,
    "weight_decay": 0.05,
    "beta2": 0.99,
    "clip": 5.0,
}
"""What is the same for all images, chosen on the development sets of
`benchmarks.strangers` (docs/design/recipe.md)."""
PHOTOS, WRITING = "photos", "writing"
"""The augmentations that are chosen from."""


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """What the recipe knows of the images."""

    count: int
    height: int
    width: int
    channels: int
    classes: int
    """Classes of the labels; 0 without labels."""
    sides: tuple[int, int, int]
    """Least, median and largest of the short sides, before resizing."""
    writing: bool
    """Whether they look like strokes on a plain ground."""
    augment: str = ""
    """What their source names for them; empty for pictures."""

    @classmethod
    def of(cls, train: ImageSet, sizes: Sizes, augment: str = "") -> "ImageFacts":
        """From the images at their stored size, and their sizes before that."""
        height, width, channels = train.shape
        short = [min(size) for size in sizes] or [min(height, width)]
        labels = train.labels
        known = 0 if labels is None else len(np.unique(labels[labels >= 0]))
        some = subsample(train, _LOOKED_AT)
        return cls(
            count=len(train),
            height=height,
            width=width,
            channels=channels,
            classes=known,
            sides=(min(short), int(statistics.median(short)), max(short)),
            writing=is_writing(some.gather(np.arange(len(some)))),
            augment=augment,
        )


def recommend(
    data: Any, *, out: str, minutes: float | int | None = None, **settings: Any
) -> PretrainConfig:
    """Settings for these images, this machine and this time; says what it chose.

    Reads the images, and times a few steps unless `steps` or `epochs` are given, so
    that the whole run, counted from this call on, takes about `minutes` (default 10),
    at most a tenth more or less. `settings` are fields of PretrainConfig, and win over
    what would be chosen. A folder with a run that was begun keeps that run's settings,
    so that the same call continues it.

    `data` is as for `pretrain`: for an object, pass it there again.

    Raises UserError, DataError: as `pretrain`, before a folder is made.
    """
    began = time.perf_counter()
    if data is None:
        raise UserError(NO_DATA)
    spec = data if isinstance(data, str) else None
    given = {**settings, "data": spec, "out": out}
    # Every mistake at once, before reading: the images change none of these.
    asked = _merged({**_fixed(settings), "augment": PHOTOS}, given)
    if minutes is not None and (asked.steps or asked.epochs):
        raise UserError(f"minutes={minutes:g} and steps or epochs: give only one")
    budget = 60.0 * (MINUTES if minutes is None else minutes)
    if not budget > 0:
        raise UserError(f"minutes={minutes}: must be above 0")
    if (stored := _begun(out)) is not None:
        say(f"{out} contains a run: its settings are used, and --minutes is ignored")
        return _merged(stored, given)
    origin = Origin.of(asked)
    # For an object, the folder's settings are compared when it is passed to `pretrain`.
    Run(out, kind="pretrain", config=asked).check_settings()
    say_reading(asked.data)
    splits, sizes = _opened(data, asked, budget, origin)
    augment = "" if spec is None else source_of(spec).augment
    images = ImageFacts.of(splits.train, sizes, augment)
    chosen = choose(images, settings)
    config = _merged(chosen, given)
    steps = None
    if config.steps is None and config.epochs is None:
        named = dataclasses.replace(config, data=object_spec(data))
        left = budget - (time.perf_counter() - began)
        steps = _steps(named, splits, origin, left)
        config = dataclasses.replace(config, steps=steps)
    shown = reasons(images, config, settings, budget if steps else None, origin)
    say("\n".join(shown))
    return config


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> PretrainConfig:
    return from_dict(PretrainConfig, merge(PretrainConfig, below, above))


def _begun(out: str) -> dict[str, Any] | None:
    """The settings of a pretraining run in this folder; None if none has begun."""
    file = look(out) / "config.json"
    if not file.exists() or not any((file.parent / "checkpoints").glob("*")):
        return None
    stored = schemas.read(file, schemas.ConfigFile, "restore it, or use a new --out")
    # Another kind of run is refused by `Run`.
    return stored["config"] if stored["kind"] == "pretrain" else None


def _opened(
    data: Any, asked: PretrainConfig, budget: float, origin: Origin | None
) -> tuple[Splits, Sizes]:
    """The images at the size to train on, and their sizes before that."""
    sizes: list[tuple[int, int]] = []

    def rule(found: Sizes) -> int | None:
        sizes.extend(found)
        return stored_side(found, budget, at_least=asked.view_size or 0)

    how = reading_of(asked, origin)
    if how["image_size"] is None and origin is None:
        how["image_size"] = rule
    splits = open_data(
        data,
        on_bad_image=asked.on_bad_image,
        cache=asked.cache,
        reading=ReadingOptions(**asked.settings()),
        whole=asked.whole_photos,
        **how,
    )
    return splits, sizes


def stored_side(sizes: Sizes, budget: float, *, at_least: int = 0) -> int | None:
    """The side to store images of these sizes at; None keeps the size they share.

    Large images are reduced to what this machine can train on in `budget` seconds.
    """
    if sizes and len(set(sizes)) == 1 and at_least <= max(sizes[0]) <= _SMALL:
        return None
    kind = "accelerator"
    if jax.default_backend() == "cpu":
        kind = "long" if budget / 60 * runtime.cores() >= _LONG else "cpu"
    usual = statistics.median(min(size) for size in sizes) if sizes else _SMALL
    return max(16, at_least, min(int(usual), _STORED[kind]))


def choose(images: ImageFacts, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe for these images: settings of PretrainConfig, without its length."""
    accelerator = jax.default_backend() != "cpu"
    batch = 256 if accelerator else 128
    while batch > 8 and batch > images.count // 2:
        batch //= 2
    chosen: dict[str, Any] = {
        **_fixed(settings),
        "augment": _augment(images, settings),
        "batch_size": max(1, batch // jax.device_count()) * jax.device_count(),
    }
    if "from_" in settings:
        return chosen
    chosen["model"] = "resnet18" if accelerator else "conv"
    side = min(images.height, images.width)
    if images.height == images.width and images.sides != (side,) * 3:
        chosen["image_size"] = side
    if side > _SMALL and chosen["augment"] == PHOTOS and "augment" not in settings:
        chosen["view_size"] = max(32, 8 * round(_VIEW * side / 8))
    return chosen


def _augment(images: ImageFacts, settings: Mapping[str, Any]) -> str:
    if settings.get("whole_photos"):  # of the others, none cuts
        return PHOTOS
    return images.augment or (WRITING if images.writing else PHOTOS)


def _fixed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without what an encoder that is continued brings."""
    brought = {"norm", "normalise"} if "from_" in settings else set()
    return {name: value for name, value in RECIPE.items() if name not in brought}


def _steps(
    config: PretrainConfig, splits: Splits, origin: Origin | None, left: float
) -> int:
    """Steps that fit into `left` seconds of this machine."""
    clock = time.perf_counter()
    compile_, step = pace(dataclasses.replace(config, steps=1_000), splits, origin)
    left -= time.perf_counter() - clock
    # The run compiles its own step: the length is part of the program.
    steps = ((1 - _INSTRUMENTS) * left - compile_) / (_CARE * step)
    most = round(_MOST_EPOCHS * len(splits.train) / config.batch_size)
    found = max(_FEWEST, min(int(steps), max(most, _FEWEST)))
    if jax.process_count() > 1:  # every process times for itself: the first decides
        from jax.experimental import multihost_utils

        found = int(multihost_utils.broadcast_one_to_all(np.array(found, np.int32)))
    return found


_LEARNS = "two views of an image get similar features; the decoder learns beside it"


def reasons(
    images: ImageFacts,
    config: PretrainConfig,
    settings: Mapping[str, Any],
    budget: float | None,
    origin: Origin | None = None,
) -> list[str]:
    """What was chosen, and why, a few lines; only what `settings` do not say."""
    low, usual, high = images.sides
    sides = f"{low}" if low == high else f"{low} to {high}, median {usual}"
    labels = f"{images.classes} classes" if images.classes else "no labels"
    colour = {1: "grey", 3: "colour"}.get(images.channels, f"{images.channels}-band")
    device = jax.devices()[0]
    machine = (
        f"{runtime.cores()} CPU core{'s' * (runtime.cores() > 1)}"
        if device.platform == "cpu"
        else f"{jax.device_count()} x {device.device_kind}"
    )
    lines = [
        f"Settings for {images.count:,} {colour} images ({sides} pixels; {labels}) and "
        f"{machine}:"
    ]
    side, view = min(images.height, images.width), config.view_size
    pixels = f"{side} pixels" + (f", views of {view}" if view else "")
    grounds = {
        WRITING: "strokes on a plain ground: never mirrored",
        PHOTOS: "mirrored, turned a little, recoloured: --augment writing if left and "
        "right differ",
    }
    ground = grounds.get(config.augment, "what this kind of data is made for")
    known = {
        "objective": ("objective", config.objective.name, _LEARNS),
        "model": ("model", f"{config.model}, norm {config.norm}", "for this machine"),
        "image_size": ("size", pixels, "what it can train on in the time"),
        "augment": ("augment", config.augment, ground),
    }
    if origin is not None:
        own = origin.encoder.config
        known["model"] = ("model", f"{own.name}, norm {own.norm}", f"of {origin.path}")
        size = "the encoder's; a smaller --image-size is faster"
        known["image_size"] = ("size", pixels, size)
    rows = [row for name, row in known.items() if name not in settings]
    if budget is not None:
        clock = f"{budget / 60:g} minutes with all evaluations; --minutes changes it"
        if config.steps == _FEWEST:
            clock = f"the minimum; it takes longer than {budget / 60:g} minutes"
        rows.append(("steps", f"{config.steps:,} of {config.batch_size}", clock))
    wide = max((len(value) for _, value, _ in rows), default=0)
    lines += [f"  {name:9}  {value:{wide}}  {why}" for name, value, why in rows]
    return [*lines, "Any flag replaces a choice; config.json will hold every setting"]
