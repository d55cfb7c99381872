"""Tables of texts, and texts as tokens."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer

from afterimage.checkpoints import files
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.names import printable
from afterimage.data.sets import Columns, stratified
from afterimage.data.table import Table, listed, read_table
from afterimage.errors import DataError, did_you_mean

MOST_BYTES = 2**30
"""Of a table."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """Texts of one table, with what is known about each; `ids` name their lines."""

    name: str
    texts: list[str]
    ids: list[str]
    labels: list[str] | None = None
    splits: list[str] | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that a run depends on."""
        parts = [self.texts, self.labels, self.splits]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_texts(place: str, column: str, label: str | None = None) -> Texts:
    """The texts of a CSV or JSON-lines file, and their labels and column `split`.

    `place` is a path, which may have `csv:` before it.

    Raises DataError for a missing column, and listing the lines that are empty or not
    UTF-8.
    """
    place = place.removeprefix("csv:")
    path = pathlib.Path(place)
    try:
        content = files.read_bytes(path, MOST_BYTES)
    except (OSError, ValueError) as error:  # a path with a NUL
        raise DataError(f"{printable(place)} {files.reason(error)}") from error
    if not content.strip():
        raise DataError(f"{place} is empty; expected a table with a column {column!r}")
    json_lines = path.suffix.lower() in (".jsonl", ".ndjson")
    _require_text(content, place)
    table = read_table(content, place, json_lines=json_lines)
    texts = _column(table, column, place, "--text-column")
    labels = None if label is None else _column(table, label, place, "--label-column")
    ids = [f"{table.unit} {line}" for line in table.lines]
    wrong = [f"{where}: {p}" for where, t in zip(ids, texts) if (p := _wrong(t))]
    wrong += [f"{w}: no label" for w, name in zip(ids, labels or ()) if not name]
    split = None if label is None else table.named("split", place)
    splits = None if split is None else [s.casefold() for s in table.columns[split]]
    wrong += [
        f"{where}: the split {name!r}; expected {', '.join(SPLITS)}"
        for where, name in zip(ids, splits or ())
        if name not in SPLITS
    ]
    if wrong:
        raise DataError(listed(wrong, place))
    if not texts:
        raise DataError(f"{place} has no texts below its first line")
    return Texts(place, texts, ids, labels, splits)


def _require_text(content: bytes, place: str) -> None:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return  # UTF-16, which `read_table` checks
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{place}: line {line} is not UTF-8 (byte {content[error.start]:#x}); save "
            "the table as UTF-8"
        ) from error


def _column(table: Table, name: str, place: str, flag: str) -> list[str]:
    if name not in table.columns:
        names = ", ".join(table.columns)[:200] or "none"
        hint = did_you_mean(name, table.columns)
        raise DataError(
            f"{place} has no column {name!r}{hint} It has: {printable(names)}. Name "
            f"the right one with {flag}"
        )
    return table.columns[name]


def _wrong(text: str) -> str | None:
    if not text.strip():
        return "the text is empty"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "the text is not Unicode (half of a surrogate pair)"
    return None


def split_rows(
    texts: Texts, classes: Sequence[str], share: float, seed: int
) -> tuple[dict[str, np.ndarray], str]:
    """({train, validation, test: rows}, what is tested on).

    By the column `split`; without one, a `share` of each class is drawn by seed.
    """
    if texts.splits is not None:
        named = np.array(texts.splits)
        rows = {split: np.flatnonzero(named == split) for split in SPLITS}
        return rows, f"the rows of {texts.name} whose split is test"
    labels = np.array([classes.index(name) for name in texts.labels or ()])
    train, test = stratified(labels, len(labels), share, seed)
    how = f"{share:.0%} of each class of {texts.name}, drawn with seed {seed}"
    none = np.zeros(0, np.int64)
    return {"train": train, "validation": none, "test": test}, how


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], length: int
) -> tuple[dict[str, np.ndarray], int]:
    """({tokens int32 [n, l], attention bool [n, l]}, how many texts were cut).

    l is the number of tokens of the longest text, at most `length`; `attention` is
    False at padding.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    found = tokenizer.encode_batch(list(texts))
    rows = [encoding.ids for encoding in found]
    tokens = np.full(
        (len(rows), max(map(len, rows))), tokenizer.token_to_id("[PAD]"), np.int32
    )
    attention = np.zeros(tokens.shape, bool)
    for place, row in enumerate(rows):
        tokens[place, : len(row)], attention[place, : len(row)] = row, True
    return {"tokens": tokens, "attention": attention}, sum(
        bool(encoding.overflowing) for encoding in found
    )


def columns(texts: Texts, rows: np.ndarray, **arrays: np.ndarray) -> Columns:
    """These rows of arrays over all texts, as a set for the trainer."""
    chosen = {name: array[rows] for name, array in arrays.items()}
    return Columns(texts.name, chosen, [texts.ids[row] for row in rows])


def new_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A WordPiece tokenizer for lower-case words, trained on these texts."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return tokenizer


def read_tokenizer(text: str, vocabulary: int, where: str) -> Tokenizer:
    """A tokenizer from its JSON; CheckpointError if it is not a WordPiece of BERT's."""
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package raises nothing more specific
        raise CheckpointError(f"{where} is no tokenizer: {error}") from error
    missing = [name for name in SPECIAL if tokenizer.token_to_id(name) is None]
    kind = type(tokenizer.model).__name__
    largest = max(tokenizer.get_vocab().values(), default=0)
    if kind != "WordPiece" or missing or largest >= vocabulary:
        raise CheckpointError(
            f"{where} does not fit: model {kind}, largest token {largest}, without "
            f"{', '.join(missing) or 'nothing'}; expected WordPiece, tokens below "
            f"{vocabulary}, and {', '.join(SPECIAL)}"
        )
    return tokenizer
