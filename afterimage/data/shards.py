"""Images in shards: from their index to image sets, as those of a folder.

Up to `MOST_DECODED` images are decoded when the data are opened, and cached, exactly as
a folder's. More are decoded when they are asked for: opening reads the index and the
headers of a sample, and a host reads only the rows of its own batches.
"""

import fnmatch
import hashlib
import io
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Int64

from afterimage.checkpoints.names import spelling
from afterimage.console import say_once
from afterimage.data.images import image_sets
from afterimage.data.index import MISSING, Column, Index, names_of
from afterimage.data.labels import class_names
from afterimage.data.layout import OPTIONS, exact, layout
from afterimage.data.numbers import say_unknown, table_numbers
from afterimage.data.ondemand import sets_on_demand
from afterimage.data.ranged import Ranged, Shards
from afterimage.data.sets import Numbers, Request, Splits
from afterimage.data.sources import Source
from afterimage.data.sources.folder import listed_kinds
from afterimage.data.table import SYNONYMS, Table
from afterimage.data.workers import check_size
from afterimage.errors import DataError, did_you_mean
from afterimage.reading import NumberReading, ReadingOptions

MOST_DECODED = 100_000
"""Images that are decoded when the data are opened; more are decoded on demand."""
FOLDER = "\0folder"
"""The column that holds the folder of each image inside its shard."""
_SAMPLE = 1024

Opener = Callable[[int], Ranged]
"""The file of a shard, by the shard's number."""


class ShardFiles:
    """The images of an index, as `Files`."""

    def __init__(
        self, index: Index, names: Sequence[str], opener: Opener, threads: int
    ):
        self.index, self._open, self.threads = index, opener, threads
        self.names: Sequence[str] = names_of(index, names, len(names) > 1)
        self._stamp = index.folder.name  # made of the stamps of all shards

    def stamp(self, row: int) -> Sequence[int | str]:
        return (self._stamp, row)

    def size(self, row: int) -> int:
        return self.index.place(row)[1]

    def open(self, row: int) -> io.BufferedIOBase:
        start, size = self.index.place(row)
        check_size(size)
        data = self._open(self.index.shard(row)).read(start, size)
        if len(data) < size:
            raise OSError(f"only {len(data):,} of {size:,} bytes are there")
        return io.BytesIO(data)


class ShardSource(Source):
    """Images in shards, by an index of them."""

    form = "PATTERN"
    remote = True
    tasks = True
    numbers = True
    named_splits = True
    suffix: ClassVar[str]
    """Of the shards in a folder."""

    def open(self, rest: str, request: Request) -> Splits:
        source = f"{self.name}:{spelling(rest)}"
        shards = Shards(rest, self.suffix, source)
        wanted = () if request.numbers is None else request.numbers.columns
        files = self.files(shards, sorted({*request.tasks, *wanted}))
        return open_indexed(files, shards.names, source, request)

    def files(self, shards: Shards, columns: list[str]) -> ShardFiles:
        """The images of the shards; the index has these columns besides the usual."""
        raise NotImplementedError


def sample_digest(index: Index, opener: Opener) -> bytes:
    """SHA-256 of the bytes of evenly spaced images."""
    whole = hashlib.sha256()
    for row in range(0, len(index), max(1, -(-len(index) // _SAMPLE))):
        start, size = index.place(row)
        whole.update(opener(index.shard(row)).read(start, min(size, 2**20)))
    return whole.digest()


def column_for(what: str, names: Sequence[str]) -> str | None:
    """The name that means `what`, a key of SYNONYMS; the first if there are several."""
    known = {name.casefold(): name for name in reversed(names)}
    wanted = (what, *SYNONYMS[what])
    return next((known[name] for name in wanted if name in known), None)


def open_indexed(
    files: ShardFiles, shards: Sequence[str], source: str, request: Request
) -> Splits:
    """The splits of the images of an index.

    A shard's name says its split, or the column `split` or the folders inside. The
    column `label` has the classes, otherwise the folders inside.
    """
    index = files.index
    if index.others:
        kinds = listed_kinds(index.others)
        say_once(f"{source}: other members are ignored: {kinds}")
    if not len(index):
        raise DataError(f"{source} contains no images")
    every = np.arange(len(index))
    label = index.columns.get("label")
    if request.once:
        groups = {"train": every}
    else:
        groups = _splits(index, shards, source, request)
    tasks = {n: index.columns[n] for n in request.tasks if n in index.columns}
    numbers = None
    if request.numbers is not None:
        numbers = _numbers(index, request.numbers, source, request.reading)
        label, tasks = None, {}
    elif label is None and not request.once:
        groups, label = _by_folders(index, groups, source, request)
    classes = None if label is None else _classes(label, "label", source, request)
    more = {n: _classes(c, n, source, request) for n, c in tasks.items()}
    if len(index) > MOST_DECODED:
        return sets_on_demand(files, source, groups, request, classes, more, numbers)
    return image_sets(
        files,
        source,
        {
            split: (
                rows.tolist(),
                [None] * len(rows)
                if classes is None
                else [classes[1][code] for code in classes[0][rows]],
            )
            for split, rows in groups.items()
        },
        request,
        {
            name: [texts[code] for code in codes]
            for name, (codes, texts) in more.items()
        },
        numbers,
    )


def _classes(
    column: Column, name: str, source: str, request: Request
) -> tuple[np.ndarray, list[str | None]]:
    """(the code of each image, the class name of each code)."""
    counts = dict(zip(column.texts, column.counts().tolist(), strict=True))
    counts.pop(MISSING, None)
    where = f"{source}, {name}"
    found = class_names(counts, where, request.reading)
    return column.codes, [found.get(text) for text in column.texts]


def _splits(
    index: Index, shards: Sequence[str], source: str, request: Request
) -> dict[str, Int64[np.ndarray, " n"]]:
    """The rows of each split."""
    given = request.reading.split_folders
    firsts = np.concatenate([[0], index.ends])
    spans = [np.arange(*firsts[at : at + 2]) for at in range(len(shards))]
    column = index.columns.get("split")
    if column is not None and not given:
        wrong = [text for text in column.texts if text and exact(text) is None]
        if wrong or column.counts()[0]:
            raise DataError(
                f"{source}: the column split contains "
                f"{spelling(wrong[0]) if wrong else 'empty cells'}; expected train, "
                "validation or test in each row"
            )
        means = np.array([str(exact(text)) for text in column.texts])
        groups = {s: np.flatnonzero(means[column.codes] == s) for s in set(means[1:])}
    else:
        found = _shard_splits(shards, source, given, request.strict)
        groups = {
            split: np.concatenate(
                [spans[at] for at, s in enumerate(found) if s == split]
            )
            for split in dict.fromkeys(found)
            if split is not None
        }
    groups = {split: rows for split, rows in groups.items() if len(rows)}
    if "train" not in groups:
        raise DataError(
            f"{source} has {' and '.join(sorted(groups)) or 'no images'} but no "
            "training images. Name their shards with --train"
        )
    order = ("train", "validation", "test")
    return {split: groups[split] for split in order if split in groups}


def _words(shard: str) -> set[str]:
    """The splits that words in a shard's path mean: `a/imagenet-train-0001.tar`."""
    found = {exact(word) for word in re.split(r"[^A-Za-z]+", shard)}
    return {split for split in found if split is not None}


def _shard_splits(
    shards: Sequence[str], source: str, given: Mapping[str, str], strict: bool
) -> list[str | None]:
    """The split of each shard; None for one that is not used."""
    words = [_words(shard) for shard in shards]
    usual = [next(iter(found)) if len(found) == 1 else None for found in words]
    picked = {
        split: {at for at, shard in enumerate(shards) if _means(shard, value)}
        for split, value in given.items()
    }
    if given and (strict or any(picked.values())):
        for split, places in picked.items():
            if not places:
                hint = did_you_mean(given[split], shards)
                raise DataError(
                    f"{source}: {OPTIONS[split]} {spelling(given[split])}: no shard "
                    f"has this name, folder or pattern{hint}"
                )
        return [
            next((s for s, places in picked.items() if at in places), None)
            or (
                None if "train" in given or usual[at] in given else usual[at] or "train"
            )
            for at in range(len(shards))
        ]
    if len(set().union(*words)) < 2 and all(words):
        return ["train"] * len(shards)  # one split alone is all there is
    odd = [shard for shard, split in zip(shards, usual) if split is None]
    if any(words) and odd:
        example = next(shard for shard, split in zip(shards, usual) if split)
        raise DataError(
            f"{source}: {spelling(example)} is named after a split, but "
            f"{spelling(odd[0])} is not, or after several. Name the shards of each "
            f"split, e.g. --train 'PATTERN' --test 'PATTERN'"
        )
    return [split or "train" for split in usual]


def _means(shard: str, value: str) -> bool:
    """Whether an option names this shard: its folder, start, or a pattern."""
    value = value.strip("/")
    if value in (".", ""):
        return value == "."
    base = posixpath.basename(shard)
    return (
        shard.startswith((f"{value}/", value))
        or base.startswith(value)
        or fnmatch.fnmatchcase(shard, value)
        or fnmatch.fnmatchcase(base, value)
    )


def _by_folders(
    index: Index, groups: dict[str, np.ndarray], source: str, request: Request
) -> tuple[dict[str, np.ndarray], Column | None]:
    """Splits and classes from the folders inside the shards, as in a folder."""
    folders = index.columns.get(FOLDER)
    if folders is None or not any(folders.texts):
        return groups, None
    used = np.flatnonzero(folders.counts()).tolist()
    # Split and class depend on the folder alone, so one name for each is enough.
    names = [posixpath.join(folders.texts[code], "x") for code in used]
    found = layout(names, source)
    means = np.zeros(len(folders.texts), np.int64)
    texts = [MISSING]
    for _, (places, classes) in found.items():
        for place, name in zip(places, classes):
            if name is not None:
                if name not in texts:
                    texts.append(name)
                means[used[place]] = texts.index(name)
    if set(found) != {"train"}:
        if set(groups) != {"train"}:
            raise DataError(
                f"{source}: both the shards' names and the folders inside name splits"
            )
        groups = {
            split: np.flatnonzero(np.isin(folders.codes, [used[at] for at in places]))
            for split, (places, _) in found.items()
        }
    return groups, Column(means[folders.codes], texts) if len(texts) > 1 else None


def _numbers(
    index: Index, wanted: NumberReading, source: str, reading: ReadingOptions
) -> Numbers | None:
    """Labels that are numbers, read once for each different text of a column."""
    names = wanted.columns or tuple(n for n in ("label",) if n in index.columns)
    missing = [name for name in names if name not in index.columns]
    if missing:
        raise DataError(
            f"{source} has no column {missing[0]!r}. It has "
            f"{', '.join(n for n in index.columns if n != FOLDER) or 'none'}"
        )
    parts = []
    for name in names:
        column = index.columns[name]
        used, first = np.unique(column.codes, return_index=True)
        texts = [column.texts[int(code)] for code in used]
        table = Table({name: texts}, first.tolist(), "image")
        one = wanted
        if wanted.columns:
            one = NumberReading(kind=wanted.kind, columns=(name,), empty=wanted.empty)
        found = table_numbers(table, name, one, f"{source}, {name}", reading)
        assert found is not None
        place = np.zeros(len(column.texts), np.int64)
        place[used] = np.arange(len(used))
        parts.append((found, found.values[place[column.codes]]))
    if not parts:
        return None
    values = np.concatenate([values for _, values in parts], axis=1)
    given = tuple(name for found, _ in parts for name in found.names)
    if wanted.names is not None and len(wanted.names) == len(given):
        given = wanted.names
    numbers = Numbers(values, given)
    say_unknown(numbers, wanted, source)
    return numbers
