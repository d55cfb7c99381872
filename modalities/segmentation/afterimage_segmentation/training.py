"""A segmentation run: an encoder, images and masks in; a segmenter and scores out."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from afterimage import runtime
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import transfer
from afterimage.checkpoints.weights import write_encoder
from afterimage.encoder import encoder_manifest
from afterimage.errors import UserError
from afterimage.finetune.source import SourceModel
from afterimage.models import ModelConfig, abstract_encoder
from afterimage.runs import Run
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
from afterimage.training.stage import Context, Phase, Stage, Term, describe
from afterimage.training.step import State, averaged_params, averaged_stats
from afterimage_segmentation.config import SegmentConfig
from afterimage_segmentation.data import Data, Pairs, open_pairs
from afterimage_segmentation.losses import (
    confusion,
    cross_entropy,
    dice,
    paired_augment,
    scores,
)
from afterimage_segmentation.network import SegmentationNetwork, Tree
from afterimage_segmentation.report import SegmentResult, missing, write_page
from afterimage_segmentation.schema import SEGMENTER


def segment(
    config: SegmentConfig, *, callbacks: Callbacks = NO_CALLBACKS
) -> SegmentResult:
    """Train as `config` says, or continue the run in its folder.

    A complete run is left unchanged and its result returned.

    Raises:
      UserError, DataError: invalid settings, images or masks, or another run's folder.
      CheckpointError: the encoder or every checkpoint of the run is damaged.
      Diverged, Interrupted: as in the training loop; progress is saved.
    """
    runtime.enable_compile_cache()
    augment = paired_augment(config.augment)
    mesh = make_mesh(config.devices)
    check_batch(config.batch_size, config.accumulate, mesh)
    run = Run(config.out, kind="segment", config=config)
    run.check_settings()
    source = SourceModel.read(config.from_)
    model = _model(config, source)
    height, width = source.preprocessing.image_size
    side = config.image_size or (height if height == width else None)
    data = open_pairs(config, side, model.channels, source.preprocessing.value_range)
    with run:
        run.check_data(data.train.name, data.fingerprint)
        job = SegmentJob(config, run, data, source, model, augment, mesh)
        return execute(job, run, callbacks)


def _model(config: SegmentConfig, source: SourceModel) -> ModelConfig:
    """The encoder's architecture; a bottleneck, which no pixel needs, is left out."""
    if config.mode == "scratch" and source.model.norm == "frozen":
        raise UserError(
            f"mode=scratch: the encoder in {config.from_} has norm 'frozen', which "
            "never learns; give the same encoder imported with --norm batch"
        )
    return dataclasses.replace(source.model, bottleneck=None, remat=config.remat)


class SegmentJob(Job[SegmentResult]):
    """A segmentation run, as a job for the trainer."""

    best, direction = "miou", "max"

    def __init__(
        self,
        config: SegmentConfig,
        run: Run,
        data: Data,
        source: SourceModel,
        model: ModelConfig,
        augment: Any,
        mesh: Any,
    ):
        self.config, self.run, self.data = config, run, data
        self.source, self.model, self.mesh = source, model, mesh
        height, width, _ = data.train.images.shape
        self.preprocessing = dataclasses.replace(
            source.preprocessing, image_size=(height, width)
        )
        self.network, self.params, self.stats = SegmentationNetwork.create(
            model,
            self.preprocessing,
            len(data.classes.names),
            seed=config.seed,
            dtype=config.precision,
            fresh=config.mode == "scratch",
        )
        self.steps = config.total_steps(len(data.train))
        stage = Stage(phases=(self._phase(),), providers=self._providers(augment))
        size = config.batch_size // config.accumulate
        shape = (size, *data.train.images.shape)
        batch = {
            "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
            "truth": jax.ShapeDtypeStruct(shape[:3], jnp.uint8),
        }
        stage.check(self.params, self.stats, batch)
        self.trainer = Trainer(stage, self.params, mesh=mesh, images=len(data.train))
        self.runner = EvaluationRunner(mesh, size)
        self._confusion = self.runner.jit(self._count)
        if data.validation is None:  # then the last step is kept
            self.best = None

    def _phase(self) -> Phase:
        config = self.config
        reads = ("train/logits", "train/truth")
        terms = {"cross_entropy": (cross_entropy, 1.0), "dice": (dice, config.dice)}
        encoder = Group("encoder", "^encoder/", freeze=config.mode == "frozen")
        if config.mode == "full":
            encoder = dataclasses.replace(encoder, lr=config.encoder_lr)
        return Phase(
            name=config.mode,
            terms=tuple(
                Term(
                    name=name,
                    fn=lambda view, fn=fn: (fn(*(view[read] for read in reads)), {}),
                    reads=reads,
                    weight=weight,
                )
                for name, (fn, weight) in terms.items()
                if weight
            ),
            groups=(Group("decoder", "^decoder/"), encoder),
            steps=self.steps,
            options=config,
        )

    def _providers(self, augment: Any) -> Any:
        network = self.network

        def provide(params, stats, batch, key, step, trainable):
            del step

            def pair(_: Context) -> Any:
                pixels = batch["image"].astype(jnp.float32) / 255
                return augment(key, pixels, batch["truth"])

            def forward(ctx: Context) -> Any:
                train = "encoder" in trainable
                return network.logits(params, stats, ctx["train/pair"][0], train=train)

            return {
                "train/pair": pair,
                "train/truth": lambda ctx: ctx["train/pair"][1],
                "train/forward": forward,
                "train/logits": lambda ctx: ctx["train/forward"][0],
                "stats/next": lambda ctx: ctx["train/forward"][1],
            }

        return provide

    def template(self) -> State:
        params, stats = jax.tree.map(_array, (self.params, self.stats))
        return self._fresh(params, stats)

    def _fresh(self, params: Tree, stats: Tree) -> State:
        seed, ema = self.config.seed, self.config.ema > 0
        return self.trainer.fresh(params, stats, seed=seed, ema=ema)

    def lost(self) -> tuple[str, ...] | None:
        return missing(self.run)

    def result(self, *, complete: bool) -> SegmentResult:
        return SegmentResult.of(self.run, complete=complete)

    def begin(self, say: Say, stop: StopSignal) -> State:
        if self.config.mode == "scratch":
            return self._fresh(self.params, self.stats)
        given = {k: v for k, v in self.source.params.items() if k != "bottleneck"}
        params, _ = transfer(given, self.params["encoder"])
        stats, _ = transfer(self.source.stats, self.stats["encoder"])
        return self._fresh({**self.params, "encoder": params}, {"encoder": stats})

    def feed(self, phase: int) -> BatchLoader:
        del phase
        return BatchLoader(self.data.train, options=self.config, mesh=self.mesh)

    def introduction(self) -> str:
        data, size = self.data, "x".join(map(str, self.data.train.images.shape))
        counts = [
            f"{len(part):,} {name}"
            for name, part in (("validation", data.validation), ("test", data.test))
            if part is not None
        ]
        return "\n".join(
            [
                f"{data.train.name}: {len(data.train):,} training images {size}, "
                f"{' and '.join(counts) or 'none held out'}",
                f"{len(data.classes.names)} classes: {', '.join(data.classes.names)}",
                describe(self.trainer.stage, self.params),
            ]
        )

    # Scores.

    def _count(self, params: Any, stats: Any, batch: Mapping[str, Any]) -> Any:
        logits, _ = self.network.logits(params, stats, batch["image"])
        truth = jnp.where(batch["mask"][:, None, None], batch["truth"], 255)
        return confusion(logits.argmax(-1), truth, logits.shape[-1])

    def score(
        self, params: Any, stats: Any, pairs: Pairs, check: Any = lambda: None
    ) -> dict[str, Any]:
        """The scores of a set, its confusion matrix summed batch by batch."""
        found = []
        for _, batch, _ in self.runner.batches(pairs):
            check()
            found.append(self._confusion(params, stats, batch))
        counts = np.sum([np.asarray(part, np.int64) for part in found], 0)
        return {"images": len(pairs), **scores(counts, self.data.classes.names)}

    def evaluate(
        self, state: State, step: int, stop: StopSignal
    ) -> Mapping[str, float]:
        """Scores of the validation images; without any, `train_…` of training ones."""
        pairs, prefix = self.data.validation, ""
        if pairs is None:
            pairs, prefix = self.data.train, "train_"
        found = self.score(*self.weights(state), pairs, stop.check)
        each = {f"iou/{n}": v for n, v in found["iou"].items() if v is not None}
        some = {name: found[name] for name in ("accuracy", "miou")}
        return {prefix + name: value for name, value in {**some, **each}.items()}

    def weights(self, state: State) -> tuple[Any, Any]:
        """(params, stats) of a state; the running means if they are kept."""
        partition = self.trainer.partition(int(state["step"]))
        return averaged_params(state, partition), averaged_stats(state)

    # What is kept.

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest of the encoder of a step."""
        trained = {
            "stage": "segment",
            "mode": self.config.mode,
            "steps": step,
            "of": self.steps,
            "labels": len(self.data.train),
            "seed": self.config.seed,
            "from": self.source.describe(),
        }
        info = abstract_encoder(self.model).feature_info
        images = self.data.train.images
        return encoder_manifest(self.model, info, self.preprocessing, images, trained)

    def encoder(self, state: State) -> tuple[Any, Any, dict[str, Any]]:
        params, stats = self.weights(state)
        return params["encoder"], stats["encoder"], self.manifest(int(state["step"]))

    def finish(self, state: State, store: Store) -> SegmentResult:
        (params, stats), step = self._selected(state, store)
        results = {
            name: None if part is None else self.score(params, stats, part)
            for name, part in (
                ("validation", self.data.validation),
                ("test", self.data.test),
            )
        }
        params, stats = whole((params, stats))
        if self.run.is_main_process:
            own, classes = self.manifest(step), dataclasses.asdict(self.data.classes)
            kept = {"classes": classes.pop("names"), **classes, **own}
            folder = self.run.path
            write_encoder(folder / SEGMENTER, params, stats, kept, kind=SEGMENTER)
            write_encoder(folder / "encoder", params["encoder"], stats["encoder"], own)
            write_page(self.run, self.data, results, step, self.steps)
        return self.result(complete=False)

    def _selected(self, state: State, store: Store) -> tuple[tuple[Any, Any], int]:
        """(weights, step): of the best validation mIoU, else the last."""
        now = int(state["step"])
        saved = best_saved(self.run, store, now) if self.best else None
        if saved is None:
            return self.weights(state), now
        params, stats, step = saved
        return (params, {"encoder": {}, **stats}), step


def _array(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return np.zeros(leaf.shape, leaf.dtype)
    return leaf
