"""A segmentation run: an encoder, images and masks in; a segmenter and scores out."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from afterimage.finetune.own_network import EncoderStage, read_encoder
from afterimage.report import Figure, Gallery, Matrix, Table, Tile
from afterimage.stages import StageResult, open_run
from afterimage.training.batches import spaced
from afterimage.training.job import execute
from afterimage.training.loop import NO_CALLBACKS, Callbacks, StopSignal
from afterimage.training.optimiser import Group
from afterimage.training.stage import Context
from afterimage.training.step import State
from afterimage_segmentation.config import SegmentConfig
from afterimage_segmentation.data import Data, Pairs, open_pairs
from afterimage_segmentation.losses import (
    confusion,
    cross_entropy,
    dice,
    paired_augment,
    scores,
)
from afterimage_segmentation.network import SegmentationNetwork
from afterimage_segmentation.segmenter import SEGMENTER, load_segmenter, painted

_SHOWN = 8
"""Images on the page."""


def segment(
    config: SegmentConfig, *, callbacks: Callbacks = NO_CALLBACKS
) -> StageResult:
    """Train as `config` says, or continue the run in its folder.

    A complete run is left unchanged and its result returned.

    Raises:
      UserError, DataError: invalid settings, images or masks, or another run's folder.
      CheckpointError: the encoder or every checkpoint of the run is damaged.
      Diverged, Interrupted: as in the training loop; progress is saved.
    """
    augment = paired_augment(config.augment)
    run, (source, model) = open_run(config, "segment"), read_encoder(config)
    prep = source.preprocessing
    height, width = prep.image_size
    side = config.image_size or (height if height == width else None)
    data = open_pairs(config, side, model.channels, prep.value_range)
    prep = dataclasses.replace(prep, image_size=data.sets["train"].images.shape[:2])
    with run:
        name, mark = data.sets["train"].name, data.fingerprint
        own = config, run, source, model, prep, name, mark
        return execute(_Segmentation(data, augment, *own), run, callbacks)


class _Segmentation(EncoderStage):
    artefact, best, direction = SEGMENTER, "miou", "max"
    chosen_by = "validation mean IoU"
    lead = "A class for every pixel, learned from images and masks."
    config: SegmentConfig

    def __init__(self, data: Data, augment: Any, *own: Any):
        super().__init__(*own)
        config = self.config
        self.sets, self.classes, self.augment = data.sets, data.classes, augment
        self.title = f"Segmenter of {self.train.name} (mode {config.mode})"
        self.network, self.params, self.stats = SegmentationNetwork.create(
            self.model,
            self.preprocessing,
            len(self.classes.names),
            seed=config.seed,
            dtype=config.precision,
            fresh=config.mode == "scratch",
        )
        reads = ("train/logits", "train/truth")
        terms = {
            "cross_entropy": (cross_entropy, reads, 1.0),
            "dice": (dice, reads, config.dice),
        }
        self.ready(self.phase(terms, Group("decoder", "^decoder/")))
        self._confusion = self.runner.jit(self._count)

    def rules(
        self, params: Any, stats: Any, batch: Any, key: Any, step: Any, trainable: Any
    ) -> Any:
        del step

        def pair(_: Context) -> Any:
            pixels = batch["image"].astype(jnp.float32) / 255
            return self.augment(key, pixels, batch["truth"])

        def forward(ctx: Context) -> Any:
            images, train = ctx["train/pair"][0], "encoder" in trainable
            return self.network.logits(params, stats, images, train=train)

        return {
            "train/pair": pair,
            "train/truth": lambda ctx: ctx["train/pair"][1],
            "train/forward": forward,
            "train/logits": lambda ctx: ctx["train/forward"][0],
            "stats/next": lambda ctx: ctx["train/forward"][1],
        }

    def facts(self) -> dict[str, str]:
        size, names = "x".join(map(str, self.train.images.shape)), self.classes.names
        return {
            "Encoder": self.config.from_,
            "Images": f"{self.counts()} of {self.train.name}, {size}",
            "Classes": f"{len(names)}: {', '.join(names)}",
        }

    def _count(self, params: Any, stats: Any, batch: Mapping[str, Any]) -> Any:
        logits, _ = self.network.logits(params, stats, batch["image"])
        truth = jnp.where(batch["mask"][:, None, None], batch["truth"], 255)
        return confusion(logits.argmax(-1), truth, logits.shape[-1])

    def score(
        self, weights: Any, rows: Pairs, poll: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """The scores of a set, its confusion matrix summed batch by batch."""
        found = []
        for _, batch, _ in self.runner.batches(rows):
            poll()
            found.append(self._confusion(*weights, batch))
        counts = np.sum([np.asarray(part, np.int64) for part in found], 0)
        return {"images": len(rows), **scores(counts, self.classes.names)}

    def evaluate(
        self, state: State, step: int, stop: StopSignal
    ) -> Mapping[str, float]:
        """Scores of the validation images; without any, `train_…` of training ones."""
        found = self.score(self.weights(state), self.followed_set(), stop.check)
        each = {f"iou/{n}": v for n, v in found["iou"].items() if v is not None}
        some = {name: found[name] for name in ("accuracy", "miou")}
        return {self.prefix + name: value for name, value in {**some, **each}.items()}

    def content(self) -> dict[str, Any]:
        classes = dataclasses.asdict(self.classes)
        return {"classes": classes.pop("names"), **classes}

    def lines(self, results: Mapping[str, Any]) -> list[str]:
        name, _ = self.scored_set()
        if not (found := results.get(name)):
            return []
        return [
            f"{name} ({found['images']:,} images): mean IoU {found['miou']:.3f}, "
            f"{100 * found['accuracy']:.1f} % of pixels right",
            *(f"  {name}: IoU {_text(value)}" for name, value in found["iou"].items()),
        ]

    def curves(self) -> dict[str, dict[str, str]]:
        terms = ("loss", *(term.name for term in self.trainer.stage.phases[0].terms))
        return {
            "Loss": {term: f"train/{term}" for term in terms},
            "Mean IoU": {"validation": f"eval/{self.prefix}miou"},
        }

    def shown(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Images with truth and prediction, IoU by class, the confusion matrix."""
        name, pairs = self.scored_set()
        parts: dict[str, Any] = {f"Images of {name}": self._gallery(pairs)}
        if not (scored := results.get(name)):
            return {"parts": parts}
        meaning = "Overlap of prediction and truth, the mean over the classes."
        headline = {
            f"{name} mean IoU": Figure(f"{scored['miou']:.3f}", meaning),
            f"{name} pixels right": Figure(f"{100 * scored['accuracy']:.1f} %"),
        }
        each = [[name, _text(value)] for name, value in scored["iou"].items()]
        parts["IoU by class"] = Table(["class", "IoU"], each)
        if len(each) <= 20:
            note = "Pixels; rows are true classes, columns predicted ones."
            counts = scored["confusion"]
            parts["Confusion"] = Matrix(note, self.classes.names, counts)
        return {"headline": headline, "parts": parts}

    def _gallery(self, pairs: Pairs) -> Gallery:
        some, classes = spaced(len(pairs), _SHOWN), self.classes
        pixels, truth = pairs.images.gather(some), pairs.truth[some]
        predicted = load_segmenter(self.run.path).predict(pixels)
        key = [
            Tile.of(np.full((8, 8, 3), colour, np.uint8), name)
            for name, colour in zip(classes.names, classes.colours)
        ]
        rows = [("classes", key)]
        for n, row in enumerate(some):
            tiles = [
                Tile.of(pixels[n], "image"),
                Tile.of(painted(truth[n], classes.colours), "truth"),
                Tile.of(painted(predicted[n], classes.colours), "prediction"),
            ]
            rows.append((str(pairs.ids[int(row)]), tiles))
        note = "Pixels of unknown class are white in the truth."
        return Gallery(note, rows, aligned=True)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
