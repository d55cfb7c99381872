"""The safetensors format, read and written with NumPy alone.

Eight bytes of header length (little-endian), a JSON header, then the raw bytes. Reading
executes nothing, and every claim of the header is checked against the bytes that are
there before an array is made. Format: the safetensors README, "Format" section.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from afterimage.checkpoints import jsons
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.names import shown
from afterimage.checkpoints.schemas import wrong_shape

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def encode(tensors: Mapping[str, np.ndarray]) -> bytes:
    """{name: array} -> the bytes of a safetensors file, names in sorted order."""
    header: dict[str, Any] = {}
    offset = 0
    for name in sorted(tensors):
        array = tensors[name]
        if array.dtype not in _CODES:
            raise TypeError(f"{name} has dtype {array.dtype}; use {sorted(_CODES)}.")
        header[name] = {
            "dtype": _CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    body = [tensors[name].tobytes() for name in sorted(tensors)]
    return b"".join([len(text).to_bytes(8, "little"), text, *body])


def decode(data: bytes, what: str) -> dict[str, np.ndarray]:
    """The bytes of a safetensors file -> {name: read-only array}, views of the bytes.

    Raises CheckpointError for anything that is not safetensors (a pickle, an archive),
    and for a header that claims other than what is there.
    """
    if len(data) < 10 or data[8:9] != b"{":
        raise CheckpointError(
            f"{what} is not a safetensors file{_looks_like(data)}. It was not opened "
            "any further; only safetensors written by Afterimage is read here."
        )
    size = int.from_bytes(data[:8], "little")
    if size > min(jsons.MOST, len(data) - 8):
        raise CheckpointError(
            f"{what} claims a header of {size} bytes, but has only {len(data)} in all; "
            f"expected at most {jsons.MOST}."
        )
    try:
        header = jsons.parse(data[8 : 8 + size])
    except ValueError as error:
        raise CheckpointError(f"{what} has a damaged header: it {error}.") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{what} has a header that is not a JSON object.")
    header.pop("__metadata__", None)
    body = memoryview(data)[8 + size :]
    wrong = [
        f"{shown(name)}: {p}" for name, e in header.items() if (p := _wrong(e, body))
    ]
    if wrong:
        raise CheckpointError(f"{what} contradicts itself: {jsons.listed(wrong)}.")
    _require_cover(header, body, what)
    return {name: _array(entry, body) for name, entry in header.items()}


def require_finite(arrays: Mapping[str, np.ndarray], what: str) -> None:
    """Raise CheckpointError that names every array with NaN or infinite numbers."""
    wrong = not_finite(arrays)
    if wrong:
        raise CheckpointError(
            f"{what} holds weights that are not finite: {jsons.listed(wrong)}. Take an "
            "earlier checkpoint, or train again."
        )


def not_finite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """`NAME: 3 of 64 numbers are NaN or infinite`, for every array that has such."""
    found = []
    for name, array in arrays.items():
        if array.dtype.kind not in "biu":
            bad = array.size - int(np.count_nonzero(np.isfinite(array)))
            if bad:
                text = f"{bad} of {array.size} numbers are NaN or infinite"
                found.append(f"{shown(name)}: {text}")
    return found


def from_bytes(data: bytes | memoryview, dtype: np.dtype) -> np.ndarray:
    """A read-only view of raw numbers; ValueError for booleans other than 0 and 1."""
    if dtype == np.bool_ and len(data) and np.frombuffer(data, np.uint8).max() > 1:
        raise ValueError("a boolean must be 0 or 1")
    return np.frombuffer(data, dtype)


def _require_cover(header: dict[str, Any], body: memoryview, what: str) -> None:
    """Every byte belongs to exactly one tensor: no overlap multiplies memory."""
    at = 0
    for begin, end in sorted(entry["data_offsets"] for entry in header.values()):
        if begin != at:
            raise CheckpointError(
                f"{what} contradicts itself: a tensor begins at byte {begin}, the one "
                f"before ends at {at}."
            )
        at = end
    if at != len(body):
        raise CheckpointError(
            f"{what} has {len(body)} bytes of data, its tensors cover {at}."
        )


def _wrong(entry: Any, body: memoryview) -> str | None:
    """What is wrong with one header entry, or None."""
    code = entry.get("dtype") if isinstance(entry, dict) else None
    if not isinstance(code, str) or code not in _DTYPES:
        return "unknown dtype or no entry"
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        return "shape and data_offsets must be lists of non-negative integers"
    if reason := wrong_shape(shape):
        return reason
    begin, end = offsets
    needed = math.prod(shape) * _DTYPES[code].itemsize
    if end - begin != needed:
        return f"shape {shape} needs {needed} bytes, {end - begin} are given to it"
    if end > len(body):
        return f"ends at byte {end} of {len(body)}"
    try:
        from_bytes(body[begin:end], _DTYPES[code])
    except ValueError as error:
        return str(error)
    return None


def _counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        type(item) is int and item >= 0 for item in value
    )


def _array(entry: dict[str, Any], body: memoryview) -> np.ndarray:
    begin, end = entry["data_offsets"]
    array = from_bytes(body[begin:end], _DTYPES[entry["dtype"]])
    return array.reshape(entry["shape"])


def _looks_like(data: bytes) -> str:
    if data[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return ": it is a Python pickle, which can run code when opened"
    if data[:4] == b"PK\x03\x04":
        return ": it is a zip archive (PyTorch's and NumPy's .npz look like this)"
    if data[:4] == b"\x89HDF":
        return ": it is HDF5 (Keras weights look like this)"
    return ""
