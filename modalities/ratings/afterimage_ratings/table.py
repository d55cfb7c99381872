"""Tables of ratings, as sparse rows of users."""

import dataclasses
import hashlib
import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Float32, Int, Int8, Int64
from scipy.sparse import csr_array

from afterimage.checkpoints import files
from afterimage.checkpoints.names import printable
from afterimage.data.sets import Empty
from afterimage.data.table import listed
from afterimage.errors import DataError, did_you_mean
from afterimage_ratings.config import RatingsConfig, TableOptions

SPLITS = ("train", "validation", "test")
_FOLD = 5
"""A held-out user's ratings are cut into this many parts: one is scored, the model sees
the others."""
_LONGEST = 1024
"""Characters of an id."""


@dataclasses.dataclass(frozen=True, eq=False)
class UserRows:
    """Users as rows of a batch, sparse in memory: only those of a batch are dense.

    `ratings` is what the model sees; of users that are scored, `held` is what it is
    scored by. Both have a row for each user, and no entry where there is no rating.
    """

    name: str
    ids: Sequence[str]
    parts: Mapping[str, csr_array]

    @property
    def in_memory(self) -> bool:
        """Whether rows are read without the disk."""
        return True

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def row_bytes(self) -> int:
        """Bytes of one dense row."""
        return 4 * sum(np.shape(part)[1] for part in self.parts.values())

    def inputs(
        self, rows: Int[np.ndarray, " b"], empty: Empty | None = None
    ) -> dict[str, Float32[np.ndarray, "b n"]]:
        """{name of the part: ratings, NaN where there is none}."""
        found = {}
        for name, part in self.parts.items():
            cells = part[rows].tocoo()
            found[name] = np.full(np.shape(cells), np.nan, np.float32)
            found[name][cells.row, cells.col] = cells.data
        return found

    def targets(self, rows: Int[np.ndarray, " b"]) -> dict[str, np.ndarray]:
        """None: a row is its own target."""
        return {}


@dataclasses.dataclass(frozen=True, eq=False)
class Ratings:
    """Ratings of one table. Users and items are sorted by id."""

    name: str
    users: list[str]
    items: list[str]
    matrix: csr_array
    """float32 [users, items], no entry where there is no rating."""
    split: Int8[np.ndarray, " u"] | None = None
    """The place in SPLITS of each user, if the table says it."""
    repeated: int = 0
    """Ratings that a later line of the same user and item replaced."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that a run depends on."""
        digest = hashlib.sha256(json.dumps([self.users, self.items]).encode())
        for part in (self.matrix.indptr, self.matrix.indices):
            digest.update(part.astype(np.int64).tobytes())
        digest.update(self.matrix.data.tobytes())
        digest.update(b"" if self.split is None else self.split.tobytes())
        return digest.hexdigest()

    def rows(self, users: Int[np.ndarray, " k"]) -> UserRows:
        """All ratings of these users."""
        ids = [self.users[user] for user in users]
        return UserRows(self.name, ids, {"ratings": self.matrix[users]})

    def folded(self, users: Int[np.ndarray, " k"], seed: int) -> UserRows:
        """These users with a fifth of their ratings, rounded down, held out.

        As Liang et al. (2018): none of users with fewer than 5. Drawn by the seed and a
        user's id, so that it does not depend on the other users of a table.
        """
        whole = self.rows(users)
        cells = whole.parts["ratings"].tocoo()
        held = [np.zeros(0, bool)]
        for name, count in zip(whole.ids, np.diff(self.matrix[users].indptr)):
            draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
            held.append(draw.permutation(count).argsort() < count // _FOLD)
        marks = np.concatenate(held)
        parts = {
            part: csr_array(
                (cells.data[here], (cells.row[here], cells.col[here])), cells.shape
            )
            for part, here in (("ratings", ~marks), ("held", marks))
        }
        return UserRows(self.name, whole.ids, parts)


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
    shape = (len(users), len(items))
    matrix = csr_array((value[order], item[order], start), shape)
    split = None
    if "split" in table.column_names:
        split = _splits(table, user, len(users), place)
    return Ratings(place, users, items, matrix, split, len(table) - len(order))


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
