"""Tables of ratings, as sparse rows of users."""

import dataclasses
import hashlib
import json
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Bool, Float32, Int, Int8, Int32, Int64

from afterimage.checkpoints import files
from afterimage.checkpoints.names import printable
from afterimage.data.sets import Empty
from afterimage.data.table import listed
from afterimage.errors import DataError, did_you_mean
from afterimage_ratings.config import RatingsConfig, TableOptions

SPLITS = ("train", "validation", "test")
_FOLD = 5
"""One of so many ratings of a held-out user is scored; the model sees the others."""
_LONGEST = 1024
"""Characters of an id."""


@dataclasses.dataclass(frozen=True, eq=False)
class Ratings:
    """Ratings by user: those of user u are `item[start[u] : start[u + 1]]`, sorted by
    item, with their `value`. Users and items are sorted by id."""

    name: str
    users: list[str]
    items: list[str]
    start: Int64[np.ndarray, " u+1"]
    item: Int32[np.ndarray, " n"]
    value: Float32[np.ndarray, " n"]
    split: Int8[np.ndarray, " u"] | None = None
    """The place in SPLITS of each user, if the table says it."""
    repeated: int = 0
    """Ratings that a later line of the same user and item replaced."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that a run depends on."""
        digest = hashlib.sha256(json.dumps([self.users, self.items]).encode())
        for part in (self.start, self.item, self.value, self.split):
            digest.update(b"-" if part is None else part.tobytes())
        return digest.hexdigest()

    def places(self, users: Int[np.ndarray, " k"]) -> Int64[np.ndarray, " n"]:
        """Where the ratings of these users are, user by user."""
        counts = self.start[users + 1] - self.start[users]
        ends = np.cumsum(counts)
        first = np.repeat(self.start[users] - ends + counts, counts)
        return first + np.arange(len(first))


def read_ratings(options: TableOptions) -> Ratings:
    """The ratings of a CSV file, in memory in proportion to their number.

    A later line of the same user and item replaces an earlier one. Raises DataError for
    a file that cannot be read, a missing column, and lines that are no ratings.
    """
    place = options.table.removeprefix("csv:")
    named = [options.user_column, options.item_column]
    named += [] if options.rating_column == "none" else [options.rating_column]
    table = _read(place, named)
    if not len(table):
        raise DataError(f"{place} has no ratings below its first line")
    (user, users), (item, items) = (_codes(table, name) for name in named[:2])
    for name, code, ids in ((named[0], user, users), (named[1], item, items)):
        bad = [n for n, i in enumerate(ids) if not i or "\0" in i or len(i) > _LONGEST]
        _refuse(np.isin(code, bad), f"has no {name} that is an id", place)
    value = np.ones(len(table), np.float32)
    if len(named) == 3:
        value = table[named[2]].to_numpy().astype(np.float32)
        _refuse(~np.isfinite(value), f"has a {named[2]} that is no number", place)
    # The last of equal keys stays: the sort keeps the order of the lines.
    key = user.astype(np.int64) * len(items) + item
    order = np.argsort(key, kind="stable")
    order = order[np.append(np.diff(key[order]) > 0, True)]
    start = np.searchsorted(user[order], np.arange(len(users) + 1))
    return Ratings(
        place,
        users,
        items,
        start.astype(np.int64),
        item[order].astype(np.int32),
        value[order],
        _splits(table, user, len(users), place)
        if "split" in table.column_names
        else None,
        len(table) - len(order),
    )


def _read(place: str, named: list[str]) -> pa.Table:
    """These columns, and `split` if there is one."""
    try:
        with pathlib.Path(place).open("rb") as file:
            first = file.readline(2**16).decode("utf-8-sig", "replace")
    except (OSError, ValueError) as error:  # a path with a NUL
        raise DataError(f"{printable(place)} {files.reason(error)}") from error
    comma = max(",;\t", key=first.count)
    known = [name.strip().strip('"') for name in first.strip().split(comma)]
    wrong = [name for name in named if known.count(name) != 1]
    if wrong or len(set(named)) < len(named):
        name = (wrong or named)[0]
        raise DataError(
            f"{place} needs one column {name!r}{did_you_mean(name, known)} It has: "
            f"{printable(', '.join(known))[:200] or 'none'}. Name the right ones with "
            "--user-column, --item-column and --rating-column"
        )
    word = pa.dictionary(pa.int32(), pa.string())
    types = dict.fromkeys(("split", *named[:2]), word)
    types |= {name: pa.float64() for name in named[2:]}
    wanted = [*named, *(["split"] if known.count("split") == 1 else [])]
    try:
        return pyarrow.csv.read_csv(
            place,
            read_options=pyarrow.csv.ReadOptions(use_threads=False),  # counts lines
            parse_options=pyarrow.csv.ParseOptions(delimiter=comma),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types, include_columns=wanted, null_values=[]
            ),
        ).unify_dictionaries()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{place} is no table of ratings: {printable(str(error))[:400]}. Expected "
            f"lines with {', '.join(named)}, in UTF-8, and ratings that are numbers"
        ) from error


def _codes(table: pa.Table, name: str) -> tuple[np.ndarray, list[str]]:
    """(the place of each line's word in the list, the sorted words)."""
    column = table[name].combine_chunks()
    words = np.array(column.dictionary.to_pylist(), object)
    order = np.argsort(words, kind="stable")
    rank = np.argsort(order, kind="stable")
    return rank[column.indices.to_numpy()], words[order].tolist()


def _refuse(wrong: np.ndarray, what: str, place: str) -> None:
    """DataError that lists the first wrong lines, if there are any."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        lines = [f"rating {row + 1} below the first line {what}" for row in rows]
        raise DataError(listed(lines, place))


def _splits(table: pa.Table, user: np.ndarray, count: int, place: str) -> Any:
    """The split of each user, from that of each line."""
    code, names = _codes(table, "split")
    number = [SPLITS.index(n) if n in SPLITS else -1 for n in map(str.casefold, names)]
    code = np.array(number, np.int8)[code]
    _refuse(code < 0, f"has another split than {', '.join(SPLITS)}", place)
    found = np.zeros(count, np.int8)
    found[user] = code
    _refuse(found[user] != code, "is of a user who is in another split too", place)
    return found


def split_users(
    ratings: Ratings, config: RatingsConfig
) -> dict[str, Int64[np.ndarray, " k"]]:
    """{train, validation, test: users}: by the column split, else drawn by seed."""
    rng = np.random.default_rng(config.seed)
    order = rng.permutation(len(ratings.users))
    if ratings.split is None:
        cut = round(config.test * len(order))
        found = {"test": order[:cut], "validation": order[:0], "train": order[cut:]}
    else:
        named = ratings.split[order]
        found = {name: order[named == n] for n, name in enumerate(SPLITS)}
    if not len(found["validation"]):
        cut = round(config.validation * len(found["train"]))
        found |= {"validation": found["train"][:cut], "train": found["train"][cut:]}
    empty = [name for name in SPLITS if not len(found[name])]
    if empty:
        raise DataError(
            f"{ratings.name}: no user for {' and '.join(empty)}, of "
            f"{len(order):,} users; give more, change the column split, or raise "
            "--validation or --test"
        )
    return {name: np.sort(found[name]) for name in SPLITS}


def held_out(
    ratings: Ratings, users: Int[np.ndarray, " k"], seed: int
) -> Bool[np.ndarray, " n"]:
    """Of all ratings, those of these users that are not folded in.

    A fifth of each user's ratings, rounded down; none of users with fewer than 5 (Liang
    et al. 2018). Drawn by the seed and the user's id, so that they do not depend on the
    other users of a table.
    """
    held = np.zeros(len(ratings.item), bool)
    for user in users:
        first, count = ratings.start[user], np.diff(ratings.start[user : user + 2])[0]
        mark = zlib.crc32(ratings.users[user].encode())
        drawn = np.random.default_rng([seed, mark]).permutation(count)
        held[first + drawn[: count // _FOLD]] = True
    return held


@dataclasses.dataclass(frozen=True, eq=False)
class UserRows:
    """Users as rows of a batch: `ratings` float32 [b, items], NaN where there is none.

    Sparse in memory; only the rows of a batch are dense. With `held`, a mark of each
    rating, the marked ones are missing in `ratings`, and are in `held`.
    """

    ratings: Ratings
    users: Int64[np.ndarray, " k"]
    held: Bool[np.ndarray, " n"] | None = None
    in_memory = True

    @property
    def name(self) -> str:
        return self.ratings.name

    @property
    def ids(self) -> Sequence[str]:
        return [self.ratings.users[user] for user in self.users]

    @property
    def row_bytes(self) -> int:
        return 4 * len(self.ratings.items) * (1 if self.held is None else 2)

    def __len__(self) -> int:
        return len(self.users)

    def inputs(
        self, rows: Int[np.ndarray, " b"], empty: Empty | None = None
    ) -> dict[str, np.ndarray]:
        """{"ratings"}, and with marks {"held"}: float32 [b, items]."""
        del empty
        users, table = self.users[rows], self.ratings
        places = table.places(users)
        row = np.repeat(
            np.arange(len(users)), table.start[users + 1] - table.start[users]
        )
        if self.held is None:
            return {"ratings": self._dense(row, places, len(users))}
        held = self.held[places]
        return {
            "ratings": self._dense(row[~held], places[~held], len(users)),
            "held": self._dense(row[held], places[held], len(users)),
        }

    def _dense(self, row: np.ndarray, places: np.ndarray, rows: int) -> np.ndarray:
        made = np.full((rows, len(self.ratings.items)), np.nan, np.float32)
        made[row, self.ratings.item[places]] = self.ratings.value[places]
        return made

    def targets(self, rows: Int[np.ndarray, " b"]) -> dict[str, np.ndarray]:
        """None: a row is its own target."""
        del rows
        return {}
