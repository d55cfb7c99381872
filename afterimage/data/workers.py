"""Decodes many files at once, on all cores, within a memory budget."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from afterimage.checkpoints.files import memory, reason
from afterimage.checkpoints.names import spelling
from afterimage.console import ProgressBar
from afterimage.data.decode import decode, read_header_of, strict
from afterimage.data.decoded import Decoded
from afterimage.data.pixels import MAX_BYTES, NotAnImage, takes_bands
from afterimage.data.sets import Range
from afterimage.data.whole_photos import packed_shape
from afterimage.errors import DataError
from afterimage.runtime import cores

_SHARE = 0.5  # of free memory; the rest is for everything else
_FRESH = 1.0  # seconds that a measurement stays valid
_CGROUPS = pathlib.Path("/sys/fs/cgroup")


def allowance() -> int:
    """Bytes that data may use now: half of what this process may still use.

    That is the least of the machine's available memory and what is left under the
    limits of each of the process's control groups (v1 and v2), RLIMIT_AS and
    RLIMIT_DATA.
    """
    free = [memory(), *_rlimits(), *_groups()]
    return int(_SHARE * max(0, min(free)))


class Budget:
    """A semaphore that counts bytes; `hold` waits until enough are free."""

    def __init__(self) -> None:
        self._held = 0
        self._jobs = 0
        self._measured = float("-inf")
        self._most = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Reserve `size` bytes for the block; MemoryError if they can never be free."""
        with self._changed:
            while not self._take(size):
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._jobs -= 1
                self._changed.notify_all()

    def _take(self, size: int) -> bool:
        # Measure while nothing is held: held memory no longer counts as free.
        if not self._jobs and time.monotonic() - self._measured > _FRESH:
            self._most, self._measured = allowance(), time.monotonic()
        if self._held + size > self._most:
            if self._jobs:
                return False
            raise MemoryError(
                f"decoding needs {_text(size)}, but only {_text(self._most)} are "
                "available, half of what this process may still use"
            )
        self._held += size
        self._jobs += 1
        return True


def _text(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _rlimits() -> Iterator[int]:
    """Bytes left under each of this process's limits."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = _lines(pathlib.Path("/proc/self/status"))
    for limit, field in (
        (resource.RLIMIT_AS, "VmSize:"),
        (resource.RLIMIT_DATA, "VmData:"),
    ):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY:
            yield soft - used.get(field, 0) * 1024


def _groups() -> Iterator[int]:
    """Bytes left in each control group of this process; page cache counts as free."""
    try:
        rows = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for row in rows:
        number, controllers, path = row.split(":", 2)
        if number == "0" and not controllers:
            names, root = ("memory.max", "memory.current", "inactive_file"), _CGROUPS
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            names, root = (*names, "total_inactive_file"), _CGROUPS / "memory"
        else:
            continue
        # In a container the path may be the host's; the root is then our own group.
        inside = root / path.lstrip("/")
        for folder in (inside, *inside.parents):
            if folder.is_relative_to(root):
                yield from _left(folder, *names)


def _left(folder: pathlib.Path, limit: str, used: str, cache: str) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        most = int((folder / limit).read_text())  # "max", not a number: no limit
        now = int((folder / used).read_text())
        yield most - now + _lines(folder / "memory.stat").get(cache, 0)


def _lines(path: pathlib.Path) -> dict[str, int]:
    """{first word: number after it} for the lines of a file; empty if there is none."""
    try:
        rows = [row.split() for row in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


@runtime_checkable
class Files(Protocol):
    """Encoded images by name, read from several threads at once."""

    names: Sequence[str]
    """One unique raw name per image; its folders determine split and class."""

    def stamp(self, row: int) -> Sequence[int | str]:
        """A value from metadata alone that changes whenever the content does."""
        ...

    def size(self, row: int) -> int:
        """Bytes of one image, if known without reading it."""
        ...

    def open(self, row: int) -> io.BufferedIOBase:
        """One image's bytes; NotAnImage if there are too many."""
        ...


class FileTree(Files, Protocol):
    """Images in folders, together with label tables."""

    metadata: Sequence[str]
    """The names of the label tables."""
    others: Mapping[str, int]
    """{suffix: number} of the other files."""

    def read_metadata(self, name: str) -> bytes:
        """The content of one of `metadata`; NotAnImage if it cannot be read."""
        ...


@contextlib.contextmanager
def opened(files: Files, row: int) -> Iterator[Any]:
    """One image's bytes as a file; NotAnImage if they cannot be read."""
    with reasons(), files.open(row) as file:
        try:
            yield file
        finally:
            # A store that is away is no bad image, whatever the decoder makes of it.
            if (fault := getattr(file, "fault", None)) is not None:
                raise fault


@contextlib.contextmanager
def reasons() -> Iterator[None]:
    """Turn errors of a disk or an archive into NotAnImage with the reason."""
    try:
        yield
    except OSError as error:
        raise NotAnImage(reason(error)) from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise NotAnImage(f"cannot be read: {error}") from error


def read(files: Files, row: int) -> bytes:
    """All bytes of one image; NotAnImage if there are too many or on read errors."""
    with opened(files, row) as file:
        # Without a limit, an archive member is inflated beyond its declared size.
        return file.read(files.size(row) or -1)


def check_size(size: int, packed: int | None = None) -> None:
    """Raise NotAnImage for files that are too large, and for zip bombs."""
    if size > MAX_BYTES:
        raise NotAnImage(f"more than {MAX_BYTES:,} bytes")
    if packed is not None and inflates_too_much(size, packed):
        raise NotAnImage(f"{packed:,} bytes that decompress to {size:,}")


def inflates_too_much(size: int, packed: int) -> bool:
    """Whether it is a zip bomb: over 64 MiB and over 100 times its packed size."""
    return size > 2**26 and size > 100 * packed


_WINDOW = 256  # files in flight: bounds memory, keeps every thread busy
budget = Budget()
"""The bytes that all threads together may use for decoding."""


def threads_for(files: Files) -> int:
    """Threads for reading these files: one a core, or `files.threads` if they wait."""
    return max(cores(), getattr(files, "threads", 0))


@functools.cache
def _pool(threads: int | None = None) -> concurrent.futures.ThreadPoolExecutor:
    """Threads for decoding, by default one for each core."""
    return concurrent.futures.ThreadPoolExecutor(
        threads or cores(), thread_name_prefix="decode"
    )


def windows(
    function: Callable[[int], Any],
    rows: Sequence[int],
    what: str,
    each: int = 1,
    *,
    threads: int | None = None,
    unit: str = "images",
) -> Iterator[tuple[int, Any]]:
    """(row, function(row)) in order, computed on all cores, one window at a time.

    `what` is the title of the progress, `unit` what it counts. A result takes `each`
    bytes; the results of one window take at most a quarter of `allowance`.
    """
    window, pool = max(1, min(_WINDOW, allowance() // 4 // each)), _pool(threads)
    with strict(), ProgressBar(len(rows), what, unit) as progress:
        for start in range(0, len(rows), window):
            part = rows[start : start + window]
            yield from zip(part, pool.map(function, part), strict=True)
            progress.add(len(part))


def or_reason(function: Callable[[int], Any]) -> Callable[[int], Any]:
    """`function`, but returning the reason as a string if it finds no image."""

    def call(row: int) -> Any:
        try:
            return function(row)
        except NotAnImage as error:
            return str(error)
        except MemoryError as error:
            return _too_large(error)

    return call


def _too_large(error: MemoryError) -> str:
    return f"needs more memory than this machine has ({error})".replace(" ()", "")


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Bytes -> an image of one shape, resized to `size` if given; or a `whole` photo,
    packed."""

    shape: tuple[int, int, int]
    size: tuple[int, int] | None
    value_range: Range | None
    whole: bool = dataclasses.field(default=False, kw_only=True)

    @property
    def stored(self) -> tuple[int, int, int]:
        """The shape of what comes out."""
        packed = self.whole and self.size is not None
        return packed_shape(self.shape) if packed else self.shape

    def __call__(self, data: bytes) -> np.ndarray:
        channels = self.shape[2]
        return decode(data, self.size, channels, self.value_range, whole=self.whole)


class Once:
    """Images that are decoded when they are asked for, and known only by name before.

    For one pass over more images than anyone wants to wait for or to cache.
    """

    def __init__(
        self,
        files: Files,
        decoder: Decoder,
        threads: int | None = None,
        kept: Decoded | None = None,
    ):
        self._files, self._decoder = files, decoder
        self._threads, self._kept = threads, kept

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._decoder.stored)

    def __len__(self) -> int:
        return len(self._files.names)

    def __getitem__(self, index: Any, /) -> np.ndarray:
        rows = np.arange(len(self))[index]
        found = []
        flat = np.atleast_1d(rows)
        for row, image in zip(map(int, flat), self.read(flat)):
            if isinstance(image, str):
                raise DataError(
                    f"{spelling(self._files.names[row])}: {image}. Remove or repair "
                    "it, or skip such images with on_bad_image='skip' (--on-bad-image "
                    "skip)"
                )
            found.append(image)
        return np.stack(found) if rows.ndim else found[0]

    def read(self, rows: np.ndarray) -> list[np.ndarray | str]:
        """Each image, or why it is none; decoded on all cores."""
        with strict():
            pool = _pool(self._threads)
            return list(pool.map(or_reason(self.one), rows.tolist()))

    def marks(self, rows: np.ndarray) -> list[str]:
        """What changes when a file changes, from its metadata alone."""
        return [json.dumps(self._files.stamp(row)) for row in rows.tolist()]

    def one(self, row: int) -> np.ndarray:
        """One image; NotAnImage says why it cannot be read."""
        found = None if self._kept is None else self._kept.get(row)
        if found is None:
            found = self._decoded(row)
            if self._kept is not None:
                self._kept.put(row, found)
        return found

    def _decoded(self, row: int) -> np.ndarray:
        data = read(self._files, row)
        header = read_header_of(data)
        height, width, channels = self._decoder.shape
        takes_bands(header.channels, header.samples, channels)
        if self._decoder.size is None and (header.height, header.width) != (
            height,
            width,
        ):
            raise NotAnImage(
                f"{header.height}x{header.width} pixels, but others have "
                f"{height}x{width}; set the size to resize them to, e.g. --image-size "
                "64"
            )
        with budget.hold(header.cost + len(data) + height * width * channels):
            return self._decoder(data)


class Lazy:
    """Decodes on demand, on all cores: for images that no cache can hold."""

    def __init__(
        self, files: Files, rows: np.ndarray, costs: np.ndarray, decoder: Decoder
    ):
        self._files, self._rows, self._costs = files, rows, costs
        self._shape, self._decoder = decoder.stored, decoder

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._rows), *self._shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any, /) -> np.ndarray:
        rows, costs = self._rows[index], self._costs[index]
        out = np.empty((*rows.shape, *self._shape), np.uint8)
        flat = out.reshape(-1, *self._shape)
        # All threads share one iterator: cheaper than one future per image.
        numbers = rows.ravel().tolist(), costs.ravel().tolist()
        jobs = iter(list(zip(flat, *numbers, strict=True)))
        threads = threads_for(self._files)
        for _ in _pool(threads).map(self._decode_next, [jobs] * threads):
            pass
        return out

    def _decode_next(self, jobs: Iterator[tuple[np.ndarray, int, int]]) -> None:
        for job in jobs:
            self._decode(job)

    def _decode(self, job: tuple[np.ndarray, int, int]) -> None:
        target, row, cost = job
        try:
            with budget.hold(cost):
                target[:] = self._decoder(read(self._files, row))
        except MemoryError as error:
            name = spelling(self._files.names[row])
            raise DataError(f"{name}: {_too_large(error)}") from error
        except ValueError as error:
            raise DataError(
                f"{spelling(self._files.names[row])} was readable when the run began, "
                f"but no longer is: {error}"
            ) from error
