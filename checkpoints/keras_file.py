"""Weights of Keras: TensorFlow.js's `model.json` with its shards, and `.h5` files.

`model.json` lists the arrays in `weightsManifest`; their bytes follow one another
through the shards of each group, files beside it. A quantised array has integers q, and
is q * scale + min. Format: tfjs-core, io/types.ts (WeightsManifestConfig), io_utils.ts.
"""

import math
import os
import pathlib
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from afterimage.checkpoints import files, names
from afterimage.checkpoints.errors import CheckpointError, UsageError
from afterimage.checkpoints.schemas import wrong_shape

_MOST_JSON = 64 * 2**20  # bytes; InceptionV3's has 0.2 million
_TYPES = {"float32": "<f4", "float16": "<f2", "int32": "<i4"}
_TYPES |= {"uint8": "u1", "uint16": "<u2", "bool": "?"}

Finite = Annotated[float, Meta(ge=-3e38, le=3e38)]


class _Quantised(msgspec.Struct):
    dtype: Literal["uint8", "uint16", "float16"]
    scale: Finite = 1.0
    min: Finite = 0.0


class _Array(msgspec.Struct):
    name: str
    shape: list[int]
    dtype: Literal["float32", "int32", "uint8", "bool"]
    quantization: _Quantised | None = None


class _Group(msgspec.Struct):
    paths: list[str]
    weights: list[_Array]


class _Model(msgspec.Struct):
    weights_manifest: list[_Group] = msgspec.field(name="weightsManifest")


def read_tfjs(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """{layer/array: float32 or as stored} of a `model.json` and the shards beside it.

    Raises UsageError for a JSON file of another kind, CheckpointError for a shard that
    is missing, elsewhere, or has not the bytes that the arrays need.
    """
    path = pathlib.Path(path)
    try:
        data = files.read_bytes(path, _MOST_JSON)
        model = msgspec.json.decode(data, type=_Model)
    except OSError as error:
        raise CheckpointError(f"{path} {files.reason(error)}.") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(
            f"{path} is not a model.json of TensorFlow.js ({str(error)[:200]})."
        ) from error
    found: dict[str, np.ndarray] = {}
    for group in model.weights_manifest:
        sizes = [_bytes_of(array, path) for array in group.weights]
        body, at = _joined(path, group.paths, sum(sizes)), 0
        for array, size in zip(group.weights, sizes, strict=True):
            if array.name in found:
                raise CheckpointError(f"{path} has {names.shown(array.name)} twice.")
            found[array.name] = _numbers(array, body[at : at + size])
            at += size
    return found


def _kept(array: _Array) -> np.dtype:
    """The type of the numbers in the shards."""
    return np.dtype(_TYPES[(array.quantization or array).dtype])


def _bytes_of(array: _Array, path: pathlib.Path) -> int:
    if wrong := wrong_shape(array.shape):
        raise CheckpointError(f"{path}: {names.shown(array.name)}: {wrong}.")
    return math.prod(array.shape) * _kept(array).itemsize


def _joined(path: pathlib.Path, shards: list[str], size: int) -> memoryview:
    """The bytes of the shards, which are `size` together."""
    body = bytearray()
    for name in shards:
        if pathlib.PurePath(name).name != name or name in ("", "..") or "\0" in name:
            raise CheckpointError(
                f"{path} names the shard {names.shown(name)}; only files beside it are "
                "read."
            )
        try:
            body += files.read_bytes(path.parent / name, size - len(body))
        except OSError as error:
            where = path.parent / name
            raise CheckpointError(f"{where} {files.reason(error)}.") from error
    if len(body) != size:
        raise CheckpointError(
            f"the shards of {path} have {len(body)} bytes, and its arrays need {size}."
        )
    return memoryview(body)


def _numbers(array: _Array, data: memoryview) -> np.ndarray:
    stored = np.frombuffer(data, _kept(array)).reshape(array.shape)
    if (how := array.quantization) is None:
        return stored
    wide = stored.astype(np.float32)
    if how.dtype == "float16":
        return wide
    return wide * np.float32(how.scale) + np.float32(how.min)


def read_h5(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """{layer/array: as stored} of an `.h5` file as Keras writes its weights.

    Raises UsageError without h5py; CheckpointError for another file, and for data that
    are compressed or lie in other files, which Keras's never are.
    """
    try:
        import h5py
    except ImportError as error:
        raise UsageError(
            f"{path}: reading .h5 needs h5py: pip install 'afterimage[known]'"
        ) from error
    found: dict[str, np.ndarray] = {}
    size = os.stat(path).st_size

    def take(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiub":
            return
        if item.compression or item.external or item.is_virtual or item.nbytes > size:
            raise ValueError(f"{names.shown(name)} is not stored as Keras does")
        layer, leaf = name.split("/")[-2:] if "/" in name else ("", name)
        if layer == "vars":  # a .weights.h5 names no layer by what it is
            raise ValueError("save the model as .h5 instead: model.save('model.h5')")
        found[f"{layer}/{leaf.removesuffix(':0')}"] = np.asarray(item)

    try:
        with h5py.File(path, "r") as file:
            file.get("model_weights", file).visititems(take)
    except Exception as error:  # a hostile file can fail in any way
        text = files.reason(error) if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"{path} cannot be read: {text[:300]}.") from error
    return found
