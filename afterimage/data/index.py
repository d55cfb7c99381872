"""The index of shards: where each image is, its name and its labels, a few bytes each.

It is built in one pass over the shards and kept in the cache folder, under a name made
of their paths and stamps, so that a change makes a new one. Its arrays are memory
maps; names are packed, a thousand together. A single rename publishes it, and a damaged
one is found by its checksums and built again.
"""

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from afterimage.checkpoints import files, schemas
from afterimage.data.sets import Names
from afterimage.errors import DataError
from afterimage.runtime import cache_dir

_FORMAT = 1
_TOGETHER = 1024  # names that are packed together
_BUFFER = 2**16  # entries that are written together
_CHUNK = 2**22
_MOST_TEXT = 2**28
"""Maximum characters of a column's different texts, which are held in memory."""
MISSING = ""
"""The text of an entry without a value."""
PACKED = "packed.bin"
"""The images themselves, where their own file has no random access."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A text for each entry: the different texts, and the number of each entry's."""

    codes: np.ndarray
    texts: Sequence[str]

    def counts(self) -> np.ndarray:
        """How many entries have each text."""
        total = np.zeros(len(self.texts), np.int64)
        for start in range(0, len(self.codes), _CHUNK):
            part = self.codes[start : start + _CHUNK]
            total += np.bincount(part, minlength=len(self.texts))
        return total


@dataclasses.dataclass(frozen=True)
class Index:
    """Entries in the order of their shards; the arrays are memory maps."""

    folder: pathlib.Path
    ends: np.ndarray
    """For each shard, the number of entries up to its end."""
    start: np.ndarray
    """The first byte of each image, in units of `unit` bytes."""
    size: np.ndarray
    unit: int
    columns: Mapping[str, Column]
    fingerprint: str
    """SHA-256 of sizes, names, columns and a sample of the images."""
    others: Mapping[str, int]
    """{suffix: number} of members that were ignored."""
    nbytes: int
    """Bytes on disk, without packed images."""
    _names: "_PackedNames"

    def __len__(self) -> int:
        return len(self.size)

    def shard(self, row: int) -> int:
        """The number of the shard that holds an entry."""
        return int(np.searchsorted(self.ends, row, side="right"))

    def name(self, row: int) -> str:
        """The raw name of an entry inside its shard."""
        return self._names[row]

    def place(self, row: int) -> tuple[int, int]:
        """(first byte, bytes) of an image."""
        return int(self.start[row]) * self.unit, int(self.size[row])


class _PackedNames:
    """Names of entries, unpacked a block at a time."""

    def __init__(self, data: np.ndarray, ends: np.ndarray):
        self._data, self._ends = data, ends
        self._block = functools.lru_cache(64)(self._unpacked)

    def __getitem__(self, row: int) -> str:
        block, place = divmod(row, _TOGETHER)
        return self._block(block)[place].decode("utf-8", "surrogateescape")

    def _unpacked(self, block: int) -> list[bytes]:
        first = int(self._ends[block - 1]) if block else 0
        packed = self._data[first : int(self._ends[block])].tobytes()
        return zlib.decompress(packed).split(b"\0")


def kept(
    key: Any, build: Callable[["IndexWriter"], None], digest: Callable[[Index], bytes]
) -> Index:
    """The index for `key`, JSON; built and kept if there is none, or it is damaged.

    `build` adds every entry; `digest` gives a digest of a sample of the images. Without
    a writable cache folder the index is built in a temporary folder, for this process.
    """
    name = hashlib.sha256(json.dumps([_FORMAT, key]).encode()).hexdigest()
    folder = cache_dir() / "index" / name
    if (found := load(folder)) is not None:
        return found
    scratch = _scratch(folder.parent)
    try:
        writer = IndexWriter(scratch)
        build(writer)
        writer.finish(digest)
        if folder.exists() and load(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process was first, or no cache
            scratch.rename(folder)
        found = load(folder)
        if found is None:
            atexit.register(shutil.rmtree, scratch, ignore_errors=True)
            found = load(scratch)
        elif scratch.exists():
            shutil.rmtree(scratch, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, OSError):
            raise DataError(
                f"the index of the data cannot be written ({error}). Set "
                "AFTERIMAGE_CACHE to a folder on a disk with free space"
            ) from error
        raise
    if found is None:
        raise DataError(f"the index in {scratch} changed while it was read; try again")
    return found


def _scratch(parent: pathlib.Path) -> pathlib.Path:
    """A new folder to build in: in the cache, else a temporary one."""
    with contextlib.suppress(OSError):
        parent.mkdir(parents=True, exist_ok=True)
        return pathlib.Path(tempfile.mkdtemp(dir=parent, prefix=".new-"))
    return pathlib.Path(tempfile.mkdtemp(prefix="afterimage-index-"))


class IndexWriter:
    """Writes an index entry by entry, with a fixed amount of memory."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._ends: list[int] = []
        self._count, self._unit = 0, 1
        self._start, self._size = array("Q"), array("I")
        self._names: list[bytes] = []
        self._packed, self._blocks = 0, array("Q")
        self._codes: dict[str, array[int]] = {}
        self._texts: dict[str, dict[str, int]] = {}
        self._chars: dict[str, int] = {}
        self.others: dict[str, int] = {}

    def add(self, name: str, start: int, size: int, values: Mapping[str, str]) -> None:
        """Add an entry; `values` are its texts by column, none by default."""
        for column in values:
            if column not in self._codes:
                self._texts[column] = {MISSING: 0}
                self._codes[column] = array("i", bytes(4 * len(self._size)))
                self._chars[column] = 0
                with (self.folder / f"{self._file(column)}.bin").open("wb") as file:
                    file.truncate(4 * (self._count - len(self._size)))
        self._count += 1
        self._start.append(start)
        self._size.append(size)
        raw = name.encode("utf-8", "surrogateescape")
        self._names.append(raw.replace(b"\0", rb"\x00"))
        for column, codes in self._codes.items():
            codes.append(self._code(column, values.get(column, MISSING)))
        if len(self._names) == _TOGETHER:
            self._pack()
        if len(self._size) == _BUFFER:
            self._flush()

    def end_shard(self) -> None:
        """All entries of one more shard were added."""
        self._ends.append(self._count)

    def ignore(self, suffix: str) -> None:
        """Count a member that is not used."""
        if suffix in self.others or len(self.others) < 1000:
            self.others[suffix] = self.others.get(suffix, 0) + 1

    def _code(self, column: str, text: str) -> int:
        texts = self._texts[column]
        code = texts.get(text)
        if code is None:
            self._chars[column] += len(text)
            if self._chars[column] > _MOST_TEXT:
                raise DataError(
                    f"the column {column!r} has more than {_MOST_TEXT:,} characters of "
                    "different texts; labels are expected to be short"
                )
            code = texts[text] = len(texts)
        return code

    def _file(self, column: str) -> str:
        return f"codes-{list(self._texts).index(column)}"

    def _pack(self) -> None:
        packed = zlib.compress(b"\0".join(self._names), 6)
        with (self.folder / "names.bin").open("ab") as file:
            file.write(packed)
        self._packed += len(packed)
        self._blocks.append(self._packed)
        self._names = []

    def _flush(self) -> None:
        arrays = {"start": self._start, "size": self._size}
        arrays |= {self._file(column): codes for column, codes in self._codes.items()}
        for name, values in arrays.items():
            with (self.folder / f"{name}.bin").open("ab") as file:
                file.write(values.tobytes())
            del values[:]

    def finish(self, digest: Callable[[Index], bytes]) -> None:
        """Write what is left, each array in the smallest type that holds it."""
        if self._names:
            self._pack()
        self._flush()
        (self.folder / "names-ends.bin").write_bytes(self._blocks.tobytes())
        (self.folder / "names.bin").touch()
        kinds = {"names": "u1", "names-ends": "u8", "size": "u4"}
        kinds["start"], self._unit = _narrow(self.folder / "start.bin", "u8", 512)
        for column in self._texts:
            name = self._file(column)
            kinds[name], _ = _narrow(self.folder / f"{name}.bin", "i4", 1)
        meta = {
            "format": _FORMAT,
            "count": self._count,
            "ends": self._ends,
            "unit": self._unit,
            "kinds": kinds,
            "columns": [[name, list(texts)] for name, texts in self._texts.items()],
            "others": self.others,
            "sums": {name: _checksum(self.folder / f"{name}.bin") for name in kinds},
            "fingerprint": "",
        }
        place = self.folder / "index.json"
        place.write_text(json.dumps(meta))
        found = load(self.folder)
        assert found is not None
        meta["fingerprint"] = self._fingerprint(meta, digest(found))
        place.write_text(json.dumps(meta))

    def _fingerprint(self, meta: Mapping[str, Any], sample: bytes) -> str:
        """Of the content alone: not of where it is in its shards."""
        whole = hashlib.sha256(json.dumps([meta["columns"], self._count]).encode())
        for name in meta["kinds"]:
            if name != "start":
                with (self.folder / f"{name}.bin").open("rb") as file:
                    while part := file.read(_CHUNK):
                        whole.update(part)
        whole.update(sample)
        return whole.hexdigest()


def _narrow(path: pathlib.Path, kind: str, unit: int) -> tuple[str, int]:
    """Store an array's numbers, over `unit` if all divide by it, in fewer bytes."""
    if not path.stat().st_size:
        return kind, 1
    values = np.memmap(path, kind, "r")
    chunks = range(0, len(values), _CHUNK)
    most = max(int(values[at : at + _CHUNK].max()) for at in chunks)
    if any((values[at : at + _CHUNK] % unit).any() for at in chunks):
        unit = 1
    fits = next(k for k in ("u1", "u2", "u4", "u8") if most // unit <= np.iinfo(k).max)
    small = path.with_suffix(".small")
    with small.open("wb") as file:
        for at in chunks:
            file.write((values[at : at + _CHUNK] // unit).astype(fits).tobytes())
    del values
    small.replace(path)
    return fits, unit


def _checksum(path: pathlib.Path) -> int:
    value = 0
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            value = zlib.crc32(part, value)
    return value


def load(folder: pathlib.Path) -> Index | None:
    """The index at `folder`; None if there is none, or it is damaged."""
    try:
        meta = schemas.parse(files.read_bytes(folder / "index.json"))
        if meta["format"] != _FORMAT:
            return None
        paths = {name: folder / f"{name}.bin" for name in meta["kinds"]}
        if any(_checksum(paths[name]) != meta["sums"][name] for name in paths):
            return None
        maps = {name: _map(paths[name], kind) for name, kind in meta["kinds"].items()}
        columns = {
            name: Column(maps[f"codes-{place}"], texts)
            for place, (name, texts) in enumerate(meta["columns"])
        }
        sized = [maps["start"], maps["size"], *(c.codes for c in columns.values())]
        if any(len(values) != meta["count"] for values in sized):
            return None
        return Index(
            folder=folder,
            ends=np.array(meta["ends"], np.int64),
            start=maps["start"],
            size=maps["size"],
            unit=int(meta["unit"]),
            columns=columns,
            fingerprint=str(meta["fingerprint"]),
            others=dict(meta["others"]),
            nbytes=sum(
                os.path.getsize(p) for p in (*paths.values(), folder / "index.json")
            ),
            _names=_PackedNames(maps["names"], maps["names-ends"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _map(path: pathlib.Path, kind: str) -> np.ndarray:
    if not path.stat().st_size:  # nothing to map
        return np.empty(0, kind)
    return np.memmap(path, kind, "r")


def names_of(index: Index, shards: Sequence[str], several: bool) -> Names:
    """The name of every entry, after its shard's if there are several."""

    def name(row: int) -> str:
        own = index.name(row)
        return f"{shards[index.shard(row)]}/{own}" if several else own

    return Names(name, range(len(index)))
