"""Classification of texts: by a probe, in two phases, or all at once."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from afterimage import runtime
from afterimage.checkpoints import schemas
from afterimage.checkpoints.store import Store
from afterimage.data.sets import Columns
from afterimage.errors import DataError
from afterimage.finetune.figures import diagrams, figures
from afterimage.finetune.methods.l2_sp import l2_sp
from afterimage.outputs.classes import Classes
from afterimage.runs import Run, write_json
from afterimage.training.batches import spaced
from afterimage.training.job import execute
from afterimage.training.loop import NO_CALLBACKS, Callbacks, StopSignal
from afterimage.training.optimiser import EVERYTHING, Group
from afterimage.training.stage import Phase, Stage, Term
from afterimage.training.step import State
from afterimage_text.bert import abstract
from afterimage_text.config import FinetuneConfig
from afterimage_text.files import CLASSIFIER
from afterimage_text.job import TextJob, TextResult, begun, opened
from afterimage_text.models import cast, features, over, scores
from afterimage_text.texts import Texts, columns, split_rows

_MOST_SCORED = 1_000
"""Training texts that are scored where no validation texts are given."""
_RESULTS = "results.json"
_LONGEST_LABEL = 1024


def finetune(
    config: FinetuneConfig, *, callbacks: Callbacks = NO_CALLBACKS
) -> TextResult:
    """Train a classifier as `config` says, or continue the run in its folder.

    Raises:
      UserError, DataError: invalid settings or texts, or another run's folder.
      CheckpointError: damaged weights or checkpoints; RunLocked: a folder in use.
      Diverged, Interrupted: as in the loop; the progress so far is saved.
    """
    run, texts = opened(config, "text-finetune", config.label_column)
    rows, tested = _rows(config, texts)
    with run:
        run.check_data(texts.name, texts.fingerprint)
        return execute(_Finetuning(config, run, texts, rows, tested), run, callbacks)


def _rows(config: FinetuneConfig, texts: Texts) -> tuple[dict[str, np.ndarray], str]:
    """`split_rows`, checked: every class has texts to train on, and there is a test."""
    classes = sorted(set(texts.labels or ()))
    if len(longest := max(classes, key=len)) > _LONGEST_LABEL:
        raise DataError(
            f"{texts.name}: a label has {len(longest)} characters, {longest[:40]!r}…; "
            f"expected at most {_LONGEST_LABEL}. Is --label-column right?"
        )
    if len(classes) < 2:
        raise DataError(
            f"{texts.name}: every text has the label {classes[0]!r}; expected at least "
            "2 classes"
        )
    rows, tested = split_rows(texts, classes, config.test, config.seed)
    known = {(texts.labels or ())[row] for row in rows["train"]}
    unknown = sorted(set(classes) - known)
    if unknown or not len(rows["test"]):
        missing = f"no text of {', '.join(map(repr, unknown[:10]))} to train on"
        raise DataError(
            f"{texts.name}: {missing if unknown else 'no text to test on'}; change the "
            "column split, or --test"
        )
    return rows, tested


class _Finetuning(TextJob):
    kind = CLASSIFIER
    files = ("report.html", _RESULTS)
    config: FinetuneConfig

    def __init__(
        self,
        config: FinetuneConfig,
        run: Run,
        texts: Texts,
        rows: Mapping[str, np.ndarray],
        tested: str,
    ):
        known = [texts.texts[row] for row in rows["train"]]
        super().__init__(config, run, texts, begun(config, run, known))
        self.rows, self.tested = rows, tested
        self.outputs = Classes(names=tuple(sorted(set(texts.labels or ()))))
        number = {name: n for n, name in enumerate(self.outputs.names)}
        self.labels = np.array([number[name] for name in texts.labels or ()], np.int32)
        self.network, _ = abstract(self.stored.config, remat=config.remat)
        width, classes = self.stored.config.width, len(number)
        head = {"kernel": np.zeros((width, classes), np.float32)}
        head["bias"] = np.zeros(classes, np.float32)
        encoder = self.stored.params["encoder"]
        self.probe = config.mode == "probe"
        self.params = (
            {"head": head} if self.probe else {"encoder": encoder, "head": head}
        )
        if config.l2_sp:
            self.stats = {"start": jax.tree.map(np.copy, encoder)}
        if self.probe:  # a frozen encoder sees each text once
            self.arrays = {"features": self._features(encoder)}
        self.train = self.part("train")
        self.ready(Stage(phases=self.phases(), providers=self.rules))

    def _features(self, encoder: Any) -> np.ndarray:
        every = columns(self.texts, np.arange(len(self.labels)), **self.arrays)
        run = self.runner.jit(lambda params, batch: self.vectors(params, batch))
        return over(self.runner, every, functools.partial(run, encoder))

    def part(self, split: str) -> Columns:
        """The texts of a split."""
        return columns(self.texts, self.rows[split], label=self.labels, **self.arrays)

    def vectors(self, encoder: Any, batch: Mapping[str, Any]) -> Any:
        """The vectors of a batch; those of a probe are known."""
        if "features" in batch:
            return batch["features"]
        return features(self.network, cast(encoder, self.config.precision), batch)

    def logits(self, params: Any, batch: Mapping[str, Any]) -> Any:
        """The scores of the classes."""
        return scores(params["head"], self.vectors(params.get("encoder"), batch))

    def phases(self) -> tuple[Phase, ...]:
        """The head alone, everything, or first the one and then the other."""
        config = self.config
        usual = 1.0 if config.from_ is None else 0.05
        lr = usual if config.encoder_lr is None else config.encoder_lr
        learn = groups(self.stored.config.depth, lr, config.layer_decay)
        epochs = 100.0 if self.probe else 10.0
        total = config.total_steps(len(self.train), default_epochs=epochs)
        term = Term(
            name="cross_entropy",
            fn=_cross_entropy,
            reads=("train/logits", "train/label"),
        )
        terms = (term, *([l2_sp(config.l2_sp)] if config.l2_sp else []))
        steps = {"full": (learn, total)}
        if self.probe:
            steps = {"head": (EVERYTHING, total)}
        if config.mode == "two-phase":
            first = max(1, total // 3)
            frozen = (learn[0], Group("encoder", "^encoder/", freeze=True))
            steps = {"head": (frozen, first), "all": (learn, max(1, total - first))}
        return tuple(
            Phase(
                name=name,
                terms=(term,) if name == "head" else terms,
                groups=groups,
                steps=count,
                options=config,
            )
            for name, (groups, count) in steps.items()
        )

    def rules(self, params, stats, batch, key, step, trainable) -> dict[str, Any]:
        """What the terms read."""
        return {
            "params": lambda _: params,
            "source/params": lambda _: {"encoder": stats["start"]},
            "train/logits": lambda _: self.logits(params, batch),
            "train/label": lambda _: batch["label"],
            "stats/next": lambda _: stats,
        }

    def scored(
        self, params: Any, rows: Columns, poll: Callable[[], None] = lambda: None
    ) -> np.ndarray:
        """The logits of every text of a set."""
        return over(self.runner, rows, functools.partial(self._logits, params), poll)

    @functools.cached_property
    def _logits(self):
        return self.runner.jit(self.logits)

    def evaluate(
        self, state: State, step: int, stop: StopSignal
    ) -> Mapping[str, float]:
        """Measures on the validation texts; without any, on training texts."""
        split, before = "validation", ""
        if not len(self.rows["validation"]):
            split, before = "train", "train_"
        rows = self.rows[split][spaced(len(self.rows[split]), _MOST_SCORED)]
        some = columns(self.texts, rows, label=self.labels, **self.arrays)
        found = self.outputs.measures(
            self.scored(self.weights(state), some, stop.check), self.labels[rows]
        )
        return {before + name: value for name, value in found.items()}

    def report(self, step: int | None, scored: Mapping[str, Any] | None = None) -> None:
        before = "" if len(self.rows["validation"]) else "train_"
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
            metric="accuracy",
            before=before,
            title=f"Classifier of {self.texts.name} (mode {self.config.mode})",
            lead=f"What a classifier of texts has learned. Tested on {self.tested}.",
            **shown,
        )

    def finish(self, state: State, store: Store) -> TextResult:
        """Scores the last step, and writes everything."""
        params, found = self.weights(state), {}
        for split in ("validation", "test"):
            rows, truth = self.rows[split], self.labels[self.rows[split]]
            found[split] = None
            if len(rows):
                logits = self.scored(params, self.part(split))
                found[split] = self.outputs.report(logits, truth, seed=self.config.seed)
        steps = self.trainer.stage.steps
        results = {
            "mode": self.config.mode,
            "from": self.config.from_,
            "classes": list(self.outputs.names),
            "training_texts": len(self.train),
            "cut": self.cut,
            "held_out": self.tested,
            "test_rows": [self.texts.ids[row] for row in self.rows["test"]],
            "steps": steps,
            "selection": {"rule": "the last step", "step": steps},
            "runtime": runtime.fingerprint(),
            **found,
        }
        self.run.metrics.flush()
        if self.run.is_main_process:
            write_json(self.run.path / _RESULTS, results)
        self.report(None, results["test"])
        encoder = params.get("encoder", self.stored.params["encoder"])
        classes = list(self.outputs.names)
        self.write({"encoder": encoder, "head": params["head"]}, classes=classes)
        return self.result(complete=False)

    def result(self, *, complete: bool) -> TextResult:
        place = self.run.path / _RESULTS
        cure = "delete it, and the same command scores the run again"
        results = schemas.read(place, schemas.ResultsFile, cure)
        test, where = results["test"], self.run.where
        figures = ", ".join(f"{k} {v}" for k, v in self.outputs.figures(test).items())
        text = (
            f"test ({test['examples']} texts): {figures}\n"
            f"tested on {results['held_out']}\n"
            f"classifier  {where}/{CLASSIFIER}\nreport      {where}/report.html"
        )
        return TextResult(self.run.path, self.last(), results, text)


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


def _cross_entropy(view: Any) -> tuple[Any, dict[str, Any]]:
    logits, label = view["train/logits"], view["train/label"]
    each = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return each, {"accuracy": jnp.mean(logits.argmax(-1) == label)}
