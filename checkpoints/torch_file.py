"""PyTorch's `torch.save` files (`.pth`, `.pt`, `.bin`), read without running them.

A zip archive of `data.pkl`, which names tensors, and `data/KEY`, their bytes. The
pickle is read by an unpickler that admits tensors, ordered dictionaries and names of
storages; any other name in it is refused before it is looked up. Format:
torch/serialization.py, `_save` and `_load`; torch/_utils.py, `_rebuild_tensor_v2`.
"""

import io
import math
import os
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from typing import Any

import ml_dtypes
import numpy as np

from checkpoints.errors import CheckpointError, UsageError

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


def read_torch(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote: dictionaries, lists and numbers, tensors as arrays.

    Raises UsageError for the format before PyTorch 1.6 and for what is no such file,
    CheckpointError for a pickle with anything but tensors and plain values, and for a
    file that contradicts itself.
    """
    path = pathlib.Path(path)
    if not zipfile.is_zipfile(path):
        raise UsageError(
            f"{path} is not a zip archive as torch.save writes since PyTorch 1.6. If "
            "it is older and you trust it, load it in PyTorch and save it again, or "
            "save it as .safetensors."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile pickle can fail in any way it likes
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error


def _read(archive: zipfile.ZipFile, path: pathlib.Path) -> Any:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UsageError(f"{path} is a zip archive, but torch.save did not write it.")
    root = pickles[0].removesuffix("data.pkl")
    order = root + "byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise UsageError(f"{path} was written on a big-endian machine; save it anew.")
    stream = io.BytesIO(archive.read(pickles[0]))
    return _Unpickler(stream, archive, root, str(path)).load()


class _Unpickler(pickle.Unpickler):
    """Bound methods stand for PyTorch's functions: a pickle cannot alter those."""

    def __init__(self, stream, archive: zipfile.ZipFile, root: str, what: str):
        super().__init__(stream)
        self._archive, self._root, self._what = archive, root, what
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._parameter
        raise CheckpointError(
            f"{self._what} holds {module}.{name}, and only tensors in plain "
            "dictionaries are read: opening anything else may run its code. It was not "
            "run. Save the state_dict alone, or as .safetensors."
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, kind, key, _, count = pid
        if key not in self._storages:
            data = self._archive.read(f"{self._root}data/{key}")
            self._storages[key] = np.frombuffer(data, _STORAGES[kind])
        if len(self._storages[key]) != count:
            raise CheckpointError(
                f"{self._what}: storage {key} has {len(self._storages[key])} numbers, "
                f"not {count}."
            )
        return self._storages[key]

    def _tensor(self, storage, offset, size, stride, *_: Any) -> np.ndarray:
        fits = len(size) == len(stride) and min((offset, *size, *stride)) >= 0
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=False))
        if not fits or math.prod(size) > len(storage) or last >= max(len(storage), 1):
            raise CheckpointError(
                f"{self._what}: a tensor of shape {tuple(size)}, strides "
                f"{tuple(stride)}, does not fit its storage of {len(storage)} numbers."
            )
        steps = [s * storage.itemsize for s in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()

    def _parameter(self, data: np.ndarray, *_: Any) -> np.ndarray:
        return data
