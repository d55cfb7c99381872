"""The commands `afterimage text-…`: pretrain, finetune, predict, features."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from afterimage.commands.flags import Command, PackageCommand
from afterimage.fields import output_file
from afterimage_text.config import FinetuneConfig, PretrainConfig, UseConfig


def _stage(
    work: Callable[[Any], str], name: str, config: type, about: str, **own: Any
) -> PackageCommand:
    """A command that trains; `own` are its settings by heading."""
    common = {
        "What and where": ("table", "text_column", *own.pop("where"), "from_", "out"),
        **{heading.replace("_", " "): names for heading, names in own.items()},
        "A new network": ("width", "depth", "vocabulary"),
        "How long": ("length", "steps", "epochs", "batch_size", "eval_every"),
        "How good": ("lr", "weight_decay", "ema", "seed"),
    }
    more: Any = {"positional": "table", "about": about, "common": common}
    return PackageCommand(Command(name=name, kind=name, config=config, **more), work)


def _use(work: Callable[[Any], str], name: str, about: str) -> PackageCommand:
    """A command that writes a row for each text."""
    common = {"Settings": ("table", "text_column", "from_", "out", "batch_size")}
    more: Any = {"positional": "table", "about": about, "common": common}
    return PackageCommand(Command(name=name, config=UseConfig, **more), work)


def _pretrain(config: PretrainConfig) -> str:
    from afterimage_text.pretraining import pretrain

    return pretrain(config).text


def _finetune(config: FinetuneConfig) -> str:
    from afterimage_text.finetuning import finetune

    return finetune(config).text


def _predict(config: UseConfig) -> str:
    from afterimage_text.models import load_text_classifier

    def rows(model: Any, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
        for values in model.predict_proba(texts, batch_size=config.batch_size):
            yield model.outputs.columns(values, 3)

    return _write(config, load_text_classifier, rows)


def _features(config: UseConfig) -> str:
    from afterimage_text.models import load_text_encoder

    def rows(model: Any, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
        for vector in model.features(texts, batch_size=config.batch_size):
            values = vector.tolist()
            named = {str(n): value for n, value in enumerate(values)}
            yield named if csv else {"vector": values}

    csv = config.out.lower().endswith(".csv")
    return _write(config, load_text_encoder, rows)


def _write(config: UseConfig, load: Any, rows: Any) -> str:
    """Loads a model, and writes what `rows` says of each text of a table."""
    from afterimage.rows import WRITERS, write_table
    from afterimage_text.texts import read_texts

    output_file(config.out, WRITERS)  # before reading
    texts = read_texts(config.table, config.text_column)
    model = load(config.from_)
    write_table(
        config.out,
        ({"row": i} | r for i, r in zip(texts.ids, rows(model, texts.texts))),
    )
    return f"wrote {len(texts.texts):,} rows to {config.out}"


PRETRAIN = _stage(
    _pretrain,
    "text-pretrain",
    PretrainConfig,
    """\
Pretrain an encoder of texts by predicting masked tokens, from published weights or from
scratch. The same command again continues an interrupted run.

  afterimage text-pretrain reviews.csv --from minilm --out runs/reviews""",
    where=("validation",),
)
FINETUNE = _stage(
    _finetune,
    "text-finetune",
    FinetuneConfig,
    """\
Train a classifier of texts on a pretrained encoder, and test it once. The same command
again continues an interrupted run.

  afterimage text-finetune train.csv --from minilm --mode probe --out runs/topics""",
    where=("label_column", "test"),
    What_learns=("mode", "encoder_lr", "layer_decay", "l2_sp"),
)
PREDICT = _use(
    _predict,
    "text-predict",
    """\
Write the class of every text of a table to a file.

  afterimage text-predict new.csv --from runs/topics --out predictions.csv""",
)
FEATURES = _use(
    _features,
    "text-features",
    """\
Write a vector for every text of a table to a file.

  afterimage text-features new.csv --from minilm --out vectors.parquet""",
)
