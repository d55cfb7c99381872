"""What both stages share: the start, the state, the artefact, the page."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from afterimage import runtime
from afterimage.checkpoints.errors import readable_size
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.weights import write_encoder
from afterimage.data.sets import Columns
from afterimage.report import logged, write_report
from afterimage.runs import Run
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
from afterimage.training.step import State, averaged_params
from afterimage_volumes.config import VolumeOptions
from afterimage_volumes.files import Geometry
from afterimage_volumes.network import DEPTHS, Encoder, VolumeModel, network
from afterimage_volumes.volumes import Found


def opened(config: VolumeOptions, kind: str) -> Run:
    """The run folder, checked but not locked."""
    runtime.enable_compile_cache()
    check_batch(config.batch_size, config.accumulate, make_mesh(config.devices))
    run = Run(config.out, kind=kind, config=config)
    run.check_settings()
    return run


@dataclasses.dataclass(frozen=True)
class VolumeResult:
    """A finished run on volumes."""

    run: pathlib.Path
    results: Mapping[str, Any]
    """results.json."""
    text: str
    """A few lines for a terminal."""


class VolumeJob(Job[VolumeResult]):
    """A stage on volumes; subclasses add parameters, phases, metrics and results."""

    best = "loss"
    kind: ClassVar[str]
    """Of the artefact."""
    params: Any
    stats: Any
    train: Columns

    def __init__(
        self,
        config: VolumeOptions,
        run: Run,
        found: Found,
        model: VolumeModel,
        geometry: Geometry,
    ):
        self.config, self.run, self.found = config, run, found
        self.model, self.geometry = model, geometry
        self.volumes = found.pixels(geometry)
        self.fingerprint = found.fingerprint(self.volumes)
        self.mesh = make_mesh(config.devices)
        self.runner = EvaluationRunner(
            self.mesh, config.batch_size // config.accumulate
        )
        self.encoder_network = network(
            Encoder, model, config.precision, remat=config.remat
        )

    def ready(self, phase: Phase) -> None:
        """Checks the phase, and makes the trainer."""
        stage, one = Stage(phases=(phase,), providers=self.rules), np.zeros(1, np.int64)
        batch = self.train.inputs(one) | self.train.targets(one)
        stage.check(self.params, self.stats, batch)
        self.trainer = Trainer(
            stage, self.params, mesh=self.mesh, images=len(self.train)
        )

    def rules(self, params, stats, batch, key, step, trainable) -> dict[str, Any]:
        """What the terms read."""
        raise NotImplementedError

    def begin(self, say: Say, stop: StopSignal) -> State:
        return self.template()

    def template(self) -> State:
        seed, ema = self.config.seed, self.config.ema > 0
        return self.trainer.fresh(self.params, self.stats, seed=seed, ema=ema)

    def lost(self) -> tuple[str, ...] | None:
        return self.run.missing([self.kind], ["report.html", "results.json"])

    def feed(self, phase: int) -> BatchLoader:
        return BatchLoader(self.train, options=self.config, mesh=self.mesh)

    def weights(self, state: State) -> Any:
        """The parameters of a state; the running means if they are kept."""
        return averaged_params(state, self.trainer.partition(int(state["step"])))

    def selected(self, state: State, store: Store) -> tuple[Any, int]:
        """(parameters, step): of the lowest validation loss, else the last."""
        now = int(state["step"])
        saved = best_saved(self.run, store, now) if self.best else None
        return (self.weights(state), now) if saved is None else (saved[0], saved[2])

    def introduction(self) -> str:
        found = self.found
        return (
            f"{found.name}: {len(found.ids):,} volumes of {self.geometry}, "
            f"{len(self.train):,} to train on\n"
            f"A step needs about {readable_size(self.step_bytes())} of memory\n"
            + describe(self.trainer.stage, self.params)
        )

    def step_bytes(self) -> int:
        """About what the activations of a step take, as the compiler counts them."""
        sites = [(self.geometry.size // 2**n) ** 3 for n in (1, 2, 3)]
        blocks = zip(sites, self.model.widths, DEPTHS)
        each = sum(s * width * (depth + 1) for s, width, depth in blocks)
        return 4 * 12 * self.config.batch_size // self.config.accumulate * each

    def write(self, params: Any, stats: Any, step: int, **more: Any) -> None:
        """Writes the artefact, last of all: its presence means a complete run."""
        content = {
            "width": self.model.width,
            "size": self.geometry.size,
            "spacing": float(self.geometry.spacing),
            "window": self.geometry.window,
            "data": {"name": self.found.name, "fingerprint": self.fingerprint},
            "trained": {
                "stage": self.run.kind,
                "step": step,
                "volumes": len(self.train),
                "seed": self.config.seed,
            },
            **more,
        }
        params = whole(params)
        if self.run.is_main_process:
            place = self.run.path / self.kind
            write_encoder(place, params, stats, content, kind=self.kind)

    def page(self, step: int | None, curve: str, **content: Any) -> None:
        """Writes report.html after `step` steps (None: all), with the curves of the
        loss and of another metric."""
        run = self.run
        if not run.is_main_process:
            return
        run.metrics.flush()
        run.keep_time()
        curves = {
            name: {
                "training": logged(run.metrics.rows, f"train/{key}"),
                "validation": logged(run.metrics.rows, f"eval/{key}"),
            }
            for name, key in {"Loss": "loss", curve.capitalize(): curve}.items()
        }
        write_report(
            run.path / "report.html",
            facts={
                "Run": run.where,
                "Volumes": f"{len(self.found.ids):,} of {self.geometry}",
                **run.sessions.facts(),
            },
            command=[*run.sessions.commands, ""][0],
            curves=curves,
            settings=run.settings,
            tables={"Machine": runtime.fingerprint()},
            unfinished=None if step is None else (step, self.trainer.stage.steps),
            **content,
        )
