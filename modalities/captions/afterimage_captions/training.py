"""A run of `afterimage align`: an encoder and pairs in; an aligner and scores out."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from afterimage import runtime
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import transfer
from afterimage.checkpoints.weights import write_encoder
from afterimage.data import make_augment
from afterimage.encoder import encoder_manifest
from afterimage.errors import UserError
from afterimage.finetune.classifier import standardise
from afterimage.finetune.source import SourceModel
from afterimage.models import abstract_encoder
from afterimage.runs import Run
from afterimage.storage.urls import is_remote
from afterimage.training.batches import (
    BatchLoader,
    EvaluationRunner,
    check_batch,
    make_mesh,
)
from afterimage.training.job import Job, Say, Trainer, best_saved, execute
from afterimage.training.loop import NO_CALLBACKS, Callbacks, StopSignal
from afterimage.training.optimiser import Group
from afterimage.training.sharding import whole
from afterimage.training.stage import Context, Phase, Stage, Term, View, describe
from afterimage.training.step import State, averaged_params, averaged_stats
from afterimage_captions.aligner import ALIGNER, HEAD, make_network, scale_of
from afterimage_captions.config import AlignConfig
from afterimage_captions.data import Pairs, open_pairs
from afterimage_captions.report import (
    WAYS,
    AlignResult,
    missing,
    read_result,
    write_page,
)
from afterimage_captions.scores import FIRST_SCALE, contrastive, retrieval, unit

_MOST_SEEN = 20_000


def align(config: AlignConfig, *, callbacks: Callbacks = NO_CALLBACKS) -> AlignResult:
    """Train as `config` says, or continue the run in its folder.

    A complete run is left unchanged and its result returned.

    Raises:
      UserError, DataError: invalid settings, pairs or vectors, or another run's folder.
      CheckpointError: the encoder or every checkpoint of the run is damaged.
      Diverged, Interrupted: as in the training loop; progress is saved.
    """
    runtime.enable_compile_cache()
    check_batch(config.batch_size, config.accumulate, make_mesh(config.devices))
    run = Run(config.out, kind="align", config=config)
    run.check_settings()
    source = SourceModel.read(config.from_)
    if config.mode == "scratch" and source.model.norm == "frozen":
        raise UserError(
            f"mode=scratch: the encoder in {config.from_} has norm 'frozen', which "
            "never learns; give the same encoder imported with --norm batch"
        )
    (height, width), prep = source.preprocessing.image_size, source.preprocessing
    side = config.image_size or (height if height == width else None)
    pairs, mark = open_pairs(config, side, prep.channels, prep.value_range)
    with run:
        run.check_data(pairs["train"].name, mark)
        return execute(AlignJob(config, run, pairs, source), run, callbacks)


class AlignJob(Job[AlignResult]):
    """An alignment, as a job for the trainer."""

    best, direction = "mrr", "max"

    def __init__(
        self,
        config: AlignConfig,
        run: Run,
        pairs: Mapping[str, Pairs],
        source: SourceModel,
    ):
        self.config, self.run, self.pairs, self.source = config, run, pairs, source
        self.train, self.mesh = pairs["train"], make_mesh(config.devices)
        # A bottleneck is left out: no feature needs it.
        self.model = dataclasses.replace(
            source.model, bottleneck=None, remat=config.remat
        )
        height, width, _ = self.train.shape
        self.preprocessing = dataclasses.replace(
            source.preprocessing, image_size=(height, width)
        )
        self.network, self.params, self.stats = make_network(
            self.model,
            self.preprocessing,
            self.train.vectors.shape[1],
            seed=config.seed,
            dtype=config.precision,
            fresh=config.mode == "scratch",
        )
        self.params["temperature"] = {"log": jnp.float32(FIRST_SCALE)}
        self.augment = make_augment(config.augment, min(height, width))
        self.steps = config.total_steps(len(self.train))
        stage = Stage(phases=(self._phase(),), providers=self._providers)
        batch = np.zeros(config.batch_size // config.accumulate, np.int64)
        stage.check(self.params, self.stats, self.train.inputs(batch))
        self.trainer = Trainer(
            stage, self.params, mesh=self.mesh, images=len(self.train)
        )
        self.runner = EvaluationRunner(self.mesh, config.batch_size)
        self._embed = self.runner.jit(
            lambda p, s, x: unit(self.network.predict(p, s, x, HEAD))
        )

    def _phase(self) -> Phase:
        config, reads = self.config, ("train/vector", "train/batch", "params")

        def loss(view: View) -> Any:
            batch, scale = view["train/batch"], scale_of(view["params"])
            same = batch["text"][:, None] == batch["text"][None]
            each = contrastive(view["train/vector"], batch["vector"], same, scale)
            return each, {"scale": scale}

        encoder = Group("encoder", "^encoder/", freeze=config.mode == "frozen")
        if config.mode == "full":
            encoder = dataclasses.replace(encoder, lr=config.encoder_lr)
        return Phase(
            name=config.mode,
            terms=(Term(name="contrastive", fn=loss, reads=reads),),
            groups=(
                Group("projection", "^heads/"),
                Group("temperature", "^temperature/"),
                encoder,
            ),
            steps=self.steps,
            options=config,
        )

    def _providers(
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

    def template(self) -> State:
        made = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype), (self.params, self.stats)
        )
        return self._fresh(*made)

    def _fresh(self, params: Any, stats: Any) -> State:
        seed, ema = self.config.seed, self.config.ema > 0
        return self.trainer.fresh(params, stats, seed=seed, ema=ema)

    def lost(self) -> tuple[str, ...] | None:
        return missing(self.run)

    def result(self, *, complete: bool) -> AlignResult:
        return read_result(self.run, complete=complete)

    def begin(self, say: Say, stop: StopSignal) -> State:
        """The encoder's weights, and the measured scale of its features."""
        params, stats = self.params, self.stats
        if self.config.mode != "scratch":
            given = {k: v for k, v in self.source.params.items() if k != "bottleneck"}
            own, _ = transfer(given, params["encoder"])
            old, _ = transfer(self.source.stats, stats["encoder"])
            params, stats = {**params, "encoder": own}, {**stats, "encoder": old}
        batches = (batch for _, batch, _ in self.runner.batches(self.train))
        return self._fresh(
            params, standardise(self.network, params, stats, batches, [HEAD])
        )

    def feed(self, phase: int) -> BatchLoader:
        del phase
        return BatchLoader(self.train, options=self.config, mesh=self.mesh)

    def introduction(self) -> str:
        counts = [f"{len(each):,} {name}" for name, each in self.pairs.items()]
        train = self.train
        return (
            f"{train.name}: {' + '.join(counts)} pairs, images "
            f"{'x'.join(map(str, train.shape))}\n{len(train.texts):,} different texts, "
            f"vectors of {train.vectors.shape[1]} numbers from {self.config.text}\n"
            + describe(self.trainer.stage, self.params)
        )

    def score(
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
        pairs = self.pairs["validation"]
        found, _ = self.score(self.weights(state), pairs, stop.check)
        each = {
            f"{way}/{name}": found[way][name]
            for way in WAYS
            for name in ("recall@1", "recall@10")
        }
        return {"mrr": found["mrr"], **each}

    def weights(self, state: State) -> tuple[Any, Any]:
        """(params, stats) of a state; the running means if they are kept."""
        partition = self.trainer.partition(int(state["step"]))
        return averaged_params(state, partition), averaged_stats(state)

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest of the encoder of a step."""
        trained = {
            "stage": "align",
            "mode": self.config.mode,
            "steps": step,
            "of": self.steps,
            "labels": len(self.train),
            "seed": self.config.seed,
            "from": self.source.describe(),
        }
        info = abstract_encoder(self.model).feature_info
        return encoder_manifest(
            self.model, info, self.preprocessing, self.train, trained
        )

    def encoder(self, state: State) -> tuple[Any, Any, dict[str, Any]]:
        params, stats = self.weights(state)
        return params["encoder"], stats["encoder"], self.manifest(int(state["step"]))

    def finish(self, state: State, store: Store) -> AlignResult:
        weights, step = self.weights(state), int(state["step"])
        if (saved := best_saved(self.run, store, step)) is not None:
            params, stats, step = saved
            weights = params, {"encoder": {}, **stats}
        results: dict[str, Any] = {"step": step, "steps": self.steps, "test": None}
        vectors = np.zeros((0, 0))
        for name in [name for name in ("validation", "test") if name in self.pairs]:
            results[name], vectors = self.score(weights, self.pairs[name])
        params, stats = whole(weights)
        if self.run.is_main_process:
            folder, own = self.run.path, self.manifest(step)
            kept = {**own, **self._texts()}
            write_encoder(folder / ALIGNER, params, stats, kept, kind=ALIGNER)
            write_encoder(folder / "encoder", params["encoder"], stats["encoder"], own)
            shown = self.pairs.get("test", self.pairs["validation"])
            write_page(self.run, shown, vectors, results)
        return self.result(complete=False)

    def _texts(self) -> dict[str, Any]:
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
