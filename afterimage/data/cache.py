"""Decoded images on disk: one .npy and its index, complete or not there.

An entry is named by a SHA-256 of the files' names, stamps, and the size and channels
asked for, so that any change is another entry. It appears by one rename, so several
processes may read and build at once. A damaged one is found by checksum and rebuilt.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator

import numpy as np

from afterimage.checkpoints import files, schemas
from afterimage.data.samples import Range
from afterimage.data.sets import Images

_FORMAT = 1
_CHECKED_BYTES = 2**30  # of a larger entry, evenly spaced images are checked


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a pass over the files found: the rows kept, their digests, the bad ones."""

    images: Images
    digests: list[bytes]
    bad: dict[int, str]
    """Row among the files -> why it is no image."""
    value_range: Range | None = None
    """What became 0 and 255 in images of more than 8 bits."""


def load(folder: pathlib.Path) -> Entry | None:
    """The entry at `folder`; None if there is none, or it is damaged."""
    try:
        index = schemas.parse(files.read_bytes(folder / "index.json"))
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        digests = [bytes.fromhex(text) for text in index["digests"]]
        bad = {int(row): str(reason) for row, reason in index["bad"]}
        value_range = None
        if index["value_range"] is not None:
            low, high = map(float, index["value_range"])
            value_range = (low, high)
        whole = (
            index["format"] == _FORMAT
            and images.dtype == np.uint8
            and images.ndim == 4
            and len(images) == len(digests)
            and index["checksum"] == _checksum(images)
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return Entry(images, digests, bad, value_range) if whole else None


def _checksum(images: np.ndarray) -> int:
    stride = max(1, -(-images.nbytes // _CHECKED_BYTES))
    value = zlib.crc32(repr(images.shape).encode())
    chunk = max(1, 2**24 // max(1, images[0].nbytes)) if len(images) else 1
    rows = range(0, len(images), stride)
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        block = images[part.start : part.stop : stride]
        value = zlib.crc32(np.ascontiguousarray(block).data, value)
    return value


class Writer:
    """Writes an entry image by image; `commit` puts it in its place.

    A cache that cannot be written is no reason to stop: a note is printed, nothing more
    is written, and `commit` gives None.
    """

    def __init__(self, folder: pathlib.Path | None, most: int, shape: tuple[int, ...]):
        self._folder, self._shape, self._count = folder, shape, 0
        self._scratch: pathlib.Path | None = None
        self._file: io.BufferedIOBase | None = None
        if folder is None:
            return
        with self._or_without():
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._scratch = pathlib.Path(
                tempfile.mkdtemp(dir=folder.parent, prefix=".new-")
            )
            # Plain writes rather than a memory map: a full disk is then an OSError,
            # not a SIGBUS.
            self._file = (self._scratch / "images.npy").open("wb")
            self._header(self._file, most)

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            print(
                f"Going on without a cache of decoded images: {error}. Set "
                "AFTERIMAGE_CACHE to a folder with room.",
                file=sys.stderr,
            )
            self.close()

    def _header(self, file: io.BufferedIOBase, count: int) -> None:
        # NumPy pads the header, so that a smaller count fits where a larger one stood.
        np.lib.format.write_array_header_1_0(
            file,
            {"descr": "|u1", "fortran_order": False, "shape": (count, *self._shape)},
        )

    def add(self, image: np.ndarray) -> None:
        """The next image, uint8 of the entry's shape; RuntimeError for any other.

        Bytes of another shape would be cut into rows at the wrong width, in silence.
        """
        if image.dtype != np.uint8 or image.shape != self._shape:
            raise RuntimeError(
                f"a decoder gave {image.dtype} {image.shape} for a cache of uint8 "
                f"{self._shape}: a fault of Afterimage's, please report it"
            )
        if self._file is not None:
            with self._or_without():
                self._file.write(np.ascontiguousarray(image).data)
                self._count += 1

    def commit(
        self,
        digests: list[bytes],
        bad: dict[int, str],
        value_range: Range | None = None,
    ) -> Entry | None:
        """Finish and rename into place, unless another process was first; the entry."""
        if self._file is None or self._folder is None or self._scratch is None:
            return None
        with self._or_without():
            self._file.seek(0)
            self._header(self._file, self._count)
            self._file.close()
            images = np.load(self._scratch / "images.npy", mmap_mode="r")
            index = {
                "format": _FORMAT,
                "checksum": _checksum(images),
                "digests": [digest.hex() for digest in digests],
                "bad": sorted(bad.items()),
                "value_range": value_range,
            }
            (self._scratch / "index.json").write_text(json.dumps(index))
            if self._folder.exists() and load(self._folder) is None:
                shutil.rmtree(self._folder, ignore_errors=True)
            try:
                self._scratch.rename(self._folder)
            except OSError:
                if not self._folder.is_dir():  # unless another process was first
                    raise
            return load(self._folder)
        return None

    def close(self) -> None:
        """Remove what was not committed."""
        file, self._file = self._file, None
        if file is not None:
            # Closing writes what is buffered: on a full disk it fails once more.
            with contextlib.suppress(OSError):
                file.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


@contextlib.contextmanager
def writer(
    folder: pathlib.Path | None, most: int, shape: tuple[int, ...]
) -> Iterator[Writer]:
    """A Writer to `folder` (None: to nowhere); nothing unfinished stays behind."""
    made = Writer(folder, most, shape)
    try:
        yield made
    finally:
        made.close()
