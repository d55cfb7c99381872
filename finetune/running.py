"""A run from resuming or beginning to its results, whatever is learned in it."""

from afterimage.checkpoints.store import Store
from afterimage.console import say
from afterimage.data import counted
from afterimage.finetune import results, streams
from afterimage.finetune.beginning import begin
from afterimage.finetune.methods import stream_names
from afterimage.finetune.parts import Parts
from afterimage.finetune.stage import describe
from afterimage.finetune.summary import FinetuneResult, missing
from afterimage.runs import Run
from afterimage.training.feed import Feed
from afterimage.training.loop import Fit
from afterimage.training.signals import StopSignal
from afterimage.training.state import State


class Program:
    """One run, from resuming or beginning to its results."""

    def __init__(self, parts: Parts, folder: Run):
        self.parts, self.folder = parts, folder

    def run(self) -> FinetuneResult:
        config, parts, run = self.parts.config, self.parts, self.folder
        store = Store(
            run.path,
            keep_last=config.keep_last,
            keep_best=config.keep_best,
            best=parts.rule.direction,
            warn=self._say,
        )
        with store:
            state = parts.trainer.resume(
                store, lambda: parts.fresh(parts.params, parts.stats)
            )
            began = 0 if state is None else int(state["step"])
            run.metrics.start(began)
            for note in run.notes:
                self._say(note)
            if began >= parts.total and self._whole():
                self._say(
                    f"{run.path} is complete: {parts.total} of {parts.total} steps. "
                    "For another run, name a new --out"
                )
                return FinetuneResult.of(run, complete=True)
            self._introduce(began)
            with StopSignal() as stop:
                if state is None:
                    state = begin(parts, run, self._say)
                    self.begun(state, stop)
                state = self._train(state, store, stop)
                return self.finish(state, store)

    def _whole(self) -> bool:
        """Whether all final files of the run are there; prints those that are not."""
        lost = missing(self.folder)
        if lost:
            self._say(f"Recreated from the checkpoint: {', '.join(lost)}")
        return lost is None

    def _train(self, state: State, store: Store, stop: StopSignal) -> State:
        config, parts = self.parts.config, self.parts
        plan = Fit(
            run=self.folder,
            store=store,
            training=config,
            options=config,
            total=parts.total,
            evaluate=self.evaluate,
            artefact=parts.encoder,
            best=parts.rule.metric,
        )
        try:
            state = parts.trainer.train(
                state, plan, self.feed, stop, between=self.between
            )
        finally:
            plan.progress.close()
        store.wait()
        return state

    def begun(self, state: State, stop: StopSignal) -> None:
        """What a fresh run does before its first step."""

    def feed(self, index: int) -> Feed:
        """The batches of phase `index`."""
        parts, extra = self.parts, {}
        if streams.TARGET in stream_names(parts.config):
            assert parts.target is not None
            extra[streams.TARGET] = parts.target.images
        if parts.opened.unlabelled is not None:
            extra[streams.UNLABELLED] = parts.opened.unlabelled
        images, options = parts.chosen.train, parts.config
        times = {streams.UNLABELLED: options.unlabelled_ratio}
        return Feed(
            images, options=options, mesh=parts.mesh, streams=extra, times=times
        )

    def between(self, state: State, index: int) -> State:
        """The state after phase `index`, with what later phases need of it."""
        return state

    def evaluate(self, state: State, step: int, stop: StopSignal) -> dict[str, float]:
        """The metrics of one evaluation; calls stop.check() between batches."""
        return results.evaluate(self.parts, state, stop.check)

    def finish(self, state: State, store: Store) -> FinetuneResult:
        """Scores, artefacts, report and results.json of a run that is done."""
        return results.finish(self.parts, self.folder, state, store)

    def _introduce(self, began: int) -> None:
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
        if began:
            lines.append(f"Continuing after step {began:,}")
        self._say("\n".join(lines))

    def _say(self, text: str) -> None:
        if self.folder.first:
            say(text)
