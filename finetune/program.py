"""The fine-tuning program: an encoder and labels in, a classifier and figures out."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

from afterimage import runtime
from afterimage.data import eval_batches
from afterimage.data.augment import make_augment
from afterimage.errors import UserError
from afterimage.evaluation.classification import classification_report
from afterimage.manifest import encoder_manifest
from afterimage.models import abstract_encoder
from afterimage.runs import Run, write_json
from afterimage.training.feed import Feed
from afterimage.training.loop import Fit
from afterimage.training.mesh import check_batch, make_mesh
from afterimage.training.signals import StopSignal
from afterimage.training.state import State, averaged_params
from afterimage.training.sweep import Sweep, spaced
from checkpoints.classifier import write_classifier
from checkpoints.encoder import write_encoder
from checkpoints.inspect import list_steps
from checkpoints.store import Store
from checkpoints.transfer import Report
from checkpoints.trees import flatten, unflatten
from finetune.artefact import head_entry
from finetune.classifier import Classifier, HeadConfig, standardise
from finetune.config import FinetuneConfig
from finetune.labels import Chosen, choose
from finetune.modes import Recipe, make_phases
from finetune.scoring import Scorer, measures
from finetune.source import Source, adapt, check_scratch, load_weights, open_for
from finetune.stage import Stage, describe
from finetune.summary import FinetuneResult, write_run_report
from finetune.terms import balanced_weights, cross_entropy
from finetune.trainer import Trainer

HEAD = "classes"
_MOST_TO_STANDARDISE = 20_000
_MOST_TRAIN_SCORED = 2_000


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Fine-tune as `config` says, or continue what its run folder holds.

    Resume this run where it has a checkpoint; else begin from the encoder `from_`, or,
    in mode scratch, from random weights of its architecture. A run that is complete is
    left as it is and its result returned.

    Raises:
      UserError, DataError: settings or data that cannot work, another run's folder.
      CheckpointError: the encoder or every checkpoint of the run is damaged;
        TransferError: parameters do not fit; RunLocked: another process writes here.
      Diverged, Interrupted: as the loop does; what was reached is saved.
    """
    runtime.enable_compile_cache()
    source = Source.read(config.from_)
    check_scratch(config, source.model)
    splits = open_for(config, source.preprocessing)
    chosen = choose(config, splits)
    with Run(config.out, kind="finetune", config=config) as run:
        run.check_data(splits.train.name, splits.train.fingerprint)
        run.write_skipped(splits.skipped)
        model, preprocessing = adapt(source.model, source.preprocessing, splits)
        return _Program(config, run, source, chosen, model, preprocessing).run()


class _Program:
    """The pieces of one run, in the order they depend on each other."""

    def __init__(self, config, run, source, chosen: Chosen, model, preprocessing):
        self.config, self.folder, self.source = config, run, source
        self.chosen, self.model = chosen, model
        self.info = abstract_encoder(model).feature_info
        self.mesh = make_mesh(config.devices)
        check_batch(config.batch_size, config.accumulate, self.mesh)
        self.total = config.total_steps(len(chosen.train))
        self.head = HeadConfig(len(chosen.class_names), config.head, config.features)
        self.classifier, self.params, self.stats = Classifier.create(
            dataclasses.replace(model, remat=config.remat),
            {HEAD: self.head},
            preprocessing,
            seed=config.seed,
            dtype=config.precision,
            fresh=config.mode == "scratch" or bool(config.may_differ),
        )
        sweep = Sweep(self.mesh, config.batch_size // config.accumulate)
        self.scorer = Scorer(self.classifier, HEAD, sweep)
        self.stage = self._stage()
        self.stage.check(self.params, self.stats, self._batch_shapes())
        self.trainer = Trainer(
            self.stage, self.params, mesh=self.mesh, images=len(chosen.train)
        )

    def _stage(self) -> Stage:
        config, classes = self.config, len(self.chosen.class_names)
        term = cross_entropy(
            classes,
            label_smoothing=config.label_smoothing,
            class_weights=_class_weights(config, self.chosen),
            head=HEAD,
        )
        recipe = Recipe(
            encoder_lr=config.encoder_lr,
            layer_decay=config.layer_decay,
            unfreeze_stages=config.unfreeze_stages,
            unfreeze=config.unfreeze,
            head_steps=config.head_steps or max(1, self.total // 3),
            head_lr=config.head_lr,
        )
        phases = make_phases(
            config.mode, list(flatten(self.params)), (term,), self.total, config, recipe
        )
        supply = self.classifier.supply(make_augment(config.augment))
        return Stage(phases=phases, supply=supply)

    def _batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        size = self.config.batch_size // self.config.accumulate
        shape = (size, *self.chosen.train.shape)
        return {
            "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
            "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        }

    def run(self) -> FinetuneResult:
        config, run = self.config, self.folder
        store = Store(
            run.path,
            keep_last=config.keep_last,
            keep_best=config.keep_best,
            best="min" if config.select_by == "loss" else "max",
            warn=self._say,
        )
        with store:
            state = self.trainer.resume(store, self._fresh)
            began = 0 if state is None else int(state["step"])
            complete = began >= self.total and (run.path / "results.json").exists()
            run.metrics.start(began)
            for note in run.notes:
                self._say(note)
            if complete:
                self._say(
                    f"{run.path} is complete: {self.total} of {self.total} steps. For "
                    "another run, name a new --out"
                )
                return FinetuneResult.of(run, complete=True)
            self._introduce(began)
            state = self._begin() if state is None else state
            with StopSignal() as stop:
                state = self._train(state, store, stop)
                return self._finish(state, store)

    def _fresh(self) -> State:
        ema, seed = self.config.ema > 0, self.config.seed
        params, stats = jax.tree.map(_array, (self.params, self.stats))
        return self.trainer.fresh(params, stats, seed=seed, ema=ema)

    def _begin(self) -> State:
        """Weights from the source, with the report; then the features' statistics."""
        run, chosen = self.folder, self.chosen
        if run.first:
            write_json(run.path / "labels.json", chosen.record(self.config))
        if self.config.mode != "scratch":
            self.params, self.stats, reports = load_weights(
                self.source, self.params, self.stats, self.config.may_differ
            )
            self._say(_transferred(reports["params"]))
            if run.first:
                found = {name: report.to_dict() for name, report in reports.items()}
                write_json(
                    run.path / "transfer.json", {"from": self.config.from_, **found}
                )
        some = spaced(chosen.train, _MOST_TO_STANDARDISE)
        self.stats = standardise(
            self.classifier,
            self.params,
            self.stats,
            eval_batches(some, self.config.batch_size),
        )
        return self._fresh()

    def _train(self, state: State, store: Store, stop: StopSignal) -> State:
        config = self.config
        plan = Fit(
            run=self.folder,
            store=store,
            training=config,
            options=config,
            total=self.total,
            evaluate=self._evaluate,
            artefact=self._encoder,
            best=config.select_by if self.chosen.validation is not None else None,
        )
        feed = Feed(self.chosen.train, options=config, mesh=self.mesh)
        try:
            state = self.trainer.train(state, plan, feed, stop)
        finally:
            plan.progress.close()
        store.wait()
        return state

    def _weights(self, state: State) -> tuple[Any, Any, int]:
        """(params, stats, step) of a state; the running mean where one is kept."""
        step = int(state["step"])
        partition = self.trainer.partition(step)
        return averaged_params(state, partition), state["stats"], step

    def _evaluate(self, state: State, step: int, stop: StopSignal) -> dict[str, float]:
        """Validation measures; without validation, those of the training images."""
        params, stats, _ = self._weights(state)
        images, prefix = self.chosen.validation, ""
        if images is None:
            images, prefix = spaced(self.chosen.train, _MOST_TRAIN_SCORED), "train_"
        logits = self.scorer.logits(params, stats, images, stop.check)
        assert images.labels is not None
        found = measures(logits, images.labels)
        return {prefix + name: value for name, value in found.items()}

    def _manifest(self, step: int) -> dict[str, Any]:
        trained = {
            "stage": "finetune",
            "mode": self.config.mode,
            "steps": step,
            "of": self.total,
            "labels": len(self.chosen.train),
            "seed": self.config.seed,
            "from": self.source.describe(),
        }
        preprocessing = self.classifier.preprocessing
        return encoder_manifest(
            self.model, self.info, preprocessing, self.chosen.train, trained
        )

    def _encoder(self, state: State) -> tuple[Any, Any, dict[str, Any]]:
        """(params, stats, manifest) of the encoder alone."""
        params, stats, step = self._weights(state)
        return params["encoder"], stats["encoder"], self._manifest(step)

    def _selected(self, state: State, store: Store) -> tuple[Any, Any, int]:
        """(params, stats, step) of the step that the rule chooses."""
        if self.chosen.validation is None:
            return self._weights(state)
        best = next((row for row in list_steps(self.folder.path) if row.best), None)
        if best is None or best.step == int(state["step"]):
            return self._weights(state)
        step, tree, _ = store.restore(step=best.step)
        averaged = flatten(tree["params"]) | flatten(tree.get("ema", {}))
        stats = {"encoder": {}, "heads": {}, **tree["stats"]}
        return unflatten(averaged), stats, step

    def _finish(self, state: State, store: Store) -> FinetuneResult:
        run, chosen, config = self.folder, self.chosen, self.config
        params, stats, step = self._selected(state, store)
        results: dict[str, Any] = {
            "mode": config.mode,
            "from": self.source.describe(),
            "seed": config.seed,
            "training_images": len(chosen.train),
            "classes": list(chosen.class_names),
            "steps": self.total,
            "selection": {"rule": chosen.rule, "step": step},
            "validation": None,
            "test": None,
            "runtime": runtime.fingerprint(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }
        for name in ("validation", "test"):
            images = getattr(chosen, name)
            if images is not None:
                logits = self.scorer.logits(params, stats, images)
                results[name] = classification_report(
                    logits, images.labels, chosen.class_names, seed=config.seed
                )
        if run.first:
            manifest = self._manifest(step)
            write_encoder(
                run.path / "encoder", params["encoder"], stats["encoder"], manifest
            )
            heads = {HEAD: head_entry(self.head, chosen.class_names)}
            write_classifier(
                run.path / "classifier", params, stats, {**manifest, "heads": heads}
            )
            run.metrics.flush()
            write_run_report(
                run, config, results, description=describe(self.stage, self.params)
            )
            # Last: its presence says that the run is complete.
            write_json(run.path / "results.json", results)
        return FinetuneResult.of(run, complete=False, results=results)

    def _introduce(self, began: int) -> None:
        chosen = self.chosen
        test = f"{len(chosen.test):,} test images" if chosen.test else "no test images"
        lines = [
            f"{chosen.train.name}: {len(chosen.train):,} labelled training images of "
            f"{len(chosen.class_names)} classes, {test}",
            f"step chosen by: {chosen.rule}",
            describe(self.stage, self.params),
        ]
        if began:
            lines.append(f"Continuing after step {began:,}")
        self._say("\n".join(lines))

    def _say(self, text: str) -> None:
        if self.folder.first:
            print(text, flush=True)


def _array(leaf: Any) -> Any:
    """A leaf that is still to be loaded as zeros: the structure is what counts."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, leaf.dtype)
    return leaf


def _transferred(report: Report) -> str:
    """The totals and every leaf that was not loaded; transfer.json has all of them."""
    lines = str(report).splitlines()
    return "\n".join(line for line in lines if not line.startswith("loaded "))


def _class_weights(config: FinetuneConfig, chosen: Chosen) -> tuple[float, ...] | None:
    if config.class_weights == "none":
        return None
    names, labels = chosen.class_names, chosen.train.labels
    assert labels is not None
    if config.class_weights == "balanced":
        return balanced_weights(labels, len(names))
    weights = tuple(float(w) for w in config.class_weights.split(","))
    if len(weights) != len(names):
        raise UserError(
            f"class_weights has {len(weights)} numbers for {len(names)} classes: give "
            f"one each, in the order {', '.join(names)}"
        )
    return weights
