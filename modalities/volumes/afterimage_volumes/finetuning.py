"""Classification of volumes: a probe, everything, or everything from scratch."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from afterimage.checkpoints import schemas
from afterimage.checkpoints.store import Store
from afterimage.data.sets import Columns
from afterimage.errors import DataError
from afterimage.finetune.figures import diagrams, figures
from afterimage.outputs.classes import Classes
from afterimage.runs import Run, write_json
from afterimage.training.job import execute
from afterimage.training.loop import NO_CALLBACKS, Callbacks, StopSignal
from afterimage.training.optimiser import EVERYTHING, Group
from afterimage.training.stage import Phase, Term
from afterimage.training.step import State
from afterimage_volumes.config import FinetuneConfig
from afterimage_volumes.job import VolumeJob, VolumeResult, opened
from afterimage_volumes.models import CLASSIFIER, VolumeEncoder, load_volume_encoder
from afterimage_volumes.network import Encoder, augment, fresh, scores, vectors
from afterimage_volumes.volumes import Found, find, split_rows

_EPOCHS = {"probe": 200.0, "full": 50.0, "scratch": 50.0}


def finetune(
    config: FinetuneConfig, *, callbacks: Callbacks = NO_CALLBACKS
) -> VolumeResult:
    """Train a classifier as `config` says, or continue the run in its folder.

    Raises:
      UserError, DataError: invalid settings or volumes, or another run's folder.
      CheckpointError: damaged weights or checkpoints; RunLocked: a folder in use.
      Diverged, Interrupted: as in the loop; the progress so far is saved.
    """
    run, start = opened(config, "volume-finetune"), load_volume_encoder(config.from_)
    found = find(config.data, labels=True)
    classes = sorted(set(found.labels or ()))
    if len(classes) < 2:
        raise DataError(
            f"{found.name}: every volume has the label {classes[0]!r}; expected at "
            "least 2 classes"
        )
    rows, tested = split_rows(
        found, classes, config.test, config.validation, config.seed
    )
    known = {(found.labels or ())[row] for row in rows["train"]}
    if unknown := sorted(set(classes) - known):
        raise DataError(
            f"{found.name}: no volume of {', '.join(map(repr, unknown[:10]))} to train "
            "on; add some, or change the column split, --test or --validation"
        )
    if not len(rows["test"]):
        raise DataError(f"{found.name}: no volume to test on; change the column split")
    with run:
        job = _Finetuning(config, run, found, start, rows, tested)
        checksum = start.manifest["checksum"]
        origin = {"path": start.where, "checksum": checksum}
        run.check_data(found.name, job.fingerprint, origin=origin)
        return execute(job, run, callbacks)


class _Finetuning(VolumeJob):
    kind = CLASSIFIER
    config: FinetuneConfig

    def __init__(
        self,
        config: FinetuneConfig,
        run: Run,
        found: Found,
        start: VolumeEncoder,
        rows: Mapping[str, np.ndarray],
        tested: str,
    ):
        super().__init__(config, run, found, start.model, start.geometry)
        self.rows, self.tested = rows, tested
        self.outputs = Classes(names=tuple(sorted(set(found.labels or ()))))
        self.labels = np.array(
            [self.outputs.names.index(name) for name in found.labels or ()], np.int32
        )
        self.start = start.params["encoder"]
        if config.mode == "scratch":
            self.start = fresh(Encoder, self.model, config.seed)
        if not len(rows["validation"]):
            self.best = None
        self.arrays = {"volume": self.volumes}
        run_encoder = functools.partial(self._vectors, self.start)
        if config.mode == "probe":  # a frozen encoder sees each volume once
            every = np.arange(len(self.labels))
            self.arrays = {"features": self._over(run_encoder, self._rows(every))}
            known = self.arrays["features"][rows["train"]]
        else:
            known = self._over(run_encoder, self.part("train"))
        self.stats = {"mean": known.mean(0), "std": np.maximum(known.std(0), 1e-3)}
        width, classes = known.shape[1], len(self.outputs.names)
        head = {"kernel": np.zeros((width, classes), np.float32)}
        self.params = {"head": {**head, "bias": np.zeros(classes, np.float32)}}
        if config.mode != "probe":
            self.params["encoder"] = self.start
        self.train = self.part("train")
        self.ready(self._phase())

    def _phase(self) -> Phase:
        config, groups = self.config, EVERYTHING
        if config.mode != "probe":
            usual = 1.0 if config.mode == "scratch" else 0.3
            lr = usual if config.encoder_lr is None else config.encoder_lr
            groups = (Group("head", "^head/"), Group("encoder", "^encoder/", lr=lr))
        term = Term(
            name="cross_entropy",
            fn=_cross_entropy,
            reads=("train/logits", "train/label"),
        )
        epochs = _EPOCHS[config.mode]
        return Phase(
            name=config.mode,
            terms=(term,),
            groups=groups,
            steps=config.total_steps(len(self.train), default_epochs=epochs),
            options=config,
        )

    def _rows(self, rows: np.ndarray) -> Columns:
        return self.found.columns(rows, label=self.labels, **self.arrays)

    def part(self, split: str) -> Columns:
        """The volumes of a split."""
        return self._rows(self.rows[split])

    def features(self, params: Any, batch: Mapping[str, Any], key: Any = None) -> Any:
        """The vectors of a batch; those of a probe are known."""
        if "features" in batch:
            return batch["features"]
        x = batch["volume"].astype(jnp.float32) / 255
        if key is not None:
            x = augment(key, x, flip=self.config.flip)
        return vectors(self.encoder_network.apply(params, {}, x)[0])

    def logits(self, params: Any, stats: Any, batch: Any, key: Any = None) -> Any:
        """The scores of the classes."""
        features = self.features(params.get("encoder"), batch, key)
        return scores(params["head"], stats, features)

    def rules(self, params, stats, batch, key, step, trainable) -> dict[str, Any]:
        """What the term reads."""
        return {
            "train/logits": lambda _: self.logits(params, stats, batch, key),
            "train/label": lambda _: batch["label"],
            "stats/next": lambda _: stats,
        }

    def _over(
        self,
        function: Callable[[Any], Any],
        rows: Columns,
        poll: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        found = []
        for _, batch, mask in self.runner.batches(rows):
            poll()
            found.append(np.asarray(function(batch))[mask])
        return np.concatenate(found)

    @functools.cached_property
    def _vectors(self) -> Any:
        return self.runner.jit(self.features)

    @functools.cached_property
    def _logits(self) -> Any:
        return self.runner.jit(self.logits)

    def scored(self, params: Any, split: str, poll: Any = lambda: None) -> np.ndarray:
        """The logits of every volume of a split."""
        run = functools.partial(self._logits, params, self.stats)
        return self._over(run, self.part(split), poll)

    def evaluate(
        self, state: State, step: int, stop: StopSignal
    ) -> Mapping[str, float]:
        """Loss and accuracy on the validation volumes; `train_…` without any."""
        split = "validation" if self.best else "train"
        logits = self.scored(self.weights(state), split, stop.check)
        truth = self.labels[self.rows[split]]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, truth)
        found = {"loss": each.mean(), "accuracy": (logits.argmax(1) == truth).mean()}
        before = "" if self.best else "train_"
        return {before + name: float(value) for name, value in found.items()}

    def report(self, step: int | None, scored: Any = None) -> None:
        shown = {}
        if scored is not None:
            each = figures(scored).items()
            shown = {
                "headline": {f"test {k} (95 % interval)": v for k, v in each},
                "parts": diagrams(scored),
                "grids": self.outputs.grids(scored),
            }
        self.page(
            step,
            "accuracy",
            title=f"Classifier of {self.found.name} (mode {self.config.mode})",
            lead=f"What a classifier of volumes has learned. Tested on {self.tested}.",
            **shown,
        )

    def finish(self, state: State, store: Store) -> VolumeResult:
        params, step = self.selected(state, store)
        found: dict[str, Any] = {"validation": None}
        for split in ("validation", "test"):
            if len(rows := self.rows[split]):
                logits, truth = self.scored(params, split), self.labels[rows]
                found[split] = self.outputs.report(logits, truth, seed=self.config.seed)
        rule = "the lowest validation loss" if self.best else "the last step"
        results = {
            "mode": self.config.mode,
            "from": self.config.from_,
            "training_volumes": len(self.train),
            "held_out": self.tested,
            "test_ids": [self.found.ids[row] for row in self.rows["test"]],
            "steps": self.trainer.stage.steps,
            "selection": {"rule": rule, "step": step},
            **found,
        }
        if self.run.is_main_process:
            write_json(self.run.path / "results.json", results)
        self.report(None, results["test"])
        encoder = params.get("encoder", self.start)
        classes, head = list(self.outputs.names), params["head"]
        self.write(
            {"encoder": encoder, "head": head}, self.stats, step, classes=classes
        )
        return self.result(complete=False)

    def result(self, *, complete: bool) -> VolumeResult:
        place, where = self.run.path / "results.json", self.run.where
        cure = "delete it, and the same command scores the run again"
        results = schemas.read(place, schemas.ResultsFile, cure)
        test = results["test"]
        shown = ", ".join(f"{k} {v}" for k, v in self.outputs.figures(test).items())
        text = (
            f"test ({test['examples']} volumes): {shown}\n"
            f"tested on {results['held_out']}; step {results['selection']['step']}\n"
            f"classifier  {where}/{CLASSIFIER}\nreport      {where}/report.html"
        )
        return VolumeResult(self.run.path, results, text)


def _cross_entropy(view: Any) -> tuple[Any, dict[str, Any]]:
    logits, label = view["train/logits"], view["train/label"]
    each = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return each, {"accuracy": jnp.mean(logits.argmax(-1) == label)}
