"""The commands `afterimage ratings` and `afterimage recommend-items`."""

from collections.abc import Iterator
from typing import Any

from afterimage.commands.flags import Command, PackageCommand
from afterimage.fields import output_file
from afterimage_ratings.config import RatingsConfig, RecommendConfig

_COLUMNS = ("user_column", "item_column", "rating_column")


def _train(config: RatingsConfig) -> str:
    from afterimage_ratings.training import train

    return train(config).text


def _recommend(config: RecommendConfig) -> str:
    from afterimage.rows import WRITERS, write_table
    from afterimage_ratings.recommender import load_recommender
    from afterimage_ratings.table import read_ratings

    output_file(config.out, WRITERS)  # before reading
    model, ratings = load_recommender(config.from_), read_ratings(config)
    known, written = len(set(ratings.items) & set(model.items)), 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal written
        every = model.recommend_all(ratings, config.top, batch_size=config.batch_size)
        for user, best in zip(ratings.users, every):
            for rank, (item, score) in enumerate(best, 1):
                written += 1
                yield {"user": user, "rank": rank, "item": item, "score": score}

    write_table(config.out, rows(), ("user", "rank", "item", "score"))
    return (
        f"wrote {written:,} rows for {len(ratings.users):,} users to {config.out}; the "
        f"model knows {known:,} of their {len(ratings.items):,} items"
    )


RATINGS = PackageCommand(
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
RECOMMEND = PackageCommand(
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
