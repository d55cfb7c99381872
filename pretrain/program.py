"""The pretraining program: data in, a run folder with an encoder out."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from afterimage import runtime
from afterimage.checkpoints.encoder import write_encoder
from afterimage.checkpoints.store import Store
from afterimage.console import say
from afterimage.data import (
    ImageSet,
    Preprocessing,
    Splits,
    channel_statistics,
    counted,
    hold_out,
    open_data,
)
from afterimage.errors import UserError
from afterimage.manifest import encoder_manifest
from afterimage.models import (
    FeatureInfo,
    ModelConfig,
    Network,
    abstract_encoder,
)
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.evaluation import Evaluation, picture_name
from afterimage.pretrain.objectives import make_objective
from afterimage.pretrain.reconstruction import Reconstruction
from afterimage.pretrain.summary import PretrainResult, write_run_report
from afterimage.runs import Run
from afterimage.training.feed import Feed
from afterimage.training.groups import count_parameters, split_groups
from afterimage.training.loop import Fit, fit
from afterimage.training.mesh import check_batch, make_mesh, replicate
from afterimage.training.optimiser import make_optimiser, make_schedule
from afterimage.training.options import check
from afterimage.training.signals import StopSignal
from afterimage.training.state import (
    State,
    abstract,
    averaged_params,
    averaged_stats,
    init_state,
)
from afterimage.training.step import make_step
from afterimage.training.sweep import Sweep


def pretrain(config: PretrainConfig) -> PretrainResult:
    """Pretrain as `config` says, or continue what its run folder holds.

    Resume this run where it has a checkpoint, else start fresh. A run that is complete
    is left as it is and its result returned.

    Raises:
      UserError, DataError: settings or data that cannot work, another run's folder.
      CheckpointError: every checkpoint of the run is damaged; RunLocked: another
        process writes to the folder.
      Diverged, Interrupted: as the loop does; what was reached is saved.
    """
    runtime.enable_compile_cache()
    run = Run(config.out, kind="pretrain", config=config)
    run.check_settings()
    splits = open_data(
        config.data,
        image_size=config.image_size,
        channels=config.channels,
        value_range=config.value_range,
        on_bad_image=config.on_bad_image,
        cache=config.cache,
        reading=config,
    )
    _check_data(config, splits)
    with run:
        run.check_data(splits.train.name, splits.train.fingerprint)
        run.write_skipped(splits.skipped)
        return _Program(config, run, splits).run()


class _Program:
    """The pieces of one run, in the order they depend on each other."""

    def __init__(self, config: PretrainConfig, run: Run, splits: Splits):
        self.config, self.folder = config, run
        self.source = splits.train
        self.train, self.validation = _held_out(config, splits)
        self.mesh = make_mesh(config.devices)
        self.total = config.total_steps(len(self.train))
        # Of all training images, whatever part is held out: the same for every seed.
        self.preprocessing = _preprocessing(self.source)
        self.model = _model_config(config, self.train)
        objective = make_objective(config, self.model)
        module = objective.build(nnx.Rngs(config.seed))
        network, params, stats = Network.create(module, dtype=config.precision)
        stats = objective.start(params, stats)
        self.partition = split_groups(params)
        self.optimiser = make_optimiser(config, self.partition)
        self.state = replicate(
            init_state(
                params,
                stats,
                optimiser=self.optimiser,
                partition=self.partition,
                seed=config.seed,
                ema=config.ema > 0,
            ),
            self.mesh,
        )
        self.reconstruction = Reconstruction(
            config, objective, network, self.preprocessing
        )
        self.encoder, self.info = _encoder_network(self.model, config.precision)

    def run(self) -> PretrainResult:
        config, run = self.config, self.folder
        store = Store(
            run.path,
            keep_last=config.keep_last,
            keep_best=config.keep_best,
            best="min",
            warn=self._say,
        )
        with store:
            untrained = self.state["params"], self.state["stats"]
            began = self._resume(store)
            run.metrics.start(began)
            for note in run.notes:
                self._say(note)
            if began >= self.total and self._whole():
                self._say(
                    f"{run.path} is complete: {self.total} of {self.total} steps. For "
                    "more, start a new --out with more --steps"
                )
                return PretrainResult.of(run, complete=True, steps=self.total)
            self._say(self._introduction(began))
            evaluation = self._evaluation()
            evaluation.measure_baselines(*untrained)
            del untrained
            self._train(store, evaluation, began)
            if began >= self.total:  # for the pictures and the report's figures
                self._evaluate(evaluation, self.state, self.total)
            return self._finish(evaluation)

    def _whole(self) -> bool:
        """Whether all final files of the run are there; prints those that are not."""
        run = self.folder
        files = ["report.html"]
        if self.config.pictures:
            files.append(f"pictures/{picture_name(self.total)}")
        missing = run.missing(["encoder"], files)
        if missing:
            self._say(f"Recreated from the checkpoint: {', '.join(missing)}")
        return missing is None and run.metrics.has(self.total, "eval/")

    def _evaluate(
        self,
        evaluation: Evaluation,
        state: State,
        step: int,
        check: Callable[[], None] = lambda: None,
    ) -> Mapping[str, float]:
        params = averaged_params(state, self.partition)
        return evaluation(params, averaged_stats(state), step, check)

    def _evaluation(self) -> Evaluation:
        sweep = Sweep(self.mesh, self.config.batch_size // self.config.accumulate)
        return Evaluation(
            self.reconstruction,
            self.encoder,
            train=self.train,
            validation=self.validation,
            run=self.folder,
            sweep=sweep,
        )

    def _resume(self, store: Store) -> int:
        """The step to go on from: that of the newest good checkpoint, else 0."""
        if not store.steps():
            return 0
        step, self.state, _ = store.restore(abstract(self.state))
        return step

    def _train(self, store: Store, evaluation: Evaluation, began: int) -> None:
        config = self.config
        self.began = began, time.perf_counter()
        schedule = make_schedule(
            config, self.total, config.warmup(len(self.train), self.total)
        )
        step = make_step(
            self.reconstruction.training_loss(),
            optimiser=self.optimiser,
            schedule=schedule,
            partition=self.partition,
            options=config,
        )

        def evaluate(state: State, step: int, stop: StopSignal) -> Mapping[str, float]:
            return self._evaluate(evaluation, state, step, stop.check)

        def relative(metrics: Mapping[str, Any]) -> Mapping[str, float]:
            """1 is no better than predicting the training images' mean, 0 perfect."""
            loss = metrics.get("reconstruction", metrics["loss"])
            return {"relative_loss": loss / evaluation.mean_image_loss}

        plan = Fit(
            run=self.folder,
            store=store,
            training=config,
            options=config,
            total=self.total,
            evaluate=evaluate,
            artefact=self._artefact,
            best="loss",
            derive=relative,
        )
        feed = Feed(self.train, options=config, mesh=self.mesh)
        try:
            with StopSignal() as stop:
                self.state = fit(
                    plan, step, self.state, feed, end=self.total, stop=stop
                )
        finally:
            plan.progress.close()
        store.wait()

    def _artefact(self, state: State) -> tuple[Any, Any, dict[str, Any]]:
        """(params, stats, manifest) of the encoder; its running mean where kept."""
        params = averaged_params(state, self.partition)["encoder"]
        config = self.config
        trained = {
            "stage": "pretrain",
            "steps": int(state["step"]),
            "of": self.total,
            "images": int(state["step"]) * config.batch_size,
            "objective": config.objective,
            "loss": config.loss,
            "target": config.target,
            "corruption": config.corruption,
            "corruption_strength": config.strength,
            "averaged": bool(state["ema"]),
            "seed": config.seed,
            "precision": config.precision,
        }
        manifest = encoder_manifest(
            self.model, self.info, self.preprocessing, self.source, trained
        )
        return params, averaged_stats(state).get("encoder", {}), manifest

    def _finish(self, evaluation: Evaluation) -> PretrainResult:
        run = self.folder
        result = PretrainResult.of(run, complete=False, steps=self.total)
        if run.first:
            write_encoder(result.encoder, *self._artefact(self.state))
            run.metrics.flush()
            write_run_report(
                result,
                config=self.config,
                rows=run.metrics.rows,
                probes=evaluation.report,
                held_out=len(evaluation.held),
                model=self._facts(),
            )
        return result

    def _facts(self) -> dict[str, Any]:
        params = self.state["params"]
        size = "x".join(map(str, self.train.shape))
        step, time_then = self.began
        return {
            "training images": f"{len(self.train):,} of {size}",
            "validation images": len(self.validation) if self.validation else 0,
            "encoder parameters": f"{count_parameters(params['encoder']):,}",
            "decoder parameters": f"{count_parameters(params.get('decoder', {})):,}",
            "feature vector": self.model.bottleneck or self.info[-1].channels,
            "steps in this session": self.total - step,
            "minutes in this session": (time.perf_counter() - time_then) / 60,
            **{k: v for k, v in runtime.fingerprint().items() if k != "conv_option"},
        }

    def _introduction(self, began: int) -> str:
        params = self.state["params"]
        held = len(self.validation) if self.validation else "none"
        lines = [
            f"{self.source.name}: {len(self.train):,} training images "
            f"{'x'.join(map(str, self.train.shape))}, {held} held out",
            f"{self.model.name}: encoder {count_parameters(params['encoder']):,} "
            f"parameters, decoder {count_parameters(params.get('decoder', {})):,}",
            f"{self.total:,} steps of {self.config.batch_size} images, on "
            f"{self.mesh.size} {jax.devices()[0].device_kind} device"
            f"{'s' if self.mesh.size > 1 else ''}; results in {self.folder.path}",
        ]
        if classes := counted(self.train):
            lines.insert(1, f"classes (used only by the probes): {classes}")
        if began:
            lines.append(f"Continuing after step {began:,}")
        return "\n".join(lines)

    def _say(self, text: str) -> None:
        if self.folder.first:
            say(text)


def _check_data(config: PretrainConfig, splits: Splits) -> None:
    """Raises UserError, before there is a folder, for what this data cannot train."""
    found = []
    try:
        check_batch(config.batch_size, config.accumulate, make_mesh(config.devices))
    except UserError as error:
        found.append(str(error))
    try:
        model = _model_config(config, splits.train)
        found += make_objective(config, model).mistakes()
    except UserError as error:
        found.append(str(error))
    check(found)


def _held_out(
    config: PretrainConfig, splits: Splits
) -> tuple[ImageSet, ImageSet | None]:
    """(train, validation): the data's own validation split, else cut by seed."""
    if splits.validation is not None:
        return splits.train, splits.validation
    if not config.validation:
        return splits.train, None
    return hold_out(splits.train, config.validation, config.seed)


def _preprocessing(train: ImageSet) -> Preprocessing:
    height, width, channels = train.shape
    mean, std = channel_statistics(train)
    return Preprocessing((height, width), mean, std, channels, train.value_range)


def _model_config(config: PretrainConfig, train: ImageSet) -> ModelConfig:
    height, width, channels = train.shape
    return ModelConfig(
        image_size=(height, width), channels=channels, **config.model_settings()
    )


def _encoder_network(
    model: ModelConfig, precision: str
) -> tuple[Network, tuple[FeatureInfo, ...]]:
    """The encoder alone, to be applied to `params["encoder"]`; and its feature_info."""
    module = abstract_encoder(model)
    network, _, _ = Network.create(module, dtype=precision)
    return network, module.feature_info
