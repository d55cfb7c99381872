"""The commands `afterimage ratings` and `afterimage recommend-items`."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from afterimage.commands.flags import Command, parse
from afterimage.console import say, say_result
from afterimage.errors import disk_errors
from afterimage.fields import output_file
from afterimage_ratings.config import RatingsConfig, RecommendConfig

_COLUMNS = ("user_column", "item_column", "rating_column")


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the entry point of a command has."""

    COMMAND: Command[Any]
    work: Callable[[Any], None]

    def main(self, argv: Sequence[str]) -> None:
        """The command."""
        self.work(parse(self.COMMAND, argv))


def _train(config: RatingsConfig) -> None:
    from afterimage_ratings.training import train

    say_result(train(config).text)


def _recommend(config: RecommendConfig) -> None:
    from afterimage.rows import WRITERS
    from afterimage_ratings.recommender import load_recommender
    from afterimage_ratings.table import read_ratings

    out = output_file(config.out, WRITERS)
    model, ratings = load_recommender(config.from_), read_ratings(config)
    known, written = len(set(ratings.items) & set(model.items)), 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal written
        every = model.recommend_all(ratings, config.top, batch_size=config.batch_size)
        for user, best in zip(ratings.users, every):
            for rank, (item, score) in enumerate(best, 1):
                written += 1
                yield {"user": user, "rank": rank, "item": item, "score": score}

    partial = out.with_name(f".{out.name}.partial")
    columns = ("user", "rank", "item", "score")
    try:
        with disk_errors(f"out={out}"):
            WRITERS[out.suffix.lower()](partial, rows(), columns)
            partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    say(
        f"wrote {written:,} rows for {len(ratings.users):,} users to {config.out}; the "
        f"model knows {known:,} of their {len(ratings.items):,} items"
    )


RATINGS = Entry(
    Command(
        name="ratings",
        kind="ratings",
        config=RatingsConfig,
        positional="table",
        about="""\
Train a recommender on users' ratings, from scratch or from one of another category. It
keeps its best step by validation users, and is tested once on other users. The same
command again continues an interrupted run.

  afterimage ratings dramas.csv --like 4 --out runs/dramas
  afterimage ratings comedies.csv --from runs/dramas --out runs/comedies""",
        common={
            "What and where": ("table", *_COLUMNS, "from_", "out"),
            "What is liked, and who is scored": ("like", "validation", "test"),
            "The network": ("model", "width", "latent", "dropout", "beta"),
            "From another category": ("freeze", "inner_lr"),
            "How long": ("steps", "epochs", "batch_size", "eval_every"),
            "How good": ("lr", "weight_decay", "ema", "seed"),
        },
    ),
    _train,
)
RECOMMEND = Entry(
    Command(
        name="recommend-items",
        config=RecommendConfig,
        positional="table",
        about="""\
Write the best items for every user of a table to a file, without those they rated.

  afterimage recommend-items users.csv --from runs/comedies --out best.csv""",
        common={"Settings": ("table", *_COLUMNS, "from_", "out", "top", "batch_size")},
    ),
    _recommend,
)
