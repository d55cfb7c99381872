"""PyTorch's `torch.save` files (`.pth`, `.pt`, `.bin`), read without running them.

A zip archive of `data.pkl`, which names tensors, and `data/KEY`, their bytes, none
compressed. `pickles.py` reads the pickle: it admits tensors, dictionaries and plain
values; any other name in it is refused before it is looked up. Format:
torch/serialization.py, `_save` and `_load`; torch/_utils.py, `_rebuild_tensor_v2`.
"""

import dataclasses
import math
import os
import pathlib
import struct
import zipfile
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from afterimage.checkpoints import files, names, pickles, tensors
from afterimage.checkpoints.errors import CheckpointError, UsageError
from afterimage.checkpoints.schemas import wrong_shape

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


_MOST_DIRECTORY = 16 * 2**20  # bytes: torch.save takes about 130 a tensor


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    """The numbers of one storage; only `persistent` makes it, and no pickle can."""

    array: np.ndarray


def read_torch(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote: dictionaries, lists and numbers, tensors as arrays.

    Arrays are read-only and may share memory, as the tensors did: however many the
    file names, they take no more than its size.

    Raises UsageError for the format before PyTorch 1.6 and for what is no such file,
    CheckpointError for a pickle with anything but tensors and plain values, and for a
    file that contradicts itself.
    """
    path = pathlib.Path(path)
    try:
        with files.open_regular(path) as file:
            if not zipfile.is_zipfile(file):
                raise UsageError(
                    f"{path} is not a zip archive as torch.save writes since PyTorch "
                    "1.6. If it is older and you trust it, load it in PyTorch and save "
                    "it again, or save it as .safetensors."
                )
            _require_small_directory(file)
            with zipfile.ZipFile(file) as archive:
                return _read(archive, path, os.fstat(file.fileno()).st_size)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile file can fail in any way it likes
        text = files.reason(error) or type(error).__name__
        raise CheckpointError(f"{path} cannot be read: {text[:300]}.") from error


def _require_small_directory(file: BinaryIO) -> None:
    """Bound the list of members before it is read; torch.save ends with it.

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
        raise ValueError(f"its members claim more than the {size} bytes that it has")
    root = pickled[0].removesuffix("data.pkl")
    order = root + "byteorder"
    if order in members and archive.read(order) != b"little":
        raise UsageError(
            f"{path} was written on a big-endian machine; save it "
            "again on a little-endian one."
        )
    return _Reader(archive, root, str(path)).load(archive.read(pickled[0]))


class _Reader:
    """The functions that a pickle of tensors may call, over one archive."""

    def __init__(self, archive: zipfile.ZipFile, root: str, what: str):
        self._archive, self._root, self._what = archive, root, what
        self._storages: dict[str, tuple[str, _Storage]] = {}
        self._kinds = {pickles.Name(name): name for name in _STORAGES}

    def load(self, data: bytes) -> Any:
        """What the pickle describes."""
        names = {("torch", name): mark for mark, name in self._kinds.items()}
        for module, name, function in (
            ("collections", "OrderedDict", _new_dict),
            ("torch._utils", "_rebuild_tensor_v2", self._tensor),
            ("torch._utils", "_rebuild_parameter", self._parameter),
        ):
            names[module, name] = pickles.Name(name, function)
        return pickles.load(data, names, self._storage, self._unknown)

    def _unknown(self, module: str, name: str) -> CheckpointError:
        return CheckpointError(
            f"{self._what} holds {names.shown(f'{module}.{name}')}, and only tensors "
            "in plain dictionaries are read: opening anything else may run its code. "
            "It was not run. Save the state_dict alone, or as .safetensors."
        )

    def _storage(self, pid: Any) -> _Storage:
        if type(pid) is not tuple or len(pid) != 5 or type(pid[2]) is not str:
            raise ValueError("it does not name a storage as torch.save does")
        _, mark, key, _, count = pid
        kind = self._kinds.get(mark) if type(mark) is pickles.Name else None
        if kind is None or type(count) is not int:
            raise ValueError(f"storage {names.shown(key)} has no type or no size")
        if key not in self._storages:
            data = self._archive.read(f"{self._root}data/{key}")
            array = tensors.from_bytes(data, _STORAGES[kind])
            self._storages[key] = kind, _Storage(array)
        known, storage = self._storages[key]
        if known != kind or storage.array.size != count:
            raise CheckpointError(
                f"{self._what}: storage {names.shown(key)} has {storage.array.size} "
                f"numbers of {known}, not {count} of {kind}."
            )
        return storage

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any):
        if type(storage) is not _Storage:
            raise ValueError("a tensor's storage is not a storage")
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
        # Python's integers: no product wraps around.
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if offset > held or (not empty and (math.prod(size) > held or last >= held)):
            raise CheckpointError(
                f"{self._what}: a tensor of shape {size}, strides {stride}, does not "
                f"fit its storage of {held} numbers."
            )
        if empty:
            return np.empty(size, storage.array.dtype)
        # The stride of an axis of one is never taken, and may be anything.
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
    """Replaces `OrderedDict()`; torch.save fills it afterwards."""
    return {}
