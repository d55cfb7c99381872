"""A stage of your own: rows in; an artefact, results.json and report.html out.

A subclass of `OwnStage` sets the parameters before the first step and its sets of
rows, and calls `ready` with its phases. Its methods give what the terms read, the
scores of weights, and what is kept. All else is here: resume, running means, the best
step, the files, the page. The packages in `modalities/` are made of it.
"""

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from afterimage import runtime
from afterimage.checkpoints import files, schemas
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.weights import write_encoder
from afterimage.report import logged, write_report
from afterimage.runs import Run, write_json
from afterimage.training.batches import (
    BatchLoader,
    EvaluationRunner,
    check_batch,
    make_mesh,
)
from afterimage.training.job import Job, Say, Trainer, best_saved
from afterimage.training.loop import StopSignal
from afterimage.training.sharding import whole
from afterimage.training.stage import Phase, Stage, describe
from afterimage.training.step import State, averaged_params, averaged_stats

RESULTS, PAGE = "results.json", "report.html"


def _nothing() -> None:
    """Between batches."""


@dataclasses.dataclass(frozen=True)
class StageResult:
    """A finished run of a stage."""

    run: pathlib.Path
    """The run folder; of a run in a bucket, its copy on this machine."""
    results: Mapping[str, Any]
    """results.json: `step`, the one that was kept, of `steps`, and the scores."""
    complete: bool
    """True if the run was already complete, so that nothing was trained."""
    text: str
    """A few lines for a terminal."""


def open_run(config: Any, kind: str) -> Run:
    """The run folder of a stage, for `with`: checked, but not locked or written to.

    `config` has the fields of TrainingOptions and RunOptions. Call it before reading
    the data, which can take long. Raises UserError for a batch that cannot be divided
    over the devices, and for another run's folder.
    """
    runtime.enable_compile_cache()
    check_batch(config.batch_size, config.accumulate, make_mesh(config.devices))
    run = Run(config.out, kind=kind, config=config)
    run.check_settings()
    return run


class OwnStage(Job[StageResult]):
    """A stage whose steps all read one set of rows; `execute` runs it.

    `best` and `direction` name the metric of `evaluate` that chooses the step to keep.
    Without `best`, or without validation rows, the last step is kept.
    """

    artefact: ClassVar[str]
    """The kind of what the run makes, and the name of its folder in the run."""
    lead: str
    """What the run makes, in a sentence for the page."""
    chosen_by: ClassVar[str] = ""
    """What `best` is, in words."""
    params: Any
    """Parameters before the first step: arrays, or shapes of what `begin` gives …"""
    stats: Any
    """… and what goes with them, without learning; {} unless set."""
    sets: Mapping[str, Any]
    """Rows by split: `train`, those of every step; `validation` and `test`, if any."""
    title: str
    """The title of the page."""

    def __init__(
        self,
        config: Any,
        run: Run,
        name: str,
        fingerprint: str,
        origin: Mapping[str, Any] | None = None,
    ):
        """`name` and `fingerprint` are those of all data that the run depends on.

        `origin` has the `path` and `checksum` of weights that it begins from. Raises
        UserError if the run began with others.
        """
        run.check_data(name, fingerprint, origin=origin)
        self.config, self.run, self.stats = config, run, {}
        self.identity = {"name": name, "fingerprint": fingerprint}
        self.mesh = make_mesh(config.devices)
        self.runner = EvaluationRunner(
            self.mesh, config.batch_size // config.accumulate
        )

    def ready(self, *phases: Phase) -> None:
        """Checks the phases from shapes alone, and makes the trainer.

        `params`, `stats` and `sets` are set before.

        Raises one UserError that lists all that cannot work.
        """
        if "validation" not in self.sets:
            self.best = None
        stage = Stage(phases=phases, providers=self.rules)
        size = self.config.batch_size // self.config.accumulate
        one = np.zeros(1, np.int64)
        batch = {
            name: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype)
            for name, array in (
                self.train.inputs(one) | self.train.targets(one)
            ).items()
        }
        stage.check(self.params, self.stats, batch)
        images = len(self.train)
        self.trainer = Trainer(stage, self.params, mesh=self.mesh, images=images)

    # What a subclass gives.

    @abc.abstractmethod
    def rules(
        self, params: Any, stats: Any, batch: Any, key: Any, step: Any, trainable: Any
    ) -> Mapping[str, Any]:
        """What the terms read, as `afterimage.training.stage.Providers` says."""

    def score(
        self, weights: tuple[Any, Any], rows: Any, poll: Callable[[], None] = _nothing
    ) -> dict[str, Any]:
        """How well (params, stats) do on some of `sets`; calls `poll` between batches.

        Every process calls it.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def facts(self) -> dict[str, str]:
        """What the run is about, for the terminal and the page."""

    @abc.abstractmethod
    def lines(self, results: Mapping[str, Any]) -> list[str]:
        """results.json in a few lines for a terminal."""

    def content(self) -> dict[str, Any]:
        """What the artefact's manifest says, besides its data and how it was made."""
        return {}

    def kept(self, params: Any, stats: Any) -> tuple[Any, Any]:
        """What of the weights is in the artefact: by default all."""
        return params, stats

    def scores(self, params: Any, stats: Any) -> dict[str, Any]:
        """What results.json says of the kept weights: by default the `score` of the
        validation and test rows, None where there are none."""
        return {
            name: self.score((params, stats), self.sets[name])
            if name in self.sets
            else None
            for name in ("validation", "test")
        }

    def evaluate(
        self, state: State, step: int, stop: StopSignal
    ) -> Mapping[str, float]:
        """By default the numbers of `score` on the rows of `followed_set`."""
        found = self.score(self.weights(state), self.followed_set(), stop.check)
        return {self.prefix + k: v for k, v in found.items() if isinstance(v, float)}

    def curves(self) -> dict[str, dict[str, str]]:
        """{title: {line: key in metrics.jsonl}} of the page."""
        return {"Loss": {"training": "train/loss"}}

    def shown(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `afterimage.report.write_report` about the results.

        The artefact is already in the run folder.
        """
        del results
        return {}

    # What every stage does.

    @property
    def train(self) -> Any:
        """The rows of every step."""
        return self.sets["train"]

    def counts(self) -> str:
        """How many rows each set has, for `facts`."""
        return " + ".join(f"{len(rows):,} {name}" for name, rows in self.sets.items())

    def scored_set(self) -> tuple[str, Any]:
        """(its name, its rows): the set whose scores are shown first."""
        name = next(n for n in ("test", "validation", "train") if n in self.sets)
        return name, self.sets[name]

    def followed_set(self) -> Any:
        """The rows that `evaluate` measures: validation, or without any training."""
        return self.sets.get("validation", self.train)

    @property
    def prefix(self) -> str:
        """Before the names of metrics: `train_` where training rows are followed."""
        return "" if "validation" in self.sets else "train_"

    def fresh(self, params: Any, stats: Any) -> State:
        """The state before the first step, on the devices."""
        seed, ema = self.config.seed, self.config.ema > 0
        return self.trainer.fresh(params, stats, seed=seed, ema=ema)

    def template(self) -> State:
        return self.fresh(*jax.tree.map(_array, (self.params, self.stats)))

    def begin(self, say: Say, stop: StopSignal) -> State:
        return self.fresh(self.params, self.stats)

    def feed(self, phase: int) -> BatchLoader:
        del phase
        return BatchLoader(self.train, options=self.config, mesh=self.mesh)

    def weights(self, state: State) -> tuple[Any, Any]:
        """(params, stats) of a state; the running means if they are kept."""
        partition = self.trainer.partition(int(state["step"]))
        return averaged_params(state, partition), averaged_stats(state)

    def introduction(self) -> str:
        lines = [f"{name}: {text}" for name, text in self.facts().items()]
        return "\n".join([*lines, describe(self.trainer.stage, self.params)])

    def trained(self, step: int) -> dict[str, Any]:
        """How the weights of a step were made, for manifests."""
        return {
            "stage": self.run.kind,
            "mode": getattr(self.config, "mode", None),
            "steps": step,
            "of": self.trainer.stage.steps,
            "labels": len(self.train),
            "seed": self.config.seed,
            "from": getattr(self.config, "from_", None),
        }

    def places(self) -> Sequence[str]:
        """The folders of artefacts in the finished run."""
        return (self.artefact,)

    def write(self, params: Any, stats: Any, step: int) -> None:
        """Writes the artefacts, on the first process."""
        content = {"data": self.identity, "trained": self.trained(step)}
        params, stats = self.kept(params, stats)
        place = self.run.path / self.artefact
        content |= self.content()
        write_encoder(place, params, stats, content, kind=self.artefact)

    def finish(self, state: State, store: Store) -> StageResult:
        (params, stats), step = self.weights(state), int(state["step"])
        saved = best_saved(self.run, store, step) if self.best else None
        if saved is not None:
            params, _, step = saved
            stats = {**stats, **saved[1]}  # empty parts are not in a checkpoint
        found = self.scores(params, stats)
        params, stats = whole((params, stats))
        if self.run.is_main_process:
            self.write(params, stats, step)
            steps = self.trainer.stage.steps
            results = {"step": step, "steps": steps, **found}
            self.page(step, results)
            # Last: its presence means that all is there.
            write_json(self.run.path / RESULTS, results)
        return self.result(complete=False)

    def lost(self) -> tuple[str, ...] | None:
        lost = self.run.missing(self.places(), [PAGE, RESULTS])
        if lost is None and not self.run.in_main(self._is_readable):
            return (RESULTS,)
        return lost

    def _results(self) -> dict[str, Any]:
        return schemas.parse(files.read_bytes(self.run.path / RESULTS, schemas.MOST))

    def _is_readable(self) -> bool:
        try:
            self._said(self._results())
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return True

    def result(self, *, complete: bool) -> StageResult:
        results = self.run.in_main(self._results)
        return StageResult(self.run.path, results, complete, self._said(results))

    def _said(self, results: Mapping[str, Any]) -> str:
        where = self.run.where.rstrip("/")
        places = {name: name for name in self.places()} | {"report": PAGE}
        width = max(map(len, places))
        lines = [
            *self.lines(results),
            f"step {results['step']:,} of {results['steps']:,}",
            *(f"{name:{width}}  {where}/{place}" for name, place in places.items()),
        ]
        return "\n".join(lines)

    def report(self, step: int) -> None:
        if self.run.is_main_process:
            self.page(step)

    def page(self, step: int, results: Mapping[str, Any] | None = None) -> None:
        """Writes report.html: of `results` of a step, or of a run at this step."""
        run, stage = self.run, self.trainer.stage
        run.metrics.flush()
        run.keep_time()
        rows = run.metrics.rows
        curves = {
            title: {line: logged(rows, key) for line, key in lines.items()}
            for title, lines in self.curves().items()
        }
        curves["Learning rate"] = {"learning rate": logged(rows, "train/lr")}
        facts, more = {"Run": run.where, **self.facts()}, {}
        if results is not None:
            more = self.shown(results)
            chosen = f", chosen by {self.chosen_by}" if self.best else ""
            facts["Step"] = f"{step:,} of {stage.steps:,}{chosen}"
        write_report(
            run.path / PAGE,
            title=self.title,
            lead=self.lead,
            facts=facts | run.sessions.facts(),
            command=next(iter(run.sessions.commands), ""),
            curves=curves,
            settings=run.settings,
            tables={"Machine": runtime.fingerprint()},
            unfinished=(step, stage.steps) if results is None else None,
            **more,
        )


def _array(leaf: Any) -> Any:
    """Zeros for a shape."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return np.zeros(leaf.shape, leaf.dtype)
    return leaf
