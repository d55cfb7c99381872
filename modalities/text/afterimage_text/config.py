"""Settings of runs on texts: frozen, documented, checked on construction."""

import dataclasses
from typing import Literal

from afterimage.fields import above_0, at_least_0, at_least_1
from afterimage.settings import given_problems
from afterimage.training.options import RunOptions, TrainingOptions, check

_SMALL = {"width": 128, "depth": 4, "vocabulary": 8000}
_HEAD_WIDTH = 32
LENGTH, POSITIONS = 128, 512
"""The usual length of texts, and the most tokens that a network can read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOptions(TrainingOptions, RunOptions):
    """Which texts, and which network."""

    table: str
    """The texts: a CSV file, with or without csv: before it, or JSON lines (.jsonl).
    One column holds the text."""

    text_column: str = "text"
    """The column that holds the text."""

    from_: str | None = None
    """Weights and tokenizer to start from: minilm (needs the [minilm] extra), a folder
    with Hugging Face's config.json, model.safetensors and tokenizer.json of a BERT, or
    a finished run of text-pretrain or text-finetune. Default: a small new network and a
    new WordPiece vocabulary of the training texts."""

    length: int | None = None
    """Tokens of a text, at most; the rest is cut off, and such texts are counted.
    Default: 128, or what the weights allow."""

    width: int | None = None
    """Width of a new network, in multiples of 32. Default: 128."""

    depth: int | None = None
    """Blocks of a new network. Default: 4."""

    vocabulary: int | None = None
    """Tokens of a new vocabulary, at most. Default: 8000."""

    epochs: float | None = None
    """Passes over the training texts, instead of steps. Default: 10; 100 for a probe,
    whose features are computed once."""

    batch_size: int = 32
    """Texts per step, over all devices."""

    weight_decay: float = 0.01
    """AdamW's decoupled weight decay; not applied to norms and biases."""

    def __post_init__(self) -> None:
        check(given_problems(self))
        parts = (TrainingOptions.problems(self), RunOptions.problems(self))
        check(*parts, self.problems())

    def problems(self) -> list[str]:
        """Every setting of this package that cannot work, in one list."""
        found = []
        if self.length is not None and not 3 <= self.length <= 2**16:
            found.append(f"length={self.length}: must be from 3 to {2**16}")
        for name, most in {"width": 2**14, "depth": 256, "vocabulary": 2**20}.items():
            value = getattr(self, name)
            if value is None:
                continue
            if self.from_ is not None:
                found.append(f"{name}={value}: only for a new network, without --from")
            least = {"width": _HEAD_WIDTH, "depth": 1, "vocabulary": 100}[name]
            if not least <= value <= most or (name == "width" and value % _HEAD_WIDTH):
                found.append(f"{name}={value}: must be from {least} to {most}")
        return found

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of a new network, without its vocabulary's."""
        width = self.width or _SMALL["width"]
        return {
            "width": width,
            "depth": self.depth or _SMALL["depth"],
            "heads": width // _HEAD_WIDTH,
            "hidden": 4 * width,
            "positions": max(POSITIONS, self.length or 0),
        }

    @property
    def most_tokens(self) -> int:
        """The size that a new vocabulary may have."""
        return self.vocabulary or _SMALL["vocabulary"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(TextOptions):
    """Predict masked tokens of own texts."""

    lr: float = 1e-4
    """Peak learning rate, reached after the warm-up."""

    validation: float = 0.1
    """Share of the texts held out, drawn by seed, on which the loss is measured."""

    def problems(self) -> list[str]:
        """Every setting of this package that cannot work, in one list."""
        found = super().problems()
        if not 0 < self.validation < 1:
            found.append(f"validation={self.validation}: must be in (0, 1)")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TextOptions):
    """Train a classifier of texts."""

    label_column: str = "label"
    """The column that holds the class. A column `split`, if there is one, says train,
    validation or test."""

    test: float = 0.2
    """Share of each class held out for the test, drawn by seed, if there is no column
    `split`."""

    mode: Literal["probe", "two-phase", "full"] = "full"
    """What learns. probe: only the head; the encoder is frozen. two-phase: first the
    head, for a third of the steps, then everything. full: everything at once."""

    lr: float = 1e-3
    """Peak learning rate of the head, reached after the warm-up."""

    encoder_lr: float | None = None
    """Multiplies the learning rate of the encoder. Default: 0.05, and 1 for a new
    network."""

    layer_decay: float = 1.0
    """Layer-wise learning-rate decay d: block l of L learns at lr · encoder_lr · d^(L -
    l), the embeddings as block 0."""

    l2_sp: float = 0.0
    """Weight of half the squared distance of the encoder from its start (L2-SP). Needs
    --weight-decay 0."""

    def problems(self) -> list[str]:
        """Every setting of this package that cannot work, in one list."""
        found = super().problems()
        found += at_least_0(self, "l2_sp") + above_0(self, "encoder_lr")
        if not 0 < self.test < 1:
            found.append(f"test={self.test}: must be in (0, 1)")
        if not 0 < self.layer_decay <= 1:
            found.append(f"layer_decay={self.layer_decay}: must be in (0, 1]")
        if self.from_ is None and self.mode != "full":
            found.append(f"mode={self.mode}: needs weights to start from; give --from")
        if self.from_ is None and self.l2_sp:
            found.append(
                f"l2_sp={self.l2_sp}: needs weights to start from; give --from"
            )
        unused = {"layer_decay": 1.0, "l2_sp": 0.0, "encoder_lr": None}
        if self.mode == "probe":
            found += [
                f"{name}={getattr(self, name)}: no effect, as mode=probe freezes the "
                "encoder"
                for name, usual in unused.items()
                if getattr(self, name) != usual
            ]
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class UseConfig:
    """Texts to classes or vectors, into a file."""

    table: str
    """The texts: a CSV file, with or without csv: before it, or JSON lines (.jsonl).
    One column holds the text."""

    from_: str
    """A finished run; for vectors also minilm, or a folder of Hugging Face's files."""

    out: str
    """The file to write: .csv, .jsonl or .parquet, a row for each text."""

    text_column: str = "text"
    """The column that holds the text."""

    batch_size: int = 64
    """Texts computed together."""

    def __post_init__(self) -> None:
        check(given_problems(self), at_least_1(self, "batch_size"))
