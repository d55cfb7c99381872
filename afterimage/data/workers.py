"""Many files at once, on all cores, within the memory that images may take."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from afterimage.checkpoints.names import spelling
from afterimage.data import decode
from afterimage.data.files import Files, read
from afterimage.data.header import NotAnImage
from afterimage.data.memory import Budget, allowance
from afterimage.data.progress import Progress
from afterimage.data.samples import Range
from afterimage.errors import DataError
from afterimage.runtime import cores

_WINDOW = 256  # files in flight: bounds memory, keeps every thread busy
budget = Budget()
"""Of the bytes that all threads together take for decoding."""


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(cores(), thread_name_prefix="decode")


def windows(
    function: Callable[[int], Any], rows: Sequence[int], what: str, each: int = 1
) -> Iterator[tuple[int, Any]]:
    """(row, function(row)) in order, from all cores, a window at a time.

    A result has `each` bytes; those of a window take at most a quarter of what they
    may.
    """
    window = max(1, min(_WINDOW, allowance() // 4 // each))
    with decode.strict(), Progress(len(rows), what) as progress:
        for start in range(0, len(rows), window):
            part = rows[start : start + window]
            yield from zip(part, _pool().map(function, part), strict=True)
            progress.add(len(part))


def or_reason(function: Callable[[int], Any]) -> Callable[[int], Any]:
    """`function`, returning the reason as a string where it finds no image."""

    def call(row: int) -> Any:
        try:
            return function(row)
        except NotAnImage as error:
            return str(error)
        except MemoryError as error:
            return _too_large(error)

    return call


def _too_large(error: MemoryError) -> str:
    return f"too large for this machine's memory ({error})".replace(" ()", "")


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Bytes -> an image of one shape, at `size` where it is resized."""

    shape: tuple[int, int, int]
    size: tuple[int, int] | None
    value_range: Range | None

    def __call__(self, data: bytes) -> np.ndarray:
        return decode.decode(data, self.size, self.shape[2], self.value_range)


class Lazy:
    """Decodes whenever asked, on all cores: for images that no cache can hold."""

    def __init__(
        self, files: Files, rows: np.ndarray, costs: np.ndarray, decoder: Decoder
    ):
        self._files, self._rows, self._costs = files, rows, costs
        self._shape, self._decoder = decoder.shape, decoder

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._rows), *self._shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any, /) -> np.ndarray:
        rows, costs = self._rows[index], self._costs[index]
        out = np.empty((*rows.shape, *self._shape), np.uint8)
        flat = out.reshape(-1, *self._shape)
        # All threads take from one iterator: cheaper than a future an image.
        numbers = rows.ravel().tolist(), costs.ravel().tolist()
        jobs = iter(list(zip(flat, *numbers, strict=True)))
        for _ in _pool().map(self._decode_next, [jobs] * cores()):
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
                f"{spelling(self._files.names[row])} was an image when the run began "
                f"and is not now: {error}"
            ) from error
