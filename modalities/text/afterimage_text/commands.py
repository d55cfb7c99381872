"""The commands `afterimage text-…`: pretrain, finetune, predict, features."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from afterimage.commands.flags import Command, parse
from afterimage.console import say, say_result
from afterimage.fields import output_file
from afterimage_text.config import (
    FeaturesConfig,
    FinetuneConfig,
    PredictConfig,
    PretrainConfig,
)

_SUFFIXES = (".csv", ".jsonl", ".parquet")
_WHERE = ("table", "text_column", "from_", "out", "length")
_NEW = {"A new network": ("width", "depth", "vocabulary")}
_HOW_LONG = {"How long": ("steps", "epochs", "batch_size", "eval_every", "save_every")}
_HOW_GOOD = ("lr", "weight_decay", "ema", "seed")


@dataclasses.dataclass(frozen=True)
class Entry:
    """What an entry point of a command has."""

    COMMAND: Command[Any]
    work: Callable[[Any], None]

    def main(self, argv: Sequence[str]) -> None:
        """The command."""
        self.work(parse(self.COMMAND, argv))


def _pretrain(config: PretrainConfig) -> None:
    from afterimage_text.pretraining import pretrain

    say_result(pretrain(config).text)


def _finetune(config: FinetuneConfig) -> None:
    from afterimage_text.finetuning import finetune

    say_result(finetune(config).text)


def _predict(config: PredictConfig) -> None:
    from afterimage_text.models import load_text_classifier

    def rows(model: Any, texts: Any) -> Iterator[dict[str, Any]]:
        found = model.predict_proba(texts.texts, batch_size=config.batch_size)
        for where, values in zip(texts.ids, found):
            yield {"row": where, **model.outputs.columns(values, 3)}

    _write(config, load_text_classifier, rows)


def _features(config: FeaturesConfig) -> None:
    from afterimage_text.models import load_text_encoder

    def rows(model: Any, texts: Any) -> Iterator[dict[str, Any]]:
        found = model.features(texts.texts, batch_size=config.batch_size)
        for where, vector in zip(texts.ids, found.tolist()):
            yield {"row": where, "vector": vector}

    _write(config, load_text_encoder, rows)


def _write(config: PredictConfig, load: Any, rows: Any) -> None:
    """Loads a model, and writes its rows for the texts of a table."""
    from afterimage.rows import WRITERS
    from afterimage_text.texts import read_texts

    out = output_file(config.out, _SUFFIXES)
    texts = read_texts(config.table, config.text_column)
    found = rows(load(config.from_), texts)
    partial = out.with_name(f".{out.name}.partial")
    try:
        WRITERS[out.suffix.lower()](partial, found)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    say(f"wrote {len(texts.texts):,} rows to {config.out}")


PRETRAIN = Entry(
    Command(
        name="text-pretrain",
        config=PretrainConfig,
        kind="text-pretrain",
        positional="table",
        about="""\
Pretrain an encoder of texts by predicting masked tokens, from published weights or from
scratch. The same command again continues an interrupted run.

  afterimage text-pretrain reviews.csv --from minilm --out runs/reviews""",
        common={
            "What and where": (*_WHERE, "validation"),
            **_NEW,
            **_HOW_LONG,
            "How good": _HOW_GOOD,
        },
    ),
    _pretrain,
)
FINETUNE = Entry(
    Command(
        name="text-finetune",
        config=FinetuneConfig,
        kind="text-finetune",
        positional="table",
        about="""\
Train a classifier of texts on a pretrained encoder, and test it once. The same command
again continues an interrupted run.

  afterimage text-finetune train.csv --from minilm --mode probe --out runs/topics""",
        common={
            "What and where": (*_WHERE, "label_column", "test"),
            "What learns": ("mode", "encoder_lr", "layer_decay", "l2_sp"),
            **_NEW,
            **_HOW_LONG,
            "How good": _HOW_GOOD,
        },
    ),
    _finetune,
)
PREDICT = Entry(
    Command(
        name="text-predict",
        config=PredictConfig,
        positional="table",
        about="""\
Write the class of every text of a table to a file.

  afterimage text-predict new.csv --from runs/topics --out predictions.csv""",
        common={"Settings": ("table", "text_column", "from_", "out", "batch_size")},
    ),
    _predict,
)
FEATURES = Entry(
    Command(
        name="text-features",
        config=FeaturesConfig,
        positional="table",
        about="""\
Write a vector for every text of a table to a file.

  afterimage text-features new.csv --from minilm --out vectors.parquet""",
        common={"Settings": ("table", "text_column", "from_", "out", "batch_size")},
    ),
    _features,
)
