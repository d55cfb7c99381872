"""Pretraining: takes images, produces a run folder with an encoder."""

import dataclasses
import itertools
import pathlib
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax

from afterimage import runtime
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.weights import write_encoder
from afterimage.console import say_reading
from afterimage.data import (
    ImageSet,
    Splits,
    counted,
    hold_out,
    object_spec,
    open_data,
)
from afterimage.data.whole_photos import WholePhotos
from afterimage.encoder import encoder_manifest, vector_entry, with_statistics
from afterimage.errors import UserError
from afterimage.models import (
    FeatureInfo,
    ModelConfig,
    Network,
    abstract_encoder,
)
from afterimage.models.vector import VectorRecipe
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.evaluation import OWN_VIEW, Evaluation, picture_name
from afterimage.pretrain.gallery import filters
from afterimage.pretrain.origin import Origin, reading_of
from afterimage.pretrain.program import Program, image_problems
from afterimage.pretrain.report import PretrainResult, write_run_report
from afterimage.pretrain.views import write_page, write_picture
from afterimage.report.parts import Part
from afterimage.runs import Run
from afterimage.settings import to_dict
from afterimage.training.batches import (
    BatchLoader,
    EvaluationRunner,
    check_batch,
    make_mesh,
)
from afterimage.training.job import Job, Say, execute
from afterimage.training.loop import NO_CALLBACKS, Callbacks, StopSignal
from afterimage.training.optimiser import Partition, count_parameters
from afterimage.training.options import check
from afterimage.training.sharding import whole
from afterimage.training.step import (
    State,
    averaged_params,
    averaged_stats,
    compile_step,
    compile_steps,
)

NO_DATA = (
    "no data: give a folder of images (afterimage pretrain photos --out RUN), or pass "
    "an object, pretrain(config, data=...)"
)


def pretrain(
    config: PretrainConfig, *, data: Any = None, callbacks: Callbacks = NO_CALLBACKS
) -> PretrainResult:
    """Pretrain as `config` says, or continue the run in its folder.

    `data` replaces `config.data`: an array, a mapping of arrays, a sequence of records,
    or a data set of another library (`afterimage.data.objects`). A run with a
    checkpoint is resumed, with the same data; a complete run is left unchanged and its
    result returned.

    Raises:
      UserError, DataError: invalid settings or data, or another run's folder.
      CheckpointError: every checkpoint of the run is damaged; RunLocked: another
        process writes to the folder.
      Diverged, Interrupted: as in the loop; the progress so far is saved.
    """
    config, run, splits, origin = _opened(config, data)
    with run:
        _record(run, splits, origin)
        job = _Pretraining(config, run, splits, origin)
        return execute(job, run, callbacks)


def show_augment(config: PretrainConfig, *, data: Any = None) -> pathlib.Path:
    """Write a page of training images and their augmented views, without training.

    Returns the page in the run folder; the run can still begin there. Raises what
    `pretrain` raises before its first step.
    """
    config, run, splits, origin = _opened(config, data)
    with run:
        _record(run, splits, origin)
        return write_page(config, _held_out(config, splits)[0], run)


def _opened(
    config: PretrainConfig, data: Any
) -> tuple[PretrainConfig, Run, Splits, Origin | None]:
    """The settings with the data's name, the run folder (unlocked), the images and the
    encoder that is continued."""
    if (data is None) == (config.data is None):
        raise UserError(
            NO_DATA
            if data is None
            else f"data={config.data!r} and an object: give only one"
        )
    runtime.enable_compile_cache()
    if data is not None:
        config = dataclasses.replace(config, data=object_spec(data))
    run = Run(config.out, kind="pretrain", config=config)
    run.check_settings()
    origin = Origin.of(config)
    say_reading(config.data)
    splits = open_data(
        config.data if data is None else data,
        on_bad_image=config.on_bad_image,
        cache=config.cache,
        reading=config,
        whole=config.whole_photos,
        **reading_of(config, origin),
    )
    _check_data(config, splits, origin)
    return config, run, splits, origin


def _record(run: Run, splits: Splits, origin: Origin | None) -> None:
    images = splits.train
    begins = None if origin is None else origin.describe()
    run.check_data(images.name, images.fingerprint, origin=begins)
    run.write_skipped(splits.skipped)


def pace(
    config: PretrainConfig,
    splits: Splits,
    origin: Origin | None = None,
    *,
    seconds: float = 3.0,
    steps: int = 30,
) -> tuple[float, float]:
    """(seconds to compile, seconds of a step) of training with `config` here.

    Runs the real step on real batches, after compiling at least three of them, until
    `seconds` or `steps` are over; nothing is written.
    """
    run = Run(config.out, kind="pretrain", config=config)
    job = _Pretraining(config, run, splits, origin)
    feed, state, step = job.feed(0), job.template(), job.trainer.phases[0].step
    length = feed.steps_per_dispatch
    compiled = compile_step(step) if length == 1 else compile_steps(step)
    blocks = feed.blocks(0, itertools.repeat(length))
    marks, done = [time.perf_counter()], 0
    try:
        for _, _, batch in blocks:
            state, metrics = compiled(state, batch, feed.data)
            jax.block_until_ready(metrics["loss"])
            marks.append(time.perf_counter())
            done = len(marks) - 2  # the first compiles
            late = marks[-1] - marks[1] > seconds if done else False
            if done >= 3 and (late or done * length >= steps):
                break
    finally:
        blocks.close()
    each = (marks[-1] - marks[1]) / (done * length)
    return max(0.0, marks[1] - marks[0] - each * length), each


class _Pretraining(Job[PretrainResult]):
    """The parts of one run, in order of dependency."""

    best, direction = OWN_VIEW, "max"
    vector: VectorRecipe | None = None
    """The feature vector; None if it is a bottleneck."""

    def __init__(
        self, config: PretrainConfig, run: Run, splits: Splits, origin: Origin | None
    ):
        self.config, self.folder, self.origin = config, run, origin
        self.source = splits.train
        self.train, self.validation = _held_out(config, splits)
        self.mesh = make_mesh(config.devices)
        self.total = config.total_steps(len(self.train))
        program = Program.build(
            config, self.source, self.train, self.mesh, origin=origin
        )
        self.model, self.preprocessing = program.model, program.preprocessing
        self.setup, self.initial = program.setup, program.initial
        self.trainer = program.trainer
        self.encoder_network, self.info = _encoder_network(self.model, config.precision)

    def template(self) -> State:
        config = self.config
        return self.trainer.fresh(*self.initial, seed=config.seed, ema=config.ema > 0)

    def lost(self) -> tuple[str, ...] | None:
        run = self.folder
        files = ["report.html"]
        if self.config.pictures and self.config.objective.rows:
            files.append(f"pictures/{picture_name(self.total)}")
        missing = run.missing(["encoder"], files)
        if missing is None and not run.metrics.has(self.total, "eval/"):
            return ()
        return missing

    def result(self, *, complete: bool) -> PretrainResult:
        return PretrainResult.of(
            self.folder, self.config, complete=complete, steps=self.total
        )

    def prepare(self, began: int) -> None:
        self.began = began, time.perf_counter()
        if self._shows_views:
            write_picture(self.config, self.train, self.folder)
        sweep = EvaluationRunner(
            self.mesh, self.config.batch_size // self.config.accumulate
        )
        self.evaluation = Evaluation(
            self.config,
            self.setup,
            self.encoder_network,
            self.info,
            train=self.train,
            validation=self.validation,
            run=self.folder,
            sweep=sweep,
            total=self.total,
        )
        self.evaluation.measure_baselines(*self.trainer.place(self.initial))
        if not self.evaluation.bottleneck:
            self.vector = VectorRecipe(self.evaluation.own[0])

    def begin(self, say: Say, stop: StopSignal) -> State:
        return self.template()

    def feed(self, phase: int) -> BatchLoader:
        del phase
        rows = WholePhotos(self.train) if self.config.whole_photos else self.train
        return BatchLoader(rows, options=self.config, mesh=self.mesh)

    def derive(self, metrics: Mapping[str, Any]) -> Mapping[str, float]:
        return self.evaluation.relative_loss(metrics)

    def evaluate(
        self, state: State, step: int, stop: StopSignal
    ) -> Mapping[str, float]:
        return self._evaluate(state, step, stop.check)

    def _evaluate(
        self, state: State, step: int, check: Callable[[], None] = lambda: None
    ) -> Mapping[str, float]:
        params = averaged_params(state, self.trainer.partition(step))
        return self.evaluation(params, averaged_stats(state), step, check)

    def encoder(self, state: State) -> tuple[Any, Any, dict[str, Any]]:
        """(params, stats, manifest) of the encoder, or of its running mean if kept."""
        params = averaged_params(state, self._partition(state))["encoder"]
        config = self.config
        trained = {
            "stage": "pretrain",
            "steps": int(state["step"]),
            "of": self.total,
            "images": int(state["step"]) * config.batch_size,
            "objective": config.objective.name,
            "settings": to_dict(config.objective),
            "averaged": bool(state["ema"]),
            "seed": config.seed,
            "precision": config.precision,
        }
        if self.origin is not None:
            trained["from"] = self.origin.describe()
        manifest = encoder_manifest(
            self.model, self.info, self.preprocessing, self.source.identity, trained
        )
        if self.vector is not None:  # without statistics until the run is over
            manifest["vector"] = vector_entry(VectorRecipe(self.vector.pool), 0)
        return params, averaged_stats(state).get("encoder", {}), manifest

    @property
    def _shows_views(self) -> bool:
        return self.config.augment != "none" and self.config.pictures > 0

    def _partition(self, state: State) -> Partition:
        return self.trainer.partition(int(state["step"]))

    def finish(self, state: State, store: Store) -> PretrainResult:
        del store
        run = self.folder
        if self.began[0] >= self.total:  # for the pictures and the report
            self._evaluate(state, self.total)
        params, stats, manifest = self.encoder(state)
        model = averaged_params(state, self._partition(state)), averaged_stats(state)
        initial = self.trainer.place(self.initial)
        self.vector, entries = self.evaluation.conclude(*model, initial)
        manifest |= entries
        params, stats = whole((params, stats))
        # Write the encoder last: a run that has it has its final report.
        if run.is_main_process:
            parts = {
                "Neighbours in feature space": self.evaluation.neighbours(self.vector),
                "Filters of the first layer": filters(params, self.model.channels),
            }
            probes = entries["probes"]
            self.report(self.total, finished=True, probes=probes, parts=parts)
            place = self.result(complete=False).encoder
            stats = with_statistics(stats, self.vector)
            write_encoder(place, params, stats, manifest)
        return self.result(complete=False)

    def report(
        self,
        step: int,
        *,
        finished: bool = False,
        probes: Mapping[str, Any] = types.MappingProxyType({}),
        parts: Mapping[str, Part | None] = types.MappingProxyType({}),
    ) -> None:
        run = self.folder
        if not run.is_main_process:
            return
        run.metrics.flush()
        write_run_report(
            self.result(complete=False),
            run=run,
            config=self.config,
            report=self.evaluation.report,
            parts=parts,
            probes=probes,
            held_out=len(self.evaluation.held),
            data=self.source.name,
            vector=str(self.vector or "bottleneck"),
            model=self._facts(step),
            origin=self.origin,
            reached=None if finished else step,
        )

    def _facts(self, now: int) -> dict[str, Any]:
        params, _ = self.initial
        size = "x".join(map(str, self.train.shape))
        step, time_then = self.began
        return {
            "training images": f"{len(self.train):,} of {size}",
            "validation images": len(self.validation) if self.validation else 0,
            "encoder parameters": f"{count_parameters(params['encoder']):,}",
            "decoder parameters": f"{count_parameters(params.get('decoder', {})):,}",
            "feature vector": str(self.vector or "bottleneck"),
            "numbers in it": self.model.bottleneck
            or (self.vector and self.vector.size(self.info, self.model.image_size)),
            "steps in this session": now - step,
            "minutes in this session": (time.perf_counter() - time_then) / 60,
            **{k: v for k, v in runtime.fingerprint().items() if k != "conv_option"},
        }

    def introduction(self) -> str:
        params, _ = self.initial
        held = len(self.validation) if self.validation else "none"
        lines = [
            f"{self.source.name}: {len(self.train):,} training images "
            f"{'x'.join(map(str, self.train.shape))}, {held} held out",
            f"{self.model.name}: encoder {count_parameters(params['encoder']):,} "
            f"parameters, decoder {count_parameters(params.get('decoder', {})):,}",
            f"{self.total:,} steps of {self.config.batch_size} images, on "
            f"{self.mesh.size} {jax.devices()[0].device_kind} device"
            f"{'s' if self.mesh.size > 1 else ''}; results in {self.folder.where}",
        ]
        if self.origin is not None:
            lines.insert(2, f"continued from {self.origin}")
        if classes := counted(self.train):
            lines.insert(1, f"classes (used only by the probes): {classes}")
        return "\n".join(lines)


def _check_data(config: PretrainConfig, splits: Splits, origin: Origin | None) -> None:
    """Raises UserError, before creating a folder, if this data cannot be trained on."""
    found = []
    try:
        check_batch(config.batch_size, config.accumulate, make_mesh(config.devices))
    except UserError as error:
        found.append(str(error))
    try:
        found += image_problems(config, splits.train, origin)
    except UserError as error:
        found.append(str(error))
    check(found)


def _held_out(
    config: PretrainConfig, splits: Splits
) -> tuple[ImageSet, ImageSet | None]:
    """(train, validation): the data's own validation split, else drawn by seed."""
    if splits.validation is not None:
        return splits.train, splits.validation
    if not config.validation:
        return splits.train, None
    return hold_out(splits.train, config.validation, config.seed)


def _encoder_network(
    model: ModelConfig, precision: str
) -> tuple[Network, tuple[FeatureInfo, ...]]:
    """The encoder alone, for `params["encoder"]`; and its feature_info."""
    module = abstract_encoder(model)
    network, _, _ = Network.create(module, dtype=precision)
    return network, module.feature_info
