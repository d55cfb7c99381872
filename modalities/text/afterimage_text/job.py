"""What both stages on texts share: the start, the state, the page."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np

from afterimage import runtime
from afterimage.checkpoints import files
from afterimage.checkpoints.weights import write_encoder
from afterimage.console import say_doing
from afterimage.data.sets import Columns
from afterimage.errors import UserError
from afterimage.report import logged, write_report
from afterimage.runs import Run
from afterimage.training.batches import BatchLoader, EvaluationRunner, make_mesh
from afterimage.training.job import Job, Say, Trainer
from afterimage.training.loop import StopSignal
from afterimage.training.sharding import whole
from afterimage.training.stage import Stage, describe
from afterimage.training.step import State, averaged_params
from afterimage_text.bert import BertConfig, fresh
from afterimage_text.config import LENGTH, TextOptions
from afterimage_text.files import Stored, read_file, read_start
from afterimage_text.texts import (
    Texts,
    encode,
    new_tokenizer,
    read_texts,
    read_tokenizer,
)


def opened(
    config: TextOptions, kind: str, label: str | None = None
) -> tuple[Run, Texts]:
    """The run folder (unlocked) and the texts."""
    runtime.enable_compile_cache()
    run = Run(config.out, kind=kind, config=config)
    run.check_settings()
    say_doing(f"Reading {config.table}")
    return run, read_texts(config.table, config.text_column, label)


def begun(config: TextOptions, run: Run, texts: list[str]) -> Stored:
    """The weights that `config.from_` names; without it random ones, with a vocabulary
    of these texts."""
    if config.from_ is not None:
        stored, wanted = read_start(config.from_), config.length or 0
        if wanted > (most := stored.config.positions):
            raise UserError(
                f"length={wanted}: {stored.where} reads at most {most} tokens"
            )
        return stored
    # Kept: another machine's training might break ties in another way.
    place = run.path / "tokenizer.json"
    if not place.is_file() and run.is_main_process:
        made = new_tokenizer(texts, config.most_tokens).to_str()
        files.replace_file(place, made.encode())
    text = read_file(place).decode("utf-8", "replace")
    vocabulary = read_tokenizer(text, 2**20, str(place)).get_vocab_size()
    sizes = BertConfig(vocabulary=vocabulary, **config.sizes)
    return Stored(sizes, {"encoder": fresh(sizes, config.seed)}, text, run.where, {})


@dataclasses.dataclass(frozen=True)
class TextResult:
    """A finished run on texts."""

    run: pathlib.Path
    metrics: Mapping[str, float]
    """The last evaluation."""
    results: Mapping[str, Any]
    """results.json of text-finetune; {} of text-pretrain."""
    text: str
    """A few lines for a terminal."""


class TextJob(Job[TextResult]):
    """A stage on texts; subclasses add the phases, the metrics and the artefact."""

    kind: ClassVar[str]
    """Of the artefact."""
    files: ClassVar[tuple[str, ...]] = ("report.html",)
    params: Any
    """The parameters before the first step …"""
    stats: Any
    """… and what goes with them."""
    train: Columns

    def __init__(self, config: TextOptions, run: Run, texts: Texts, stored: Stored):
        self.config, self.run, self.texts, self.stored = config, run, texts, stored
        self.stats = {}
        self.mesh = make_mesh(config.devices)
        self.runner = EvaluationRunner(self.mesh, config.batch_size)
        self.tokenizer = read_tokenizer(
            stored.tokenizer, stored.config.vocabulary, stored.where
        )
        self.length = config.length or min(LENGTH, stored.config.positions)
        self.arrays, self.cut = encode(self.tokenizer, texts.texts, self.length)

    def ready(self, stage: Stage) -> None:
        """Checks the phases, and makes the trainer."""
        one = np.zeros(1, np.int64)
        stage.check(
            self.params, self.stats, self.train.inputs(one) | self.train.targets(one)
        )
        self.trainer = Trainer(
            stage, self.params, mesh=self.mesh, images=len(self.train)
        )

    def template(self) -> State:
        seed, ema = self.config.seed, self.config.ema > 0
        return self.trainer.fresh(self.params, self.stats, seed=seed, ema=ema)

    def lost(self) -> tuple[str, ...] | None:
        return self.run.missing([self.kind], self.files)

    def begin(self, say: Say, stop: StopSignal) -> State:
        return self.template()

    def feed(self, phase: int) -> BatchLoader:
        return BatchLoader(self.train, options=self.config, mesh=self.mesh)

    def weights(self, state: State) -> Any:
        """The parameters of a state; the running means if they are kept."""
        return averaged_params(state, self.trainer.partition(int(state["step"])))

    def introduction(self) -> str:
        cut = f", {self.cut:,} of them cut to {self.length} tokens"
        return (
            f"{self.texts.name}: {len(self.texts.texts):,} texts"
            f"{cut if self.cut else ''}; {len(self.train):,} to train on\n"
            + describe(self.trainer.stage, self.params)
        )

    def write(self, params: Any, **more: Any) -> None:
        """Writes the artefact, last of all: its presence means a complete run."""
        content = {
            "model": msgspec.to_builtins(self.stored.config),
            "tokenizer": self.stored.tokenizer,
            "length": self.length,
            "data": {
                "name": self.texts.name,
                "fingerprint": self.texts.fingerprint,
            },
            "trained": {
                "stage": self.run.kind,
                "from": self.config.from_,
                "steps": self.trainer.stage.steps,
                "texts": len(self.train),
                "cut": self.cut,
                "seed": self.config.seed,
            },
            **more,
        }
        params = whole(params)
        if self.run.is_main_process:
            place = self.run.path / self.kind
            write_encoder(place, params, {}, content, kind=self.kind)

    def page(
        self, done: int | None, *, metric: str, before: str = "", **content: Any
    ) -> None:
        """Writes report.html after `done` steps (None: all), with the curves of the
        loss and of `metric`. `before` begins the names of evaluated metrics."""
        run = self.run
        if not run.is_main_process:
            return
        run.metrics.flush()
        run.keep_time()
        rows, first = run.metrics.rows, [*run.sessions.commands, ""][0]
        curves = {
            name: {
                "training": logged(rows, f"train/{key}"),
                "evaluated": logged(rows, f"eval/{before}{key}"),
            }
            for name, key in {"Loss": "loss", "Accuracy": metric}.items()
        }
        curves["Learning rate"] = {"learning rate": logged(rows, "train/lr")}
        total = self.trainer.stage.steps
        phases = self.introduction().splitlines()[1:]
        facts = {
            "Run": run.where,
            "Started from": self.config.from_ or "random weights",
            "Texts": f"{len(self.texts.texts):,}, {len(self.train):,} to train on",
            "Cut to the length": f"{self.cut:,}, at {self.length} tokens",
        }
        write_report(
            run.path / "report.html",
            facts=facts | run.sessions.facts(),
            command=first,
            curves=curves,
            logarithmic=["Loss"],
            settings=run.settings,
            tables={
                "Phases": {str(n): line for n, line in enumerate(phases, 1)},
                "Machine": runtime.fingerprint(),
            },
            unfinished=None if done is None else (done, total),
            **content,
        )

    def last(self) -> dict[str, float]:
        """The last evaluation in metrics.jsonl."""
        found = [row for row in self.run.metrics.rows if any("eval/" in k for k in row)]
        row = found[-1] if found else {}
        return {k.removeprefix("eval/"): v for k, v in row.items() if "eval/" in k}
