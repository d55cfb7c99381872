"""A run from resuming or beginning to its results, whatever is learned in it."""

from collections.abc import Mapping
from typing import Any

from afterimage.checkpoints.store import Store
from afterimage.data import counted
from afterimage.finetune import results, streams
from afterimage.finetune.beginning import begin
from afterimage.finetune.methods import stream_names
from afterimage.finetune.parts import Parts
from afterimage.finetune.summary import FinetuneResult, missing
from afterimage.runs import Run
from afterimage.training.batches import BatchLoader
from afterimage.training.job import Job, Say
from afterimage.training.signals import StopSignal
from afterimage.training.stage import describe
from afterimage.training.state import State


class Program(Job[FinetuneResult]):
    """One run of classification, as the one trainer wants it."""

    def __init__(self, parts: Parts, folder: Run):
        self.parts, self.folder = parts, folder
        self.config, self.trainer = parts.config, parts.trainer
        self.best, self.direction = parts.rule.metric, parts.rule.direction

    def template(self) -> State:
        return self.parts.fresh(self.parts.params, self.parts.stats)

    def lost(self) -> tuple[str, ...] | None:
        return missing(self.folder)

    def result(self, *, complete: bool) -> FinetuneResult:
        return FinetuneResult.of(self.folder, complete=complete)

    def begin(self, say: Say, stop: StopSignal) -> State:
        return begin(self.parts, self.folder, say)

    def feed(self, phase: int) -> BatchLoader:
        del phase
        parts, extra = self.parts, {}
        if streams.TARGET in stream_names(parts.config):
            assert parts.target is not None
            extra[streams.TARGET] = parts.target.images
        if parts.opened.unlabelled is not None:
            extra[streams.UNLABELLED] = parts.opened.unlabelled
        images, options = parts.chosen.train, parts.config
        times = {streams.UNLABELLED: options.unlabelled_ratio}
        return BatchLoader(
            images, options=options, mesh=parts.mesh, streams=extra, times=times
        )

    def evaluate(
        self, state: State, step: int, stop: StopSignal
    ) -> Mapping[str, float]:
        del step
        return results.evaluate(self.parts, state, stop.check)

    def encoder(self, state: State) -> tuple[Any, Any, dict[str, Any]]:
        return self.parts.encoder(state)

    def finish(self, state: State, store: Store) -> FinetuneResult:
        return results.finish(self.parts, self.folder, state, store)

    def introduction(self) -> str:
        chosen, target = self.parts.chosen, self.parts.target
        scored = chosen.test if target is None else target.test
        test = f"{len(scored):,} test images" if scored else "no test images"
        lines = [
            f"{chosen.train.name}: {len(chosen.train):,} labelled training images of "
            f"{len(chosen.class_names)} classes, {test}",
            f"classes: {counted(chosen.train)}",
            f"step chosen by: {self.parts.rule.text}",
            describe(self.parts.stage, self.parts.params),
        ]
        if target is not None:
            count = len(target.images)
            lines.insert(1, f"target {target.name}: {count:,} unlabelled images")
        more = self.parts.opened.unlabelled
        if more is not None:
            lines.insert(1, f"unlabelled {more.name}: {len(more):,} images")
        trained = self.parts.opened.source.manifest.get("trained") or {}
        if trained.get("steps", 0) < trained.get("of", 0):
            lines.append(
                f"from {self.parts.config.from_}: the encoder after step "
                f"{trained['steps']:,} of {trained['of']:,}; that run is not finished"
            )
        return "\n".join(lines)
