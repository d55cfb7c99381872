"""A folder of objects: the few operations that everything remote is made of."""

import contextlib
import dataclasses
import datetime
import functools
import importlib.util
import io
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from afterimage.checkpoints.files import open_regular
from afterimage.errors import UserError
from afterimage.storage.faults import HalfWritten, RemoteError, retried
from afterimage.storage.urls import (
    SCHEMES,
    as_text,
    is_remote,
    problem,
    scheme_of,
)

Result = TypeVar("Result")
THREADS = 32
"""Requests at once: one request waits long, and needs little else."""
_BLOCK = 2**20  # bytes of one ranged read
_CONNECT, _READ = 10, 60  # seconds without an answer
_STAMPS = ("ETag", "etag", "generation", "md5Hash", "LastModified", "created")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One object in a listing."""

    size: int
    stamp: str
    """Changes whenever the content does: the store's ETag, or what it has."""


class Bucket:
    """The objects below a URL such as `s3://bucket/runs/a`, by relative name.

    Every operation is tried again while its error is one that may pass (timeouts, 5xx,
    too many requests), and raises RemoteError otherwise; FileNotFoundError for an
    object that is not there.
    """

    def __init__(self, url: str):
        self.url = as_text(url)
        if wrong := problem(self.url):
            raise UserError(f"{url}: {wrong}")
        self._scheme = scheme_of(self.url) or ""
        require_backend(self.url)

    def path(self, name: str = "") -> str:
        """The URL of an object."""
        return f"{self.url}/{name}" if name else self.url

    def entries(self, under: str = "") -> dict[str, Entry]:
        """{name: entry} of every object below, sorted by name; empty without any."""

        def find() -> Mapping[str, Any]:
            with contextlib.suppress(FileNotFoundError):
                # A file is found as itself: not below.
                return self._fs.find(self.path(under), detail=True)
            return {}

        found = self._try(find, self.path(under), "cannot be listed")
        start = self._fs._strip_protocol(self.url).rstrip("/") + "/"
        return {
            name: _entry(info)
            for key, info in sorted(found.items())
            if key.startswith(start) and (name := key[len(start) :])
            if not key.endswith("/") and info.get("type", "file") == "file"
        }

    def entry(self, name: str = "") -> Entry:
        """Size and stamp of one object."""

        def look() -> Entry:
            info = self._fs.info(self.path(name))
            if info["type"] != "file":
                raise FileNotFoundError(self.path(name))
            return _entry(info)

        return self._try(look, self.path(name), "cannot be read")

    def get(self, name: str = "", start: int | None = None, end: int | None = None):
        """The bytes of one object, or those from `start` to before `end`."""

        def cat() -> bytes:
            data = self._fs.cat_file(self.path(name), start=start, end=end)
            if start is not None and end is not None and len(data) != end - start:
                raise HalfWritten(f"{len(data)} bytes came; expected {end - start}")
            return data

        return self._try(cat, self.path(name), "cannot be read")

    def put(self, name: str, data: bytes, *, create: bool = False) -> None:
        """Write an object whole; with `create` FileExistsError if there is one."""
        mode = "create" if create else "overwrite"
        self._try(
            lambda: self._fs.pipe_file(self.path(name), data, mode=mode),
            self.path(name),
            "cannot be written",
        )

    def upload(self, file: pathlib.Path, name: str) -> None:
        """Write a local file as one object, and compare its size."""

        def put() -> None:
            size = file.stat().st_size
            self._fs.put_file(str(file), self.path(name))
            stored = self._fs.info(self.path(name))["size"]
            if stored != size:
                raise HalfWritten(f"{stored} bytes were stored; expected {size}")

        if not file.is_file():  # a fault of this disk, not of the store
            raise FileNotFoundError(file)
        self._try(put, self.path(name), "cannot be written")

    def download(self, name: str, file: pathlib.Path) -> None:
        """Write an object to a local file, whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name[:200]}.partial")

        def fetch() -> None:
            size = self._fs.info(self.path(name))["size"]
            self._fs.get_file(self.path(name), str(partial))
            if partial.stat().st_size != size:
                raise HalfWritten(f"{partial.stat().st_size} bytes of {size} came")

        try:
            self._try(fetch, self.path(name), "cannot be read")
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def copy(self, name: str, to: str) -> None:
        """Copy an object inside the store."""
        self._try(
            lambda: self._fs.cp_file(self.path(name), self.path(to)),
            self.path(name),
            "cannot be copied",
        )

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects in this order; those that are gone already are fine."""

        def remove(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self.path(name))

        for name in names:
            path = self.path(name)
            self._try(functools.partial(remove, name), path, "cannot be deleted")

    def modified(self, name: str) -> datetime.datetime:
        """When an object was written, by the clock of the store."""
        when = self._try(
            lambda: self._fs.modified(self.path(name)), self.path(name), "has no date"
        )
        return when if when.tzinfo else when.replace(tzinfo=datetime.UTC)

    @property
    def _fs(self) -> Any:
        return filesystem(self._scheme, os.getpid())

    def _try(self, action: Callable[[], Result], url: str, doing: str) -> Result:
        try:
            return retried(action, url, doing)
        except RemoteError as error:
            if error.kind in ("expired", "denied"):
                filesystem.cache_clear()  # the next try reads the credentials again
            raise


@functools.cache
def filesystem(scheme: str, process: int) -> Any:
    """fsspec's file system for a scheme, without caches and with few own retries.

    One per process: connections do not survive a fork.
    """
    del process
    import fsspec

    if scheme == "memory":
        return fsspec.filesystem("memory")
    common = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "gs":
        return fsspec.filesystem("gs", **common)
    from fsspec.config import conf

    own = {
        "retries": {"mode": "standard", "total_max_attempts": 1},
        "connect_timeout": _CONNECT,
        "read_timeout": _READ,
        "max_pool_connections": THREADS,
    }
    own |= conf.get("s3", {}).get("config_kwargs", {})
    made = fsspec.filesystem("s3", config_kwargs=own, **common)
    made.retries = 1
    return made


def require_backend(url: str) -> None:
    """Raise UserError if the package that reads this kind of URL is not installed."""
    extra = SCHEMES[scheme_of(url) or ""]
    package = {"s3": "s3fs", "gcs": "gcsfs"}.get(extra, "fsspec")
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{url}: needs the package {package}: pip install 'afterimage[{extra}]'"
        )


def _entry(info: Mapping[str, Any]) -> Entry:
    stamp = next((info[key] for key in _STAMPS if info.get(key)), "")
    return Entry(int(info["size"] or 0), str(stamp))


class _Ranges(io.RawIOBase):
    """A file of one object, read range by range."""

    def __init__(self, whole: Bucket, size: int | None):
        super().__init__()
        self._object, self._at = whole, 0
        self.size = whole.entry().size if size is None else size
        self.fault: RemoteError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"position {base + offset} is before the start")
        self._at = base + offset
        return self._at

    def whole(self) -> bytes:
        """All bytes, in one request."""
        return self._object.get("", 0, self.size)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._at + len(view), self.size)
        if end <= self._at:
            return 0
        try:
            data = self._object.get("", self._at, end)
        except RemoteError as error:
            self.fault = error
            raise
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Reader(io.BufferedReader):
    """Buffered ranges; the whole object in one request if all of it is asked for."""

    def __init__(self, ranges: _Ranges, block: int):
        super().__init__(ranges, block)
        self._ranges = ranges

    @property
    def fault(self) -> RemoteError | None:
        """The error of a read that failed: a decoder may take it for a bad image."""
        return self._ranges.fault

    def read(self, size: int | None = -1, /) -> bytes:
        everything = size is None or size < 0 or size >= self._ranges.size
        if not everything or self.tell():
            return super().read(size)
        self.seek(self._ranges.size)
        return self._ranges.whole()


def open_bytes(
    place: str | os.PathLike[str], *, block: int = _BLOCK, size: int | None = None
) -> io.BufferedReader:
    """A file or an object for reading and seeking, as one interface.

    `place` is the path of a regular file, or a URL (`s3://bucket/a.tar`), of which
    ranges are fetched as they are read, at least `block` bytes at a time, each tried
    again on timeouts and 5xx. `size`, if it is known, saves a request. The result may
    be used by several threads, one at a time.

    Raises OSError as `open` does (FileNotFoundError if there is none), RemoteError if
    the store cannot be reached or refuses, UserError if its package is missing.
    """
    if not is_remote(place):
        return open_regular(place)
    return _Reader(_Ranges(Bucket(as_text(place)), size), block)
