"""The fine-tuning program: an encoder and labels in, a classifier and figures out."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from afterimage import runtime
from afterimage.checkpoints.store import Store
from afterimage.data import ImageSet
from afterimage.evaluation.classification import measures
from afterimage.evaluation.nearest import Reference
from afterimage.finetune.classifier import head_entry, write_artefacts
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.data import known_labels, of_head, open_all, rows_of_head
from afterimage.finetune.examples import Scored, examples
from afterimage.finetune.method import Model, Stream
from afterimage.finetune.report import (
    FinetuneResult,
    domain_picture,
    missing,
    outline,
    write_page,
    write_results,
)
from afterimage.finetune.scoring import reports
from afterimage.finetune.selection import (
    MIXVAL,
    NEIGHBOURS,
    ORACLE,
    WEIGHTED,
    Rule,
    choose_rule,
    label_free,
    mixed_agreement,
    neighbour_information,
)
from afterimage.finetune.setup import RunSetup, begin, build, make_stage
from afterimage.models.classifier import HEAD
from afterimage.outputs import Outputs
from afterimage.outputs.classes import Classes
from afterimage.runs import Run
from afterimage.training.batches import BatchLoader, subsample
from afterimage.training.job import Job, Say, Trainer, best_saved, execute
from afterimage.training.loop import NO_CALLBACKS, Callbacks, StopSignal
from afterimage.training.sharding import whole
from afterimage.training.stage import Stage, describe
from afterimage.training.step import State, averaged_params, averaged_stats

_MOST_SCORED = 2_000
_MOST_KEPT = 1_000
"""Training images whose features are kept with the classifier, 2 bytes a number."""
_FEWEST_USUAL = 50
"""Validation images from which the distances of usual images are measured."""
Logits = Callable[..., Any]
"""logits(images, head=HEAD) -> [n, classes]"""


def finetune(
    config: FinetuneConfig,
    *,
    data: Any = None,
    target: Any = None,
    callbacks: Callbacks = NO_CALLBACKS,
) -> FinetuneResult:
    """Fine-tune as `config` says, or continue the run in its folder.

    Resumes from the latest checkpoint, if there is one; otherwise starts from the
    encoder `from_` or, in mode scratch, from random weights of its architecture. If the
    run is already complete, its result is returned.

    Args:
      data, target: data objects that replace `config.data` and `config.target`.
      callbacks: functions to call during the run.

    Raises:
      UserError, DataError: invalid settings or data, or another run's folder.
      CheckpointError: the encoder or every checkpoint of the run is damaged.
      TransferError: parameters do not fit.
      RunLocked: another process writes to this folder.
      Diverged, Interrupted: as in the training loop; progress is saved.
    """
    runtime.enable_compile_cache()
    run = Run(config.out, kind="finetune", config=config)
    run.check_settings()
    opened = open_all(config, data, target)
    with run:
        opened.record(run)
        job = config.task.job(config, opened, run)
        if job is None:
            setup = build(config, opened)
            rule = choose_rule(config, opened)
            job = FinetuneJob(setup, make_stage(setup), rule, run)
        return execute(job, run, callbacks)


class FinetuneJob(Job[FinetuneResult]):
    """A classification run, as a job for the trainer; other tasks override parts."""

    scored: Scored | None = None
    """The images that the finished classifier was scored on, with its logits."""

    def __init__(self, setup: RunSetup, stage: Stage, rule: Rule, run: Run):
        self.setup, self.rule, self.run = setup, rule, run
        self.config = setup.config
        self.best, self.direction = rule.metric, rule.direction
        images = len(setup.data.labels.train)
        self.trainer = Trainer(stage, setup.params, mesh=setup.mesh, images=images)

    def template(self) -> State:
        return self._fresh((self.setup.params, self.setup.stats))

    def _fresh(self, model: Model) -> State:
        """The state before the first step; leaves yet to be loaded are zeros."""
        params, stats = jax.tree.map(_array, model)
        seed, ema = self.config.seed, self.config.ema > 0
        return self.trainer.fresh(params, stats, seed=seed, ema=ema)

    def lost(self) -> tuple[str, ...] | None:
        return missing(self.run)

    def result(self, *, complete: bool) -> FinetuneResult:
        return FinetuneResult.of(self.run, complete=complete)

    def begin(self, say: Say, stop: StopSignal) -> State:
        return self._fresh(begin(self.setup, self.run, say))

    def feed(self, phase: int) -> BatchLoader:
        data = self.setup.data
        return BatchLoader(
            Stream(data.labels.train).rows(self.config),
            options=self.config,
            mesh=self.setup.mesh,
            streams={n: stream.rows(self.config) for n, stream in data.streams.items()},
            times={name: stream.ratio for name, stream in data.streams.items()},
        )

    def weights(self, state: State) -> tuple[Any, Any, int]:
        """(params, stats, step) of a state; the running means if they are kept."""
        step = int(state["step"])
        partition = self.trainer.partition(step)
        return averaged_params(state, partition), averaged_stats(state), step

    def encoder(self, state: State) -> tuple[Any, Any, dict[str, Any]]:
        params, stats, step = self.weights(state)
        manifest = {**self.setup.manifest(step), "heads": self._heads()}
        return params["encoder"], stats["encoder"], manifest

    def class_names(self) -> Mapping[str, Sequence[str]]:
        """{head: the names of its classes}."""
        return self.setup.data.labels.head_names(self.config.columns)

    @functools.cached_property
    def outputs(self) -> Mapping[str, Outputs]:
        """{head: what it predicts}."""
        found: dict[str, Outputs] = {
            head: Classes(names=tuple(names))
            for head, names in self.class_names().items()
        }
        if self.config.task.reading is not None:
            found[HEAD] = self.setup.outputs
        return found

    def _heads(self) -> dict[str, Any]:
        """The heads in a manifest."""
        return {
            name: head_entry(head, self.class_names()[name], self.outputs[name])
            for name, head in self.setup.heads.items()
        }

    def introduction(self) -> str:
        labels, target = self.setup.data.labels, self.setup.data.target
        scored = labels.test if target is None else target.test
        test = f"{len(scored):,} test images" if scored else "no test images"
        what, each = self.config.task.describe(labels.train)
        lines = [
            f"{labels.train.name}: {len(labels.train):,} labelled training images of "
            f"{what}, {test}"
        ]
        for name, stream in self.setup.data.streams.items():
            if name != "target":
                more = stream.images
                lines.append(f"{name} {more.name}: {len(more):,} images")
        if target is not None:
            count = len(target.images)
            lines.append(f"target {target.name}: {count:,} unlabelled images")
        lines += [
            each,
            *([f"tested on {labels.held_out}"] if labels.held_out else []),
            f"step chosen by: {self.rule.text}",
            self.describe(),
        ]
        trained = self.setup.data.source.manifest.get("trained") or {}
        if trained.get("steps", 0) < trained.get("of", 0):
            lines.append(
                f"from {self.config.from_}: the encoder after step "
                f"{trained['steps']:,} of {trained['of']:,}, as that run is not "
                "finished"
            )
        return "\n".join(lines)

    def describe(self) -> str:
        """What each phase trains and freezes."""
        return describe(self.trainer.stage, self.setup.params)

    def report(self, step: int) -> None:
        """Writes report.html of an unfinished run."""
        if self.run.is_main_process:
            results = outline(self.setup, self.rule, step)
            results |= {"validation": None, "test": None}
            description = self.describe()
            write_page(self.run, self.setup, results, description, done=step)

    # Evaluation.

    @functools.cached_property
    def _target_images(self) -> ImageSet:
        """The target's images whose predictions are used to choose a step."""
        return subsample(self.setup.data.target_images, _MOST_SCORED)

    @functools.cached_property
    def _neighbours(self) -> Any:
        """The rows of each image's neighbours in the pretrained features."""
        # Imported here: other runs do not need scikit-learn's search.
        from afterimage.finetune.neighbours import nearest_images

        source = self.setup.data.source
        return nearest_images(source.encoder, self._target_images, self.setup.runner)

    def _logits(self, model: Model, poll: Callable[[], None] = lambda: None) -> Logits:
        def logits(images: ImageSet, head: str = HEAD) -> Any:
            return self.setup.scorers[head].logits(*model, images, poll)

        return logits

    def evaluate(
        self, state: State, step: int, stop: StopSignal
    ) -> Mapping[str, float]:
        """Validation measures; without validation, those of the training images.

        With a target domain, also the label-free measures of its predictions. With
        several tasks, each one's (NAME_accuracy) and their mean (mean_accuracy).
        """
        setup, labels = self.setup, self.setup.data.labels
        params, stats, _ = self.weights(state)
        logits = self._logits((params, stats), stop.check)
        images, prefix = labels.validation, ""
        if images is None:
            images, prefix = subsample(labels.train, _MOST_SCORED), "train_"
        weights = stats.get("examples", {}).get("validation")
        found, each = {}, []
        for head in setup.heads:
            some = of_head(images, head)
            if some is not None:
                scores = logits(some, head)
                each.append(self.outputs[head].measures(scores, known_labels(some)))
                if weights is not None:
                    rows = rows_of_head(images, head)
                    each[-1] |= _weighted(scores, some, weights[rows])
                named = prefix if head == HEAD else f"{prefix}{head}_"
                found |= {named + name: value for name, value in each[-1].items()}
        if len(setup.heads) > 1:
            for name in each[0]:
                found[f"{prefix}mean_{name}"] = sum(m[name] for m in each) / len(each)
        target = setup.data.target
        if target is not None:
            found |= self._without_labels(logits, (self.config.select,))
            if self.rule.metric == ORACLE and target.oracle is not None:
                some = subsample(target.oracle, _MOST_SCORED)
                found[ORACLE] = measures(logits(some), known_labels(some))["accuracy"]
        for method in self.config.methods:
            found |= method.metrics(setup, (params, stats), logits)
        return found

    def _without_labels(
        self, logits: Logits, rules: tuple[str, ...]
    ) -> dict[str, float]:
        """Label-free measures on the target's images.

        Those that need only predictions are always computed, others only if in `rules`.
        """
        scores = logits(self._target_images)
        found = label_free(scores)
        if "mixval" in rules:
            found[MIXVAL] = mixed_agreement(self._target_images, scores, logits)
        if "neighbours" in rules:
            found[NEIGHBOURS] = neighbour_information(scores, self._neighbours)
        return found

    # The end.

    def finish(self, state: State, store: Store) -> FinetuneResult:
        """Scores the selected step; writes artefacts, report and results.json."""
        params, stats, step = self._selected(state, store)
        setup, labels = self.setup, self.setup.data.labels
        results = outline(setup, self.rule, step)
        for method in self.config.methods:
            params, more = method.correct(setup, (params, stats))
            results |= more
        model = params, stats
        logits = self._logits(model)
        weights = stats.get("examples", {}).get("validation")
        held = of_head(labels.validation, HEAD)
        if weights is not None and labels.validation is not None and held is not None:
            rows = rows_of_head(labels.validation, HEAD)
            results |= _weighted(logits(held), held, weights[rows])
        found = {head: self._reports(model, head) for head in setup.heads}
        results |= found.pop(HEAD)
        if found:
            results["tasks"] = found
        if setup.data.target is not None:
            rules = self.config.select, "mixval"
            results["label_free"] = self._without_labels(logits, rules)
        return self.write(model, step, results)

    def write(
        self,
        model: Model,
        step: int,
        results: dict[str, Any],
        **more: Any,
    ) -> FinetuneResult:
        """Writes artefacts, report and results.json.

        `more` is passed to `write_page`.
        """
        setup, run = self.setup, self.run
        model = whole(model)
        for method in self.config.methods:
            results |= method.results(setup, model)
        pictures, references = self._pictures(model), self._references(model)
        if run.is_main_process:
            manifest = setup.manifest(step)
            write_artefacts(run.path, *model, manifest, self._heads(), references)
            run.metrics.flush()
            parts = {}
            if self.scored is not None:
                parts = examples(
                    self.scored,
                    self.class_names()[HEAD],
                    run.path / "classifier",
                    trained=setup.steps * self.config.batch_size,
                )
            more |= {"pictures": pictures, "parts": parts}
            write_page(run, setup, results, self.describe(), **more)
            write_results(run, results)
        return FinetuneResult.of(run, complete=False, results=results)

    def _reports(self, model: Model, head: str) -> dict[str, Any]:
        """The reports of one head; with a target domain, `test` is the target's."""
        labels, target = self.setup.data.labels, self.setup.data.target
        sets = {"validation": labels.validation, "test": labels.test}
        if target is not None:
            sets |= {"test": target.test, "source": labels.test}
        images = {name: of_head(part, head) for name, part in sets.items()}
        scorer, kept = self.setup.scorers[head], {}
        seed, outputs = self.config.seed, self.outputs[head]
        found = reports(scorer, model, images, outputs, seed=seed, kept=kept)
        shown = next((name for name in ("test", "validation") if name in kept), None)
        part = images[shown] if shown else None
        if head == HEAD and shown and part is not None and outputs.reading is None:
            self.scored = Scored(part, kept[shown])
        return found

    def _references(self, model: Model) -> dict[str, Reference]:
        """{head: features of some of its training images}; see `Reference`."""
        labels, found = self.setup.data.labels, {}
        for head, scorer in self.setup.scorers.items():
            train, held = of_head(labels.train, head), of_head(labels.validation, head)
            if train is None or len(train) < 2:
                continue
            some = scorer.features(*model, subsample(train, _MOST_KEPT))
            enough = held is not None and len(held) >= _FEWEST_USUAL
            usual = None
            if held is not None and enough:
                usual = scorer.features(*model, subsample(held, _MOST_KEPT))
            found[head] = Reference.measure(some, usual)
        return found

    def _pictures(self, model: Model) -> dict[str, Any]:
        """{heading: (caption, PNG)} for the report."""
        folder = self.run.path / "pictures" if self.run.is_main_process else None
        setup, found = self.setup, domain_picture(self.setup, model, folder)
        for method in self.config.methods:
            found |= method.pictures(setup, model, folder)
        return found

    def _selected(self, state: State, store: Store) -> tuple[Any, Any, int]:
        """(params, stats, step) of the step that the rule chooses."""
        if self.rule.metric is None:
            return self.weights(state)
        saved = best_saved(self.run, store, int(state["step"]))
        if saved is None:
            return self.weights(state)
        params, stats, step = saved
        return params, {"encoder": {}, "heads": {}, **stats}, step


def _weighted(scores: Any, images: ImageSet, weights: Any) -> dict[str, float]:
    """The measures weighted by density ratios: estimates of the target's measures."""
    found = measures(scores, known_labels(images), np.asarray(weights, np.float64))
    return {WEIGHTED + name: value for name, value in found.items()}


def _array(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return np.zeros(leaf.shape, leaf.dtype)
    return leaf
