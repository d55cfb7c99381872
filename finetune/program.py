"""The fine-tuning program: an encoder and labels in, a classifier and figures out."""

import dataclasses
import hashlib
import time
from typing import Any

import jax
import jax.numpy as jnp

from afterimage import runtime
from afterimage.data import ImageSet, Preprocessing, eval_batches
from afterimage.manifest import encoder_manifest
from afterimage.models import ModelConfig, abstract_encoder
from afterimage.runs import Run, write_json
from afterimage.training.feed import Feed
from afterimage.training.loop import Fit
from afterimage.training.mesh import check_batch, make_mesh
from afterimage.training.signals import StopSignal
from afterimage.training.state import State, averaged_params
from afterimage.training.sweep import Sweep, spaced
from checkpoints.inspect import list_steps
from checkpoints.store import Store
from checkpoints.transfer import Report
from checkpoints.trees import flatten, unflatten
from finetune import anchors, shift, streams
from finetune.artefact import head_entry, write_artefacts
from finetune.classifier import Classifier, HeadConfig, standardise
from finetune.config import FinetuneConfig
from finetune.labels import Chosen, choose
from finetune.methods import (
    HEAD,
    distillation,
    make_stage,
    make_terms,
    own_params,
    stream_names,
)
from finetune.scoring import Scorer, measures, reports
from finetune.selection import ORACLE, choose_rule, label_free
from finetune.source import (
    Source,
    adapt,
    check_scratch,
    chosen_model,
    load_weights,
    open_for,
)
from finetune.stage import describe
from finetune.streams import Target, open_target
from finetune.summary import FinetuneResult, write_run_report
from finetune.teacher import compare, read_teacher
from finetune.trainer import Trainer

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
    architecture = chosen_model(config, source.model)
    check_scratch(config, architecture)
    splits = open_for(config, source.preprocessing)
    chosen = choose(config, splits)
    target = open_target(config, source.preprocessing, chosen.class_names)
    with Run(config.out, kind="finetune", config=config) as run:
        run.check_data(*_identity(splits.train, target))
        run.write_skipped(splits.skipped)
        model, preprocessing = adapt(architecture, source.preprocessing, splits)
        program = _Program(config, run, source, chosen, target, model, preprocessing)
        return program.run()


class _Program:
    """The pieces of one run, in the order they depend on each other."""

    def __init__(
        self,
        config: FinetuneConfig,
        run: Run,
        source: Source,
        chosen: Chosen,
        target: Target | None,
        model: ModelConfig,
        preprocessing: Preprocessing,
    ):
        self.config, self.folder, self.source = config, run, source
        self.chosen, self.target, self.model = chosen, target, model
        self.rule = choose_rule(config, chosen, target)
        self.info = abstract_encoder(model).feature_info
        self.mesh = make_mesh(config.devices)
        check_batch(config.batch_size, config.accumulate, self.mesh)
        self.total = config.total_steps(len(chosen.train))
        self.head = HeadConfig(len(chosen.class_names), config.head, config.features)
        source_head = anchors.source_head(config)
        heads = {HEAD: self.head}
        if source_head is not None:
            heads[anchors.SOURCE_HEAD] = source_head[0]
        self.classifier, self.params, self.stats = Classifier.create(
            dataclasses.replace(model, remat=config.remat),
            heads,
            preprocessing,
            seed=config.seed,
            dtype=config.precision,
            fresh=config.mode == "scratch" or bool(config.may_differ),
        )
        self.sweep = Sweep(self.mesh, config.batch_size // config.accumulate)
        self.scorer = Scorer(self.classifier, HEAD, self.sweep)
        self.teacher = read_teacher(config, chosen.train.shape, chosen.class_names)
        streams.check_statistics(config, self.stats["encoder"])
        self._extend(source_head)
        self.stage = make_stage(
            config,
            self.classifier,
            self.params,
            self.terms,
            self.total,
            teacher=self.teacher,
        )
        self.stage.check(self.params, self.stats, self._batch_shapes())
        self.trainer = Trainer(
            self.stage, self.params, mesh=self.mesh, images=len(chosen.train)
        )

    def _extend(self, source_head: Any) -> None:
        """Parameters of the terms, the anchor, and the weights of examples."""
        config = self.config
        width = self.stats["heads"][HEAD]["mean"].size
        self.terms = make_terms(config, self.chosen, self.head, width)
        if self.teacher is not None:
            self.terms += distillation(config, width, self.teacher.width, HEAD)
            self.stats["teacher"] = self.teacher.kept()
        self.params |= own_params(self.terms)
        if config.anchors:
            kept = anchors.make_anchors(config, self.source, source_head)
            self.stats["anchors"] = kept
        if config.density_ratio != "none":
            self.stats["examples"] = {"weight": jnp.ones(len(self.chosen.train))}
        if config.label_shift != "none":
            # Raises before the first step what would else be found after the last.
            shift.source_frequencies(self.chosen)

    def _batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        size = self.config.batch_size // self.config.accumulate
        images = jax.ShapeDtypeStruct((size, *self.chosen.train.shape), jnp.uint8)
        number = jax.ShapeDtypeStruct((size,), jnp.int32)
        shapes = {"image": images, "index": number, "label": number}
        for stream in stream_names(self.config)[1:]:
            shapes |= {f"{stream}/image": images, f"{stream}/index": number}
        return shapes

    def run(self) -> FinetuneResult:
        config, run = self.config, self.folder
        store = Store(
            run.path,
            keep_last=config.keep_last,
            keep_best=config.keep_best,
            best=self.rule.direction,
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
        self._prepare()
        return self._fresh()

    def _prepare(self) -> None:
        """What terms need of whole data sets before the first step."""
        config, kept = self.config, self.stats.get("anchors")
        if kept is not None and "heads" in kept["params"]:
            # The source's head goes on from where it was, on its own features.
            name = anchors.SOURCE_HEAD
            for tree, part in ((self.params, "params"), (self.stats, "stats")):
                tree["heads"][name] = jax.tree.map(jnp.copy, kept[part]["heads"][name])
        if config.l2_sp_fisher:
            assert kept is not None
            kept["fisher"] = anchors.measure_fisher(
                self.classifier, kept, self.chosen.train
            )
        if config.density_ratio != "none":
            assert self.target is not None
            weights = shift.example_weights(
                config,
                self.scorer,
                (self.params, self.stats),
                self.chosen.train,
                self.target.images,
            )
            self._say(shift.describe_weights(config, weights))
            self.stats["examples"] = {"weight": jnp.asarray(weights, jnp.float32)}

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
            best=self.rule.metric,
        )
        extra = {}
        if self.target is not None and config.align:
            extra[streams.TARGET] = self.target.images
        feed = Feed(self.chosen.train, options=config, mesh=self.mesh, streams=extra)
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
        """Validation measures; without validation, those of the training images. With
        a target domain, what its predictions say without labels."""
        params, stats, _ = self._weights(state)
        images, prefix = self.chosen.validation, ""
        if images is None:
            images, prefix = spaced(self.chosen.train, _MOST_TRAIN_SCORED), "train_"
        logits = self.scorer.logits(params, stats, images, stop.check)
        assert images.labels is not None
        found = measures(logits, images.labels)
        found = {prefix + name: value for name, value in found.items()}
        if self.target is not None:
            some = spaced(self.target.images, _MOST_TRAIN_SCORED)
            found |= label_free(self.scorer.logits(params, stats, some, stop.check))
        if self.rule.metric == ORACLE:
            assert self.target is not None
            assert self.target.oracle is not None
            some = spaced(self.target.oracle, _MOST_TRAIN_SCORED)
            logits = self.scorer.logits(params, stats, some, stop.check)
            assert some.labels is not None
            found[ORACLE] = measures(logits, some.labels)["accuracy"]
        return found

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
        if self.rule.metric is None:
            return self._weights(state)
        best = next((row for row in list_steps(self.folder.path) if row.best), None)
        if best is None or best.step == int(state["step"]):
            return self._weights(state)
        step, tree, _ = store.restore(step=best.step)
        averaged = flatten(tree["params"]) | flatten(tree.get("ema", {}))
        stats = {"encoder": {}, "heads": {}, **tree["stats"]}
        return unflatten(averaged), stats, step

    def _finish(self, state: State, store: Store) -> FinetuneResult:
        params, stats, step = self._selected(state, store)
        results = self._results(step)
        if self.config.label_shift != "none":
            assert self.target is not None
            params, results["label_shift"] = shift.correct_labels(
                self.config, self.scorer, (params, stats), self.chosen, self.target
            )
        scored = {"validation": self.chosen.validation, "test": self.chosen.test}
        if self.target is not None:
            scored = {**scored, "test": self.target.test, "source": self.chosen.test}
        names, seed = self.chosen.class_names, self.config.seed
        results |= reports(self.scorer, (params, stats), scored, names, seed=seed)
        scored_on = self.chosen.test or self.chosen.validation
        if self.teacher is not None and scored_on is not None:
            results["distillation"] = compare(
                self.teacher, self.scorer, self.sweep, (params, stats), scored_on
            )
        run = self.folder
        if run.first:
            entry = {HEAD: head_entry(self.head, names)}
            write_artefacts(run.path, params, stats, self._manifest(step), entry)
            run.metrics.flush()
            description = describe(self.stage, self.params)
            write_run_report(run, self.config, results, description=description)
            # Last: its presence says that the run is complete.
            write_json(run.path / "results.json", results)
        return FinetuneResult.of(run, complete=False, results=results)

    def _results(self, step: int) -> dict[str, Any]:
        """results.json without the scores."""
        config = self.config
        found: dict[str, Any] = {
            "mode": config.mode,
            "from": self.source.describe(),
            "seed": config.seed,
            "training_images": len(self.chosen.train),
            "classes": list(self.chosen.class_names),
            "steps": self.total,
            "selection": {"rule": self.rule.text, "step": step},
            "runtime": runtime.fingerprint(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }
        if self.target is not None:
            found["target"] = self.target.name
        return found

    def _introduce(self, began: int) -> None:
        chosen = self.chosen
        scored = chosen.test if self.target is None else self.target.test
        test = f"{len(scored):,} test images" if scored else "no test images"
        lines = [
            f"{chosen.train.name}: {len(chosen.train):,} labelled training images of "
            f"{len(chosen.class_names)} classes, {test}",
            f"step chosen by: {self.rule.text}",
            describe(self.stage, self.params),
        ]
        if self.target is not None:
            count = len(self.target.images)
            lines.insert(1, f"target {self.target.name}: {count:,} unlabelled images")
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


def _identity(images: ImageSet, target: Target | None) -> tuple[str, str]:
    """(name, fingerprint) of all images of a run."""
    if target is None:
        return images.name, images.fingerprint
    both = f"{images.fingerprint} {target.fingerprint}".encode()
    return f"{images.name} with {target.name}", hashlib.sha256(both).hexdigest()
