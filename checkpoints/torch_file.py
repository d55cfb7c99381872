"""PyTorch's `torch.save` files (`.pth`, `.pt`, `.bin`), read without running them.

Such a file is an uncompressed zip archive of `data.pkl`, which describes tensors, and
`data/KEY`, their bytes. Before PyTorch 1.6 it was a sequence of five pickles (a magic
number, a version, the machine, the tensors, the keys of their storages), followed by
each storage: its count as int64, and its bytes. Format: torch/serialization.py,
`_save`, `_load`, `_legacy_save`, `_legacy_load`; torch/_utils.py, `_rebuild_tensor_v2`.
"""

import dataclasses
import io
import math
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from afterimage.checkpoints import files, names
from afterimage.checkpoints.errors import CheckpointError, UsageError
from afterimage.checkpoints.pickles import MOST_BYTES, Name, load_pickle
from afterimage.checkpoints.schemas import wrong_shape
from afterimage.checkpoints.weights import from_bytes

_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype(np.bool_),
}

_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of a file before PyTorch 1.6: the number 0x1950a86a20f9469cfc6c."""
_VERSION = 1001
_MOST_DIRECTORY = 16 * 2**20  # bytes; torch.save takes about 130 per tensor


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    """The numbers of one storage; only `persistent` makes one, a pickle cannot."""

    array: np.ndarray


def read_torch(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote: dictionaries, lists and numbers, tensors as arrays.

    Arrays are read-only and may share memory, as the tensors did: together they take no
    more memory than the file's size.

    Raises UsageError for anything that torch.save did not write since PyTorch 0.1.10;
    CheckpointError for a pickle with anything but tensors and plain values, and for a
    file that contradicts itself.
    """
    path = pathlib.Path(path)
    try:
        with files.open_regular(path) as file:
            start = file.read(len(_MAGIC))
            file.seek(0)
            if start == _MAGIC:
                return _read_legacy(file, path)
            if not zipfile.is_zipfile(file):
                raise UsageError(
                    f"{path} is not a file of torch.save. If you trust it, load it in "
                    "PyTorch and save its state_dict, or save it as .safetensors."
                )
            _require_small_directory(file)
            with zipfile.ZipFile(file) as archive:
                return _read(archive, path, os.fstat(file.fileno()).st_size)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile file can fail in any way
        text = files.reason(error) or type(error).__name__
        raise CheckpointError(f"{path} cannot be read: {text[:300]}.") from error


def _require_small_directory(file: BinaryIO) -> None:
    """Limit the size of the zip directory, at the end of the file, before reading it.

    Fields: APPNOTE.TXT of PKWARE, 4.3.14 to 4.3.16.
    """
    file.seek(-22, os.SEEK_END)
    end = file.read(22)
    if end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise ValueError("it has bytes after its end")
    size = struct.unpack("<L", end[12:16])[0]
    file.seek(-min(98, file.seek(0, os.SEEK_END)), os.SEEK_END)
    more = file.read(76)
    if more[56:60] == b"PK\x06\x07":  # zip64: its own record, before the locator
        size = struct.unpack("<Q", more[40:48])[0]
    if size > _MOST_DIRECTORY:
        raise ValueError(f"its list of members has {size} bytes")


def _read(archive: zipfile.ZipFile, path: pathlib.Path, size: int) -> Any:
    members = {info.filename: info for info in archive.infolist()}
    pickled = [name for name in members if name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise UsageError(f"{path} is a zip archive, but torch.save did not write it.")
    if any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
        raise ValueError("its members are compressed, which torch.save never does")
    if sum(info.file_size for info in archive.infolist()) > size:
        raise ValueError(f"its members claim more than its own {size} bytes")
    root = pickled[0].removesuffix("data.pkl")
    order = root + "byteorder"
    if order in members and archive.read(order) != b"little":
        raise UsageError(
            f"{path} was written on a big-endian machine; save it "
            "again on a little-endian one."
        )
    pickle = archive.read(pickled[0])
    if len(pickle) > MOST_BYTES:
        raise ValueError(f"its pickle has {len(pickle)} bytes, more than {MOST_BYTES}")

    def numbers(key: str, kind: str, count: int) -> bytes:
        return archive.read(f"{root}data/{key}")

    return _Reader(numbers, str(path)).load(io.BytesIO(pickle))


def _read_legacy(file: BinaryIO, path: pathlib.Path) -> Any:
    """A file before PyTorch 1.6."""
    head = io.BytesIO(file.read(MOST_BYTES))
    head.seek(len(_MAGIC))
    # What the storages are is known only once the tensors were read, and where they
    # are only after that: tensors are read twice, first without numbers.
    claims = _Reader(lambda key, kind, count: b"", str(path), empty=True)
    if (version := claims.load(head)) != _VERSION:
        raise UsageError(
            f"{path} has version {names.shown(version)} of torch.save's format, not "
            f"{_VERSION}; load it in PyTorch and save it again."
        )
    machine = claims.load(head)
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise UsageError(
            f"{path} was written on a big-endian machine; save it "
            "again on a little-endian one."
        )
    start = head.tell()
    claims.load(head)
    end = head.tell()
    keys = claims.load(head)
    if type(keys) is not list or sorted(map(repr, keys)) != sorted(
        map(repr, claims.storages)
    ):
        raise ValueError("it lists other storages than its tensors use")
    places: dict[str, int] = {}
    place, size = head.tell(), os.fstat(file.fileno()).st_size
    for key in keys:
        kind, count = claims.storages[key]
        file.seek(place)
        stored = file.read(8)
        if stored != struct.pack("<q", count):
            raise ValueError(f"storage {names.shown(key)} has not {count} numbers")
        places[key] = place + 8
        place += 8 + count * _STORAGES[kind].itemsize
        if place > size:
            raise ValueError(f"storage {names.shown(key)} ends after the file")

    def numbers(key: str, kind: str, count: int) -> bytes:
        file.seek(places[key])
        return file.read(count * _STORAGES[kind].itemsize)

    return _Reader(numbers, str(path)).load(io.BytesIO(head.getvalue()[start:end]))


class _Reader:
    """The functions that a pickle of tensors may call.

    `numbers` gives the bytes of a storage, from its key, kind and count. An `empty`
    reader makes no tensors: it notes what storages there are.
    """

    def __init__(
        self,
        numbers: Callable[[str, str, int], bytes],
        what: str,
        *,
        empty: bool = False,
    ):
        self._numbers, self._what, self._empty = numbers, what, empty
        self.storages: dict[str, tuple[str, int]] = {}
        self._arrays: dict[str, _Storage] = {}
        self._kinds = {Name(name): name for name in _STORAGES}

    def load(self, file: io.BytesIO) -> Any:
        """The value that the next pickle of the file describes."""
        names = {("torch", name): mark for mark, name in self._kinds.items()}
        for module, name, function in (
            ("collections", "OrderedDict", _new_dict),
            ("torch._utils", "_rebuild_tensor", self._tensor),
            ("torch._utils", "_rebuild_tensor_v2", self._tensor),
            ("torch._utils", "_rebuild_parameter", self._parameter),
        ):
            names[module, name] = Name(name, function)
        return load_pickle(file, names, self._storage, self._unknown)

    def _unknown(self, module: str, name: str) -> CheckpointError:
        return CheckpointError(
            f"{self._what} contains {names.shown(f'{module}.{name}')}, but only "
            "tensors in plain dictionaries are read, as anything else may run code "
            "when opened. It was not run. Save only the state_dict, or save it as "
            ".safetensors."
        )

    def _storage(self, pid: Any) -> _Storage:
        # Before PyTorch 1.6 there is a sixth: a view of a part of the storage.
        known = type(pid) is tuple and len(pid) in (5, 6) and type(pid[2]) is str
        if not known or pid[5:] not in ((), (None,)):
            raise ValueError("it does not name a storage as torch.save does")
        _, mark, key, _, count = pid[:5]
        kind = self._kinds.get(mark) if type(mark) is Name else None
        if kind is None or type(count) is not int or count < 0:
            raise ValueError(f"storage {names.shown(key)} has no type or no size")
        if key not in self.storages:
            data = self._numbers(key, kind, count)
            self._arrays[key] = _Storage(from_bytes(data, _STORAGES[kind]))
            self.storages[key] = kind, self._held(key, count)
        if self.storages[key] != (kind, count):
            held, of = self.storages[key][::-1]
            raise CheckpointError(
                f"{self._what}: storage {names.shown(key)} has {held} "
                f"numbers of {of}, not {count} of {kind}."
            )
        return self._arrays[key]

    def _held(self, key: str, count: int) -> int:
        return count if self._empty else self._arrays[key].array.size

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any):
        if type(storage) is not _Storage:
            raise ValueError("a tensor's storage is not a storage")
        if self._empty:
            return storage.array
        if type(size) is not tuple or type(stride) is not tuple:
            raise ValueError("a tensor has no shape or no strides")
        if wrong := wrong_shape(size):
            raise ValueError(f"a tensor is impossible: {wrong}")
        if any(type(step) is not int or step < 0 for step in (offset, *stride)):
            raise ValueError("offset and strides must be non-negative integers")
        if len(size) != len(stride):
            raise ValueError(f"{len(stride)} strides for {len(size)} dimensions")
        held = storage.array.size
        empty = 0 in size
        # Python integers: products cannot overflow.
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if offset > held or (not empty and (math.prod(size) > held or last >= held)):
            raise CheckpointError(
                f"{self._what}: a tensor of shape {size}, strides {stride}, does not "
                f"fit its storage of {held} numbers."
            )
        if empty:
            return np.empty(size, storage.array.dtype)
        # The stride of an axis of length one is never used, and may be anything.
        each = storage.array.itemsize
        steps = [step * each if n > 1 else 0 for n, step in zip(size, stride)]
        return np.lib.stride_tricks.as_strided(
            storage.array[offset : last + 1], size, steps, writeable=False
        )

    def _parameter(self, data: Any, *_: Any) -> np.ndarray:
        if type(data) is not np.ndarray:
            raise ValueError("a parameter's data is not a tensor")
        return data


def _new_dict() -> dict[Any, Any]:
    """Replaces `OrderedDict()`, which torch.save fills afterwards.

    Not `dict`: it would hash an argument, and a hostile one takes forever to hash.
    """
    return {}
