"""Large files that are read a range at a time, and the patterns that name them.

Everything that shards read goes through `open_ranged`: files of a disk, and objects of
a bucket (`s3://`, `gs://`).
"""

import concurrent.futures
import fnmatch
import functools
import glob
import io
import os
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from afterimage.checkpoints.files import open_regular, reason
from afterimage.checkpoints.names import spelling
from afterimage.errors import DataError, UserError
from afterimage.runtime import cores
from afterimage.storage.bucket import THREADS, Bucket
from afterimage.storage.urls import is_remote, problem, scheme_of

_OPEN = 64  # files kept open
_MOST_NAMES = 2**20  # of one pattern


@runtime_checkable
class Ranged(Protocol):
    """A file of known size, read from several threads at once."""

    size: int

    def read(self, start: int, length: int) -> bytes:
        """The bytes from `start` on, fewer at the end; OSError if they cannot be read.

        `length` is at most what the caller is ready to hold.
        """
        ...


class LocalFile:
    """A regular file on a disk."""

    def __init__(self, path: str):
        self._file = open_regular(path)
        self.size = os.fstat(self._file.fileno()).st_size
        self._lock = threading.Lock()

    def read(self, start: int, length: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), length, start)
        with self._lock:  # Windows
            self._file.seek(start)
            return self._file.read(length)

    def __del__(self) -> None:
        if "_file" in vars(self):
            self._file.close()


class RemoteFile:
    """An object of a bucket."""

    def __init__(self, url: str, size: int):
        self._bucket, self.size = Bucket(url), size

    def read(self, start: int, length: int) -> bytes:
        end = min(start + length, self.size)
        return self._bucket.get("", start, end) if start < end else b""


def stamp_of(path: str) -> tuple[Any, ...]:
    """Its size, and what changes whenever it does; DataError if it cannot be read."""
    try:
        if is_remote(path):
            entry = Bucket(path).entry()
            return (entry.size, entry.stamp)
        found = os.stat(path)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        why = "does not exist" if missing else reason(error)
        raise DataError(f"{spelling(path)} {why}") from error
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@functools.lru_cache(_OPEN)
def open_ranged(path: str, stamp: tuple[Any, ...]) -> Ranged:
    """The file at `path`, which had this stamp; OSError if it cannot be opened.

    Files are kept open, and closed when nothing uses them any more.
    """
    # A changed file has another stamp, and is opened again.
    return RemoteFile(path, stamp[0]) if is_remote(path) else LocalFile(path)


class RangedFile(io.RawIOBase):
    """A `Ranged` as a seekable file, for libraries that want one."""

    def __init__(self, source: Ranged):
        self._source, self._place = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {
            io.SEEK_SET: 0,
            io.SEEK_CUR: self._place,
            io.SEEK_END: self._source.size,
        }
        self._place = max(0, base[whence] + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        part = self._source.read(self._place, len(buffer))
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)


class Shards:
    """The files that a pattern names: their paths, short names and stamps.

    `pattern` is a file, a folder (every file below it with `suffix`), or a pattern with
    `*`, `?`, `[…]`, `**/`, and braces: `{000..099}` or `{train,test}`. Raises DataError
    if nothing matches, or a file named in full does not exist.
    """

    def __init__(self, pattern: str, suffix: str, source: str):
        self.source = source
        found = {p: None for part in braces(pattern) for p in _matches(part, suffix)}
        self.paths: Sequence[str] = list(found)
        if not self.paths:
            raise DataError(
                f"{source}: no file matches; expected a {suffix} file, a folder of "
                f"them, or a pattern such as shard-{{000..099}}{suffix}"
            )
        self.threads = THREADS if any(map(is_remote, self.paths)) else cores()
        """How many threads should read at once: a request waits long."""
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            self.stamps = list(pool.map(stamp_of, self.paths))
        self.names: Sequence[str] = _short(self.paths)

    def open(self, number: int) -> Ranged:
        """One of the files; OSError if it cannot be opened."""
        return open_ranged(self.paths[number], self.stamps[number])


def _short(paths: Sequence[str]) -> list[str]:
    """The paths below the folder that they share."""
    parts = [
        (path if is_remote(path) else os.path.abspath(path)).replace(os.sep, "/")
        for path in paths
    ]
    folders = [part.split("/")[:-1] for part in parts]
    same = [len(set(level)) == 1 for level in zip(*folders)]
    shared = same.index(False) if False in same else len(same)
    return ["/".join(part.split("/")[shared:]) for part in parts]


def _matches(part: str, suffix: str) -> Iterator[str]:
    if scheme_of(part) is not None:
        yield from _objects(part, suffix)
        return
    place = os.path.expanduser(part)
    if "\0" in place:
        return
    if os.path.isdir(place):
        inside = os.path.join(glob.escape(place), "**", f"*{suffix}")
        yield from sorted(filter(os.path.isfile, glob.iglob(inside, recursive=True)))
    elif glob.has_magic(place) and not os.path.exists(place):
        yield from sorted(filter(os.path.isfile, glob.iglob(place, recursive=True)))
    else:
        yield place


def _objects(url: str, suffix: str) -> Iterator[str]:
    """The objects that a URL names: one, those below it, or those of a pattern."""
    if not is_remote(url):
        raise UserError(f"{spelling(url)}: {problem(url)}")
    url = url.rstrip("/")
    if url.endswith(suffix) and not glob.has_magic(url):
        yield url
        return
    folder = url
    while glob.has_magic(folder):
        folder = folder.rpartition("/")[0]
    pattern = url[len(folder) + 1 :] or f"*{suffix}"
    for name in Bucket(folder).entries():
        if fnmatch.fnmatchcase(name, pattern):
            yield f"{folder}/{name}"


_BRACES = re.compile(r"\{([^{}]*)\}")
_SPAN = re.compile(r"(\d+)\.\.(\d+)")


def braces(pattern: str) -> list[str]:
    """`a{00..02}` -> a00, a01, a02; `{b,c}` -> b, c; several multiply.

    Raises DataError for more than a million names.
    """
    found = _BRACES.search(pattern)
    if found is None or not (_SPAN.fullmatch(found[1]) or "," in found[1]):
        return [pattern]
    before, after = pattern[: found.start()], braces(pattern[found.end() :])
    if span := _SPAN.fullmatch(found[1]):
        first, last = int(span[1]), int(span[2])
        count, wide = abs(last - first) + 1, len(span[1])
        numbers = (
            range(first, last + 1) if first <= last else range(first, last - 1, -1)
        )
        texts = (f"{number:0{wide}}" for number in numbers)
    else:
        count, texts = found[1].count(",") + 1, iter(found[1].split(","))
    if count * len(after) > _MOST_NAMES:
        raise DataError(
            f"{spelling(pattern)} names {count * len(after):,} files; at most "
            f"{_MOST_NAMES:,} are possible"
        )
    return [f"{before}{text}{rest}" for text in texts for rest in after]
