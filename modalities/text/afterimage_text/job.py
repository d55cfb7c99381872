"""What both stages on texts share: the start, the tokens, what is said and kept."""

from typing import Any

import msgspec

from afterimage.checkpoints import files
from afterimage.console import say_doing
from afterimage.errors import UserError
from afterimage.runs import Run
from afterimage.stages import OwnStage, open_run
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
    run = open_run(config, kind)
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
    text = run.in_main(lambda: read_file(place).decode("utf-8", "replace"))
    vocabulary = read_tokenizer(text, 2**20, str(place)).get_vocab_size()
    sizes = BertConfig(vocabulary=vocabulary, **config.sizes)
    return Stored(sizes, {"encoder": fresh(sizes, config.seed)}, text, run.where, {})


class TextStage(OwnStage):
    """A stage on texts; subclasses add the parameters, the phases and the scores."""

    def tokenise(self, texts: Texts, stored: Stored) -> None:
        """Sets `arrays`, the tokens of all texts."""
        self.texts, self.stored = texts, stored
        self.tokenizer = read_tokenizer(
            stored.tokenizer, stored.config.vocabulary, stored.where
        )
        self.length = self.config.length or min(LENGTH, stored.config.positions)
        self.arrays, self.cut = encode(self.tokenizer, texts.texts, self.length)

    def facts(self) -> dict[str, str]:
        cut = f"; {self.cut:,} cut to {self.length} tokens" if self.cut else ""
        return {
            "Started from": self.config.from_ or "random weights",
            "Texts": f"{self.counts()} of {self.texts.name}{cut}",
        }

    def trained(self, step: int) -> dict[str, Any]:
        return {**super().trained(step), "cut": self.cut}

    def content(self) -> dict[str, Any]:
        return {
            "model": msgspec.to_builtins(self.stored.config),
            "tokenizer": self.stored.tokenizer,
            "length": self.length,
            **super().content(),
        }
