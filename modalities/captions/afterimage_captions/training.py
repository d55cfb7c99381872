"""A run of `afterimage align`: an encoder and pairs in; an aligner and scores out."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from afterimage.data import make_augment
from afterimage.finetune.classifier import standardise
from afterimage.finetune.own_network import EncoderStage, read_encoder
from afterimage.report import Gallery, Table, Tile
from afterimage.stages import StageResult, open_run
from afterimage.storage.urls import is_remote
from afterimage.training.batches import spaced
from afterimage.training.job import Say, execute
from afterimage.training.loop import NO_CALLBACKS, Callbacks, StopSignal
from afterimage.training.optimiser import Group
from afterimage.training.stage import Context
from afterimage.training.step import State
from afterimage_captions.aligner import ALIGNER, HEAD, make_network, scale_of
from afterimage_captions.config import AlignConfig
from afterimage_captions.data import Pairs, open_pairs
from afterimage_captions.scores import FIRST_SCALE, contrastive, retrieval, unit

WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}
_MOST_SEEN, _SHOWN = 20_000, 12


def align(config: AlignConfig, *, callbacks: Callbacks = NO_CALLBACKS) -> StageResult:
    """Train as `config` says, or continue the run in its folder.

    A complete run is left unchanged and its result returned.

    Raises:
      UserError, DataError: invalid settings, pairs or vectors, or another run's folder.
      CheckpointError: the encoder or every checkpoint of the run is damaged.
      Diverged, Interrupted: as in the training loop; progress is saved.
    """
    run, (source, model) = open_run(config, "align"), read_encoder(config)
    (height, width), prep = source.preprocessing.image_size, source.preprocessing
    side = config.image_size or (height if height == width else None)
    pairs, mark = open_pairs(config, side, prep.channels, prep.value_range)
    prep = dataclasses.replace(prep, image_size=pairs["train"].shape[:2])
    with run:
        own = config, run, source, model, prep, pairs["train"].name, mark
        return execute(_Alignment(pairs, *own), run, callbacks)


class _Alignment(EncoderStage):
    artefact, best, direction = ALIGNER, "mrr", "max"
    chosen_by = "the mean reciprocal rank of the validation pairs"
    lead = "An image encoder aligned with the vectors of texts."
    config: AlignConfig

    def __init__(self, pairs: Mapping[str, Pairs], *own: Any):
        super().__init__(*own)
        self.sets = pairs
        config, prep = self.config, self.preprocessing
        self.title = f"Images and texts of {self.train.name} (mode {config.mode})"
        self.network, self.params, self.stats = make_network(
            self.model,
            prep,
            self.train.vectors.shape[1],
            seed=config.seed,
            dtype=config.precision,
            fresh=config.mode == "scratch",
        )
        self.params["temperature"] = {"log": jnp.float32(FIRST_SCALE)}
        self.augment = make_augment(config.augment, min(prep.image_size))
        self._embed = self.runner.jit(
            lambda p, s, x: unit(self.network.predict(p, s, x, HEAD))
        )
        reads = ("train/vector", "train/batch", "params")
        self.ready(
            self.phase(
                {"contrastive": (_loss, reads, 1.0)},
                Group("projection", "^heads/"),
                Group("temperature", "^temperature/"),
            )
        )

    def rules(
        self, params: Any, stats: Any, batch: Any, key: Any, step: Any, trainable: Any
    ) -> Any:
        del step
        network = self.network

        def forward(_: Context) -> Any:
            pixels = self.augment(key, batch["image"].astype(jnp.float32) / 255)
            x = self.preprocessing.normalise(pixels)
            maps, after = network.maps(params, stats, x, train="encoder" in trainable)
            vectors = unit(network.logits(params, stats, maps, HEAD))
            return vectors, {**stats, "encoder": after}

        return {
            "params": lambda _: params,
            "train/batch": lambda _: batch,
            "train/forward": forward,
            "train/vector": lambda ctx: ctx["train/forward"][0],
            "stats/next": lambda ctx: ctx["train/forward"][1],
        }

    def begin(self, say: Say, stop: StopSignal) -> State:
        """The encoder's weights, and the measured scale of its features."""
        params, stats = self.started()
        batches = (batch for _, batch, _ in self.runner.batches(self.train))
        return self.fresh(
            params, standardise(self.network, params, stats, batches, [HEAD])
        )

    def facts(self) -> dict[str, str]:
        train = self.train
        size = "x".join(map(str, train.shape))
        return {
            "Encoder": self.config.from_,
            "Pairs": f"{self.counts()} of {train.name}, images {size}",
            "Texts": f"{len(train.texts):,} different ones, vectors of "
            f"{train.vectors.shape[1]} numbers from {self.config.text}",
        }

    def measured(
        self, weights: Any, pairs: Pairs, poll: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, Any], np.ndarray]:
        """(how well the images and texts of a set find each other, image vectors)."""
        found = []
        for _, batch, mask in self.runner.batches(pairs):
            poll()
            found.append(np.asarray(self._embed(*weights, batch["image"]))[mask])
        vectors = np.concatenate(found)
        return retrieval(vectors, pairs.text, pairs.vectors), vectors

    def evaluate(
        self, state: State, step: int, stop: StopSignal
    ) -> Mapping[str, float]:
        """How well the validation pairs find each other."""
        pairs = self.sets["validation"]
        found, _ = self.measured(self.weights(state), pairs, stop.check)
        each = {
            f"{way}/{name}": found[way][name]
            for way in WAYS
            for name in ("recall@1", "recall@10")
        }
        return {"mrr": found["mrr"], **each}

    def scores(self, params: Any, stats: Any) -> dict[str, Any]:
        results: dict[str, Any] = {"test": None}
        for name in [name for name in ("validation", "test") if name in self.sets]:
            results[name], self.vectors = self.measured(
                (params, stats), self.sets[name]
            )
        return results

    def content(self) -> dict[str, Any]:
        """What the aligner's manifest says of the texts."""
        place, train = self.config.text, self.train
        if place != "minilm" and not is_remote(place):
            place = os.path.abspath(place)
        first = int(train.text[0])
        return {
            "text": place,
            "width": train.vectors.shape[1],
            "seen": train.seen if len(train.seen) <= _MOST_SEEN else [],
            "example": (train.texts[first], train.vectors[first].tolist()),
        }

    def curves(self) -> dict[str, dict[str, str]]:
        return {
            "Loss": {"training": "train/contrastive"},
            "Mean reciprocal rank": {"validation": "eval/mrr"},
            "Scale of the cosines": {"training": "train/scale"},
        }

    def lines(self, results: Mapping[str, Any]) -> list[str]:
        return [": ".join(row) for row in _table(results)]

    def shown(self, results: Mapping[str, Any]) -> dict[str, Any]:
        rows = [list(row) for row in _table(results)]
        parts = {"Retrieval": Table(["", ""], rows), "Images": self._gallery()}
        return {"parts": parts}

    def _gallery(self) -> Gallery:
        """Some images with the nearest text of their set, the last that was scored."""
        _, pairs = self.scored_set()
        own, some = np.unique(pairs.text), spaced(len(pairs), _SHOWN)
        nearest = own[(self.vectors[some] @ pairs.vectors[own].T).argmax(1)]
        pixels = pairs.gather(some)
        rows = []
        for n, row in enumerate(some.tolist()):
            text = f"{pairs.texts[pairs.text[row]]} → {pairs.texts[nearest[n]]}"
            rows.append((text, [Tile.of(pixels[n], str(pairs.ids[row]))]))
        return Gallery("The text of an image → the nearest text of its set.", rows)


def _loss(vectors: Any, batch: Any, params: Any) -> Any:
    """(the contrastive loss of each pair, {scale})."""
    same = batch["text"][:, None] == batch["text"][None]
    scale = scale_of(params)
    return contrastive(vectors, batch["vector"], same, scale), {"scale": scale}


def _table(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(set and direction, recall and rank), of the test or else of the validation."""
    name = "test" if results["test"] else "validation"
    found = results[name]
    rows = [(name, f"{found['images']:,} images, {found['texts']:,} different texts")]
    for key, way in WAYS.items():
        own, chance = found[key], found["chance"][key]
        recalls = ", ".join(
            f"{k} {100 * own[k]:.1f} % (chance {100 * chance[k]:.1f})"
            for k in ("recall@1", "recall@5", "recall@10")
        )
        rows.append((way, f"{recalls}, median rank {own['median_rank']:g}"))
    return rows
