"""Decoded images on disk, each written when it is first read.

For more images than anyone waits for before training: the first pass decodes them, and
later ones read their pixels. Each image has a checksum, written after it, so that what
a crash or a full disk left behind is decoded again. Processes may share the files: they
write the same bytes.
"""

import os
import pathlib
import shutil
import zlib

import numpy as np

from afterimage.checkpoints.errors import readable_size
from afterimage.console import say_once

_SHARE = 0.5  # of the free space of a disk


class Decoded:
    """uint8 images of one shape, in the sparse files of a folder."""

    def __init__(self, folder: pathlib.Path, count: int, shape: tuple[int, ...]):
        self._shape, self._each = shape, int(np.prod(shape))
        folder.mkdir(parents=True, exist_ok=True)
        self._pixels = _sparse(folder / "pixels.bin", count * self._each)
        self._sums = _sparse(folder / "sums.bin", 4 * count)
        self._full = False

    def get(self, row: int) -> np.ndarray | None:
        """An image that was put; None if it was not, or is damaged."""
        stated = os.pread(self._sums, 4, 4 * row)
        if not any(stated):
            return None
        data = os.pread(self._pixels, self._each, self._each * row)
        if len(data) < self._each or _sum(data) != stated:
            return None
        return np.frombuffer(data, np.uint8).reshape(self._shape)

    def put(self, row: int, image: np.ndarray) -> None:
        """Keep an image; on a full disk it is decoded again the next time."""
        if self._full:
            return
        data = image.tobytes()
        try:
            written = os.pwrite(self._pixels, data, self._each * row)
            if written == self._each:
                os.pwrite(self._sums, _sum(data), 4 * row)
        except OSError as error:
            self._full = True
            say_once(f"Further decoded images are not cached: {error}")

    def __del__(self) -> None:
        for name in ("_pixels", "_sums"):
            if name in vars(self):
                os.close(vars(self)[name])


def decoded_in(
    folder: pathlib.Path, count: int, shape: tuple[int, ...]
) -> Decoded | None:
    """The decoded images of a folder; None, with a note, if its disk is too small."""
    needed = count * int(np.prod(shape))
    if not hasattr(os, "pread"):  # Windows
        return None
    try:
        there = (folder / "pixels.bin").exists()
        free = shutil.disk_usage(folder.parent).free
        if not there and needed > _SHARE * free:
            say_once(
                f"{count:,} decoded images take {readable_size(needed)}, more than "
                f"half of the {readable_size(free)} that are free in the cache folder: "
                "images are decoded in each pass. AFTERIMAGE_CACHE names another folder"
            )
            return None
        return Decoded(folder, count, shape)
    except OSError:
        return None


def _sparse(path: pathlib.Path, size: int) -> int:
    """A file of this size whose unwritten parts take no space, open for both."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if os.fstat(handle).st_size != size:
        os.ftruncate(handle, size)
    return handle


def _sum(data: bytes) -> bytes:
    """A checksum that is never zero, which means that there is no image."""
    return (zlib.crc32(data) or 1).to_bytes(4, "little")
