"""Classification of volumes: a probe, everything, or everything from scratch."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from afterimage.finetune.own_classifier import ClassifierStage, class_names, over
from afterimage.runs import Run
from afterimage.stages import StageResult, open_run
from afterimage.training.job import execute
from afterimage.training.loop import NO_CALLBACKS, Callbacks
from afterimage.training.optimiser import EVERYTHING, Group
from afterimage.training.stage import Phase
from afterimage_volumes.config import FinetuneConfig
from afterimage_volumes.job import VolumeStage
from afterimage_volumes.models import CLASSIFIER, VolumeEncoder, load_volume_encoder
from afterimage_volumes.network import Encoder, augment, fresh, scores, vectors
from afterimage_volumes.volumes import Found, find, split_rows

_EPOCHS = {"probe": 200.0, "full": 50.0, "scratch": 50.0}


def finetune(
    config: FinetuneConfig, *, callbacks: Callbacks = NO_CALLBACKS
) -> StageResult:
    """Train a classifier as `config` says, or continue the run in its folder.

    Raises:
      UserError, DataError: invalid settings or volumes, or another run's folder.
      CheckpointError: damaged weights or checkpoints; RunLocked: a folder in use.
      Diverged, Interrupted: as in the loop; the progress so far is saved.
    """
    run, start = open_run(config, "volume-finetune"), load_volume_encoder(config.from_)
    found = find(config.data, labels=True)
    labels = found.labels or []
    rows, tested = split_rows(
        found, sorted(set(labels)), config.test, config.validation, config.seed
    )
    names = class_names(labels, rows, found.name, "volume")
    splits = {"classes": names, "rows": rows, "tested": tested}
    with run:
        job = _Finetuning(config, run, found, start, splits)
        return execute(job, run, callbacks)


class _Finetuning(VolumeStage, ClassifierStage):
    artefact, unit = CLASSIFIER, "volume"
    config: FinetuneConfig

    def __init__(
        self,
        config: FinetuneConfig,
        run: Run,
        found: Found,
        start: VolumeEncoder,
        splits: Mapping[str, Any],
    ):
        origin = {"path": start.where, "checksum": start.manifest["checksum"]}
        super().__init__(
            config,
            run,
            found,
            start.model,
            start.geometry,
            ids=found.ids,
            labels=found.labels or [],
            origin=origin,
            **splits,
        )
        self.title = f"Classifier of {found.name} (mode {config.mode})"
        self.lead = f"A classifier of volumes, tested on {self.tested}."
        self.start = start.params["encoder"]
        if config.mode == "scratch":
            self.start = fresh(Encoder, self.model, config.seed)
        self.arrays = {"volume": self.volumes}
        run_encoder = functools.partial(self.runner.jit(self.features), self.start)
        some = self.rows["train"]
        if config.mode == "probe":  # a frozen encoder sees each volume once
            every = self.set_of(range(len(self.labels)))
            self.arrays = {"features": over(self.runner, every, run_encoder)}
            known = self.arrays["features"][some]
        else:
            known = over(self.runner, self.set_of(some), run_encoder)
        self.stats = {"mean": known.mean(0), "std": np.maximum(known.std(0), 1e-3)}
        self.params = {"head": self.zero_head(known.shape[1])}
        if config.mode != "probe":
            self.params["encoder"] = self.start
        self.ready(self._phase())

    def _phase(self) -> Phase:
        config, groups = self.config, EVERYTHING
        if config.mode != "probe":
            usual = 1.0 if config.mode == "scratch" else 0.3
            lr = usual if config.encoder_lr is None else config.encoder_lr
            groups = (Group("head", "^head/"), Group("encoder", "^encoder/", lr=lr))
        epochs = _EPOCHS[config.mode]
        return Phase(
            name=config.mode,
            terms=(self.cross_entropy,),
            groups=groups,
            steps=config.total_steps(len(self.rows["train"]), default_epochs=epochs),
            options=config,
        )

    def features(self, params: Any, batch: Mapping[str, Any], key: Any = None) -> Any:
        """The vectors of a batch; those of a probe are known."""
        if "features" in batch:
            return batch["features"]
        x = batch["volume"].astype(jnp.float32) / 255
        if key is not None:
            x = augment(key, x, flip=self.config.flip)
        return vectors(self.encoder_network.apply(params, {}, x)[0])

    def logits(self, params: Any, stats: Any, batch: Any, key: Any = None) -> Any:
        features = self.features(params.get("encoder"), batch, key)
        return scores(params["head"], stats, features)

    def kept(self, params: Any, stats: Any) -> tuple[Any, Any]:
        encoder = params.get("encoder", self.start)
        return {"encoder": encoder, "head": params["head"]}, stats
