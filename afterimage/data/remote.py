"""Images as objects of a bucket: listed once, read whole or range by range."""

import io
import posixpath
from collections.abc import Mapping, Sequence

from afterimage.checkpoints.names import spelling
from afterimage.data.decode import is_image_name, is_metadata
from afterimage.data.pixels import MAX_BYTES, NotAnImage
from afterimage.data.workers import check_size, reasons
from afterimage.errors import DataError
from afterimage.storage.bucket import THREADS, Bucket, Entry, open_bytes

_HEADER = 2**16
"""Bytes of the first read: the headers of nearly all images are in them."""


class Objects:
    """Files by their names relative to the URL of a folder."""

    threads = THREADS

    def __init__(self, bucket: Bucket, names: Sequence[str]):
        self._bucket = bucket
        self._entries: Mapping[str, Entry] = bucket.entries()
        self.names: Sequence[str] = names

    def stamp(self, row: int) -> Sequence[int | str]:
        """Size, and the ETag or what the store has like it."""
        entry = self._entries.get(posixpath.normpath(self.names[row]))
        return ("missing",) if entry is None else (entry.size, entry.stamp)

    def size(self, row: int) -> int:
        entry = self._entries.get(posixpath.normpath(self.names[row]))
        return 0 if entry is None else entry.size

    def open(self, row: int) -> io.BufferedIOBase:
        name = posixpath.normpath(self.names[row])
        if name not in self._entries:
            raise NotAnImage("is missing")
        size = self._entries[name].size
        check_size(size)
        return open_bytes(self._bucket.path(name), block=_HEADER, size=size)


class RemoteFolder(Objects):
    """Every image below the URL of a folder, with its label tables."""

    def __init__(self, url: str):
        super().__init__(Bucket(url), [])
        from afterimage.data.sources.folder import nothing_found, other_kinds

        names = list(self._entries)
        self.names: Sequence[str] = list(filter(is_image_name, names))
        self.metadata: Sequence[str] = list(filter(is_metadata, names))
        self.others = other_kinds(names)
        if not names:
            raise DataError(
                f"folder:{spelling(url)} is empty or does not exist; check the URL"
            )
        if not self.names:
            raise DataError(nothing_found(f"folder:{spelling(url)}", self.others))

    def read_metadata(self, name: str) -> bytes:
        """The content of one of `metadata`; NotAnImage if it cannot be read."""
        with reasons():
            return small(self._bucket.path(name))


def small(url: str) -> bytes:
    """All bytes of an object, at most those of an image; OSError for more."""
    with open_bytes(url) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(f"has more than {MAX_BYTES:,} bytes")
    return data
