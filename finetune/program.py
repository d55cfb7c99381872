"""The fine-tuning program: an encoder and labels in, a classifier and figures out."""

from afterimage import runtime
from afterimage.runs import Run
from afterimage.training.feed import Feed
from afterimage.training.loop import Fit
from afterimage.training.signals import StopSignal
from afterimage.training.state import State
from checkpoints.store import Store
from finetune import results, streams
from finetune.beginning import begin
from finetune.config import FinetuneConfig
from finetune.opening import open_all
from finetune.parts import Parts
from finetune.stage import describe
from finetune.summary import FinetuneResult


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
    opened = open_all(config)
    with Run(config.out, kind="finetune", config=config) as run:
        opened.record(run)
        return _Program(Parts(config, opened), run).run()


class _Program:
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
            complete = began >= parts.total and (run.path / "results.json").exists()
            run.metrics.start(began)
            for note in run.notes:
                self._say(note)
            if complete:
                self._say(
                    f"{run.path} is complete: {parts.total} of {parts.total} steps. "
                    "For another run, name a new --out"
                )
                return FinetuneResult.of(run, complete=True)
            self._introduce(began)
            state = begin(parts, run, self._say) if state is None else state
            with StopSignal() as stop:
                state = self._train(state, store, stop)
                return results.finish(parts, run, state, store)

    def _train(self, state: State, store: Store, stop: StopSignal) -> State:
        config, parts = self.parts.config, self.parts
        plan = Fit(
            run=self.folder,
            store=store,
            training=config,
            options=config,
            total=parts.total,
            evaluate=lambda state, _, stop: results.evaluate(parts, state, stop.check),
            artefact=parts.encoder,
            best=parts.rule.metric,
        )
        extra = {}
        if parts.target is not None and config.align:
            extra[streams.TARGET] = parts.target.images
        feed = Feed(parts.chosen.train, options=config, mesh=parts.mesh, streams=extra)
        try:
            state = parts.trainer.train(state, plan, feed, stop)
        finally:
            plan.progress.close()
        store.wait()
        return state

    def _introduce(self, began: int) -> None:
        chosen, target = self.parts.chosen, self.parts.target
        scored = chosen.test if target is None else target.test
        test = f"{len(scored):,} test images" if scored else "no test images"
        lines = [
            f"{chosen.train.name}: {len(chosen.train):,} labelled training images of "
            f"{len(chosen.class_names)} classes, {test}",
            f"step chosen by: {self.parts.rule.text}",
            describe(self.parts.stage, self.parts.params),
        ]
        if target is not None:
            count = len(target.images)
            lines.insert(1, f"target {target.name}: {count:,} unlabelled images")
        if began:
            lines.append(f"Continuing after step {began:,}")
        self._say("\n".join(lines))

    def _say(self, text: str) -> None:
        if self.folder.first:
            print(text, flush=True)
