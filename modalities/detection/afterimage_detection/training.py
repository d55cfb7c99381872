"""A detection run: an encoder, images and boxes in; a detector and scores out."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from afterimage.data.sets import Columns
from afterimage.finetune.own_network import EncoderStage, read_encoder
from afterimage.models import Network
from afterimage.report import Figure, Gallery, Table, Tile
from afterimage.report.parts import image_uri
from afterimage.stages import StageResult, open_run
from afterimage.training.batches import spaced
from afterimage.training.job import execute
from afterimage.training.loop import NO_CALLBACKS, Callbacks, StopSignal
from afterimage.training.optimiser import Group
from afterimage.training.stage import Context
from afterimage.training.step import State
from afterimage_detection import losses
from afterimage_detection.config import DetectConfig
from afterimage_detection.data import PADDING, Data, Letterbox, open_boxes
from afterimage_detection.detector import DETECTOR, drawn, fill_of, load_detector
from afterimage_detection.network import DetectionModel, cell_of
from afterimage_detection.scores import average_precision

_SHOWN, _SCORE = 8, 0.3
"""Images on the page, and the least score of a box there."""


def detect(config: DetectConfig, *, callbacks: Callbacks = NO_CALLBACKS) -> StageResult:
    """Train as `config` says, or continue the run in its folder.

    A complete run is left unchanged and its result returned.

    Raises:
      UserError, DataError: invalid settings, images or boxes, or another run's folder.
      CheckpointError: the encoder or every checkpoint of the run is damaged.
      Diverged, Interrupted: as in the training loop; progress is saved.
    """
    augment = losses.boxed_augment(config.augment)
    run, (source, model) = open_run(config, "detect"), read_encoder(config)
    side = config.image_size or max(source.preprocessing.image_size)
    prep = dataclasses.replace(source.preprocessing, image_size=(side, side))
    DetectionModel(model, side, 1, rngs=nnx.Rngs(0), fresh=False)  # before reading
    shape = (side, side, prep.channels)
    decoder = Letterbox(shape, shape[:2], prep.value_range, fill_of(prep))
    data = open_boxes(config, decoder)
    with run:
        own = config, run, source, model, prep, data.sets["train"].name
        job = _Detection(data, augment, *own, data.fingerprint)
        return execute(job, run, callbacks)


class _Detection(EncoderStage):
    artefact, best, direction = DETECTOR, "map", "max"
    chosen_by = "validation mAP"
    lead = "Boxes and classes of objects, learned from images and boxes."
    config: DetectConfig

    def __init__(self, data: Data, augment: losses.Augment, *own: Any):
        super().__init__(*own)
        config = self.config
        self.sets, self.data, self.augment = data.sets, data, augment
        self.title = f"Detector of {self.train.name} (mode {config.mode})"
        self.side = self.preprocessing.image_size[0]
        how = {"rngs": nnx.Rngs(config.seed), "fresh": config.mode == "scratch"}
        module = DetectionModel(self.model, self.side, len(data.classes), **how)
        self.network, self.params, self.stats = Network.create(
            module, dtype=config.precision
        )
        terms = {
            name: (loss, (f"train/{name}", "train/targets"), 1.0)
            for name, loss in {"centres": losses.focal, "sides": losses.sides}.items()
        }
        self.ready(self.phase(terms, Group("head", "^head/")))
        self._peaks = self.runner.jit(
            lambda *inputs: losses.peaks(*self._apply(*inputs)[0])
        )

    def _apply(self, params: Any, stats: Any, images: Any, train: bool = False) -> Any:
        images = self.preprocessing.normalise(images)
        return self.network.apply(params, stats, images, train=train)

    def rules(
        self, params: Any, stats: Any, batch: Any, key: Any, step: Any, trainable: Any
    ) -> Any:
        del step
        cell, classes = cell_of(self.side), len(self.data.classes)

        def moved(_: Context) -> Any:
            pixels = batch["image"].astype(jnp.float32) / 255
            return self.augment(key, pixels, batch["boxes"], batch["classes"])

        def targets(ctx: Context) -> Any:
            _, boxes, kinds = ctx["train/moved"]
            return losses.make_targets(boxes, kinds, self.side // cell, cell, classes)

        return {
            "train/moved": moved,
            "train/forward": lambda ctx: self._apply(
                params, stats, ctx["train/moved"][0], "encoder" in trainable
            ),
            "train/targets": targets,
            "train/centres": lambda ctx: ctx["train/forward"][0][0],
            "train/sides": lambda ctx: ctx["train/forward"][0][1],
            "stats/next": lambda ctx: ctx["train/forward"][1],
        }

    def facts(self) -> dict[str, str]:
        name, names = self.train.name, self.data.classes
        some = ", ".join(names[:8]) + ", …" * (len(names) > 8)
        return {
            "Encoder": self.config.from_,
            "Images": f"{self.counts()} of {name}, in squares of {self.side} pixels",
            "Boxes": f"{_boxes(self.train):,} in training images",
            "Classes": f"{len(names)}: {some}",
        }

    def score(
        self,
        weights: tuple[Any, Any],
        rows: Columns,
        poll: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """The scores of a set. IoU is the same in the pixels of the squares."""
        found: list[np.ndarray] = []
        for _, batch, mask in self.runner.batches(rows):
            poll()
            best = np.asarray(self._peaks(*weights, batch["image"]), np.float64)
            found += list(best[mask])
        counts = {"images": len(rows), "boxes": _boxes(rows)}
        return counts | average_precision(_truth(rows), found, self.data.classes)

    def evaluate(
        self, state: State, step: int, stop: StopSignal
    ) -> Mapping[str, float]:
        """Scores of the validation images; without any, `train_…` of training ones."""
        found = self.score(self.weights(state), self.followed_set(), stop.check)
        some = {name: found[name] for name in ("map", "map50", "map75")}
        some |= {f"ap/{n}": v for n, v in found["ap"].items() if v is not None}
        return {self.prefix + name: value for name, value in some.items()}

    def content(self) -> dict[str, Any]:
        return {"classes": self.data.classes, "numbers": self.data.numbers}

    def lines(self, results: Mapping[str, Any]) -> list[str]:
        name, _ = self.scored_set()
        if not (found := results.get(name)):
            return []
        return [
            f"{name} ({found['images']:,} images, {found['boxes']:,} boxes): mAP "
            f"{found['map']:.3f}, {found['map50']:.3f} at IoU 0.5",
            *(f"  {n}: AP {_text(ap)}" for n, ap in [*found["ap"].items()][:8]),
        ]

    def curves(self) -> dict[str, dict[str, str]]:
        return {
            "Loss": {name: f"train/{name}" for name in ("loss", "centres", "sides")},
            "mAP": {"validation": f"eval/{self.prefix}map"},
        }

    def shown(self, results: Mapping[str, Any]) -> dict[str, Any]:
        name, rows = self.scored_set()
        parts: dict[str, Any] = {f"Images of {name}": self._gallery(rows)}
        if not (scored := results.get(name)):
            return {"parts": parts}
        meaning = "Average precision over classes and IoU of 0.5 to 0.95, as COCO's."
        headline = {
            f"{name} mAP": Figure(_text(scored["map"]), meaning),
            f"{name} mAP at IoU 0.5": Figure(_text(scored["map50"])),
        }
        each = [[n, _text(ap)] for n, ap in scored["ap"].items()]
        parts["AP by class"] = Table(["class", "AP"], each)
        return {"headline": headline, "parts": parts}

    def _gallery(self, part: Columns) -> Gallery:
        """Some images with their true boxes, and with those found."""
        some, names = spaced(len(part), _SHOWN), self.data.classes
        images, rows = part.arrays["image"][some], []
        every = load_detector(self.run.path).rows(images)
        truths = _truth(
            Columns("", part.inputs(some), [part.ids[int(n)] for n in some])
        )
        for n, image, truth, found in zip(some, images, truths, every):
            truth = truth[truth[:, 4] >= 0]
            truth[:, 2:4] -= truth[:, :2]
            tiles = [
                Tile(image_uri(drawn(image, boxes, names), 192), caption)
                for caption, boxes in (
                    ("truth", truth),
                    ("found", found[found[:, 5] >= _SCORE]),
                )
            ]
            rows.append((str(part.ids[int(n)]), tiles))
        note = f"Found: boxes with a score of at least {_SCORE}. A colour for a class."
        return Gallery(note, rows, aligned=True)


def _truth(part: Columns) -> list[np.ndarray]:
    """(x1, y1, x2, y2, class) of the objects of each image."""
    boxes, classes = (part.arrays[n].astype(np.float64) for n in ("boxes", "classes"))
    rows = np.concatenate([boxes, classes[..., None]], -1)
    return [row[row[:, 4] != PADDING] for row in rows]


def _boxes(part: Columns) -> int:
    """How many objects there are."""
    return int((part.arrays["classes"] >= 0).sum())


def _text(ap: float | None) -> str:
    return "-" if ap is None else f"{ap:.3f}"
