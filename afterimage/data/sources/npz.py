"""`npz:PATH`: arrays in a NumPy archive, checked before decompression."""

import ast
import io
import math
import os
import zipfile
from typing import Any

import numpy as np

from afterimage.checkpoints.names import spelling
from afterimage.data.arrays import array_splits
from afterimage.data.sets import Request, Splits
from afterimage.data.sources import Source
from afterimage.data.workers import allowance, inflates_too_much
from afterimage.errors import DataError
from afterimage.plugins import SOURCES
from afterimage.storage.bucket import open_bytes
from afterimage.storage.urls import is_remote

_LONGEST_HEADER = 10_000  # bytes, NumPy's own limit
_MOST_AXES = 32


@SOURCES.add("npz")
class NpzSource(Source):
    """Arrays: `x_train, y_train[, x_val, y_val][, x_test, y_test]`, or `images`.

    See `afterimage.data.arrays` for the allowed names and contents.
    """

    remote = True
    form = "PATH"
    tasks = True
    numbers = True

    def open(self, rest: str, request: Request) -> Splits:
        return array_splits(_load(rest), f"npz:{spelling(rest)}", request)


def check_sizes(path: str | os.PathLike[str] | io.BytesIO) -> None:
    """Raise ValueError for arrays that are too large or not of the size they claim."""
    if not zipfile.is_zipfile(path):
        return  # NumPy reports what it is instead
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        for info in infos:
            with archive.open(info) as member:
                claimed = _claimed_size(member)
            if claimed != info.file_size:
                raise ValueError(
                    f"{info.filename} declares {claimed:,} bytes, but has "
                    f"{info.file_size:,}"
                )
            if inflates_too_much(info.file_size, info.compress_size):
                raise ValueError(
                    f"{info.filename} has {info.compress_size:,} bytes that "
                    f"decompress to {info.file_size:,}"
                )
    # The other half of the free memory is needed for uint8 copies.
    total, most = sum(info.file_size for info in infos), allowance()
    if total > most:
        raise ValueError(
            f"its arrays need {total:,} bytes of memory, but only {most:,} are "
            "available. Save the images as files, which are read one by one"
        )


def _claimed_size(member: Any) -> int:
    """Bytes of a .npy file, by its header."""
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"an array in the unknown format {version}")
    start = member.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(start, "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"a header of {length:,} bytes")
    shape, dtype = _described(member.read(length))
    if dtype.hasobject:
        raise ValueError("it contains Python objects")
    if len(shape) > _MOST_AXES or any(not 0 <= side < 2**48 for side in shape):
        raise ValueError(f"an array of {len(shape)} dimensions, or of impossible size")
    return 8 + len(start) + length + math.prod(shape) * dtype.itemsize


def _described(header: bytes) -> tuple[list[int], np.dtype]:
    try:
        found = ast.literal_eval(header.decode("utf-8"))
        dtype = np.lib.format.descr_to_dtype(found["descr"])
        return [int(side) for side in found["shape"]], dtype
    except (SyntaxError, LookupError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"an array's header cannot be read ({error})") from error


def _load(path: str) -> dict[str, np.ndarray]:
    where, shown = os.path.expanduser(path), spelling(path)
    try:
        if is_remote(path):
            # Every byte is needed, and NumPy reads them in small pieces.
            with open_bytes(path) as remote:
                return _arrays(io.BytesIO(remote.read()))
        if not os.path.isfile(where):
            missing = not os.path.exists(where)
            there = "does not exist" if missing else "is not a regular file"
            raise DataError(f"npz:{shown} {there}")
        return _arrays(where)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"npz:{shown} does not exist") from error
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise DataError(
            f"npz:{shown} cannot be read ({error}); expected a file written by "
            "numpy.savez, without Python objects"
        ) from error


def _arrays(file: str | io.BytesIO) -> dict[str, np.ndarray]:
    check_sizes(file)
    if not zipfile.is_zipfile(file):
        raise ValueError("it is not a zip archive")
    if isinstance(file, io.BytesIO):
        file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}
