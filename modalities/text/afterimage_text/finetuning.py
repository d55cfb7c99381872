"""Classification of texts: by a probe, in two phases, or all at once."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from afterimage.finetune.methods.l2_sp import l2_sp
from afterimage.finetune.own_classifier import ClassifierStage, class_names, over
from afterimage.runs import Run
from afterimage.stages import StageResult
from afterimage.training.job import execute
from afterimage.training.loop import NO_CALLBACKS, Callbacks
from afterimage.training.optimiser import EVERYTHING, Group
from afterimage.training.stage import Phase
from afterimage_text.bert import abstract
from afterimage_text.config import FinetuneConfig
from afterimage_text.files import CLASSIFIER
from afterimage_text.job import TextStage, begun, opened
from afterimage_text.models import cast, features, scores
from afterimage_text.texts import Texts, columns, split_rows


def finetune(
    config: FinetuneConfig, *, callbacks: Callbacks = NO_CALLBACKS
) -> StageResult:
    """Train a classifier as `config` says, or continue the run in its folder.

    Raises:
      UserError, DataError: invalid settings or texts, or another run's folder.
      CheckpointError: damaged weights or checkpoints; RunLocked: a folder in use.
      Diverged, Interrupted: as in the loop; the progress so far is saved.
    """
    run, texts = opened(config, "text-finetune", config.label_column)
    labels = texts.labels or []
    rows, tested = split_rows(texts, sorted(set(labels)), config.test, config.seed)
    names = class_names(labels, rows, texts.name, "text")
    splits = {"classes": names, "rows": rows, "tested": tested}
    with run:
        return execute(_Finetuning(config, run, texts, splits), run, callbacks)


class _Finetuning(TextStage, ClassifierStage):
    artefact, unit = CLASSIFIER, "text"
    config: FinetuneConfig

    def __init__(
        self, config: FinetuneConfig, run: Run, texts: Texts, splits: Mapping[str, Any]
    ):
        super().__init__(
            config,
            run,
            texts.name,
            texts.fingerprint,
            ids=texts.ids,
            labels=texts.labels or [],
            **splits,
        )
        self.title = f"Classifier of {texts.name} (mode {config.mode})"
        self.lead = f"A classifier of texts, tested on {self.tested}."
        known = [texts.texts[row] for row in self.rows["train"]]
        self.tokenise(texts, begun(config, run, known))
        self.network, _ = abstract(self.stored.config, remat=config.remat)
        self.params = {"head": self.zero_head(self.stored.config.width)}
        encoder = self.stored.params["encoder"]
        if config.l2_sp:
            self.stats = {"start": jax.tree.map(np.copy, encoder)}
        if config.mode == "probe":  # a frozen encoder sees each text once
            every = columns(texts, np.arange(len(self.labels)), **self.arrays)
            run_encoder = functools.partial(self.runner.jit(self.vectors), encoder)
            self.arrays = {"features": over(self.runner, every, run_encoder)}
        else:
            self.params["encoder"] = encoder
        self.ready(*self._phases())

    def vectors(self, encoder: Any, batch: Mapping[str, Any]) -> Any:
        """The vectors of a batch; those of a probe are known."""
        if "features" in batch:
            return batch["features"]
        return features(self.network, cast(encoder, self.config.precision), batch)

    def logits(self, params: Any, stats: Any, batch: Any, key: Any = None) -> Any:
        return scores(params["head"], self.vectors(params.get("encoder"), batch))

    def rules(
        self, params: Any, stats: Any, batch: Any, key: Any, step: Any, trainable: Any
    ) -> dict[str, Any]:
        """What the terms read."""
        return {
            "params": lambda _: params,
            "source/params": lambda _: {"encoder": stats["start"]},
            **super().rules(params, stats, batch, key, step, trainable),
        }

    def _phases(self) -> tuple[Phase, ...]:
        """The head alone, everything, or first the one and then the other."""
        config = self.config
        usual = 1.0 if config.from_ is None else 0.05
        lr = usual if config.encoder_lr is None else config.encoder_lr
        learn = groups(self.stored.config.depth, lr, config.layer_decay)
        probe = config.mode == "probe"
        epochs = 100.0 if probe else 10.0
        total = config.total_steps(len(self.rows["train"]), default_epochs=epochs)
        term = self.cross_entropy
        terms = (term, *([l2_sp(config.l2_sp)] if config.l2_sp else []))
        steps = {"head": (EVERYTHING, total)} if probe else {"full": (learn, total)}
        if config.mode == "two-phase":
            first = max(1, total // 3)
            frozen = (learn[0], Group("encoder", "^encoder/", freeze=True))
            steps = {"head": (frozen, first), "all": (learn, max(1, total - first))}
        return tuple(
            Phase(
                name=name,
                terms=(term,) if name == "head" else terms,
                groups=own,
                steps=count,
                options=config,
            )
            for name, (own, count) in steps.items()
        )

    def kept(self, params: Any, stats: Any) -> tuple[Any, Any]:
        encoder = params.get("encoder", self.stored.params["encoder"])
        return {"encoder": encoder, "head": params["head"]}, {}


def groups(depth: int, lr: float, decay: float) -> tuple[Group, ...]:
    """The head, the blocks from the last to the first, and the embeddings.

    Block l of L learns at lr · decay^(L - l), the embeddings as block 0 (Howard & Ruder
    2018, "Universal Language Model Fine-tuning for Text Classification").
    """
    head = Group("head", "^head/")
    if decay == 1.0:
        return head, Group("encoder", "^encoder/", lr=lr)
    blocks = [
        Group(f"block {n}", f"^encoder/blocks/{n}/", lr=lr * decay ** (depth - 1 - n))
        for n in reversed(range(depth))
    ]
    return head, *blocks, Group("embeddings", "^encoder/", lr=lr * decay**depth)
