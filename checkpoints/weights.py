"""Encoder and classifier folders: self-contained weights and manifest.

`encoder/weights.safetensors` holds `params/PATH` and `stats/PATH`; `manifest.json`
describes them. A `classifier/` has the same form, with heads. Loading reads bytes and
JSON: it executes no code from the file, and needs neither JAX nor Orbax.

safetensors is eight bytes of header length (little-endian), a JSON header, then the raw
bytes; every claim of the header is checked against the bytes before an array is made.
Format: the safetensors README, "Format" section.
"""

import glob
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from afterimage.checkpoints import files, manifest, schemas
from afterimage.checkpoints.errors import CheckpointError, UsageError, explain
from afterimage.checkpoints.manifest import Finding
from afterimage.checkpoints.names import shown
from afterimage.checkpoints.schemas import wrong_shape
from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.storage.reading import local

ENCODER, CLASSIFIER, DETECTOR = "encoder", "classifier", "detector"
"""The kind in the manifest, and also the folder's name in a run."""
WEIGHTS = "weights.safetensors"
_NAMES = {"params", "stats"}
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


def write_encoder(
    folder: str | os.PathLike[str],
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    manifest: Mapping[str, Any],
    *,
    kind: str = ENCODER,
) -> None:
    """Write an encoder folder atomically; an existing one is replaced at the end.

    `params` and `stats` are nested dicts of arrays; `manifest` describes them
    (`schemas.EncoderManifest`); `schema`, `kind`, `files` and `checksum` are added.
    Raises SaveError, leaving the old folder, and UsageError for a manifest that could
    not be read back.
    """
    final = pathlib.Path(folder)
    artefact = collect(params, stats, manifest, kind)
    partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        files.require_space(final.parent, artefact.nbytes, f"The encoder {final}")
        _remove_leftovers(final)
        artefact.write(partial)
        files.put_in_place(partial, final)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise explain(error, f"The encoder {final}", final.parent) from error


def _remove_leftovers(final: pathlib.Path) -> None:
    """Delete what a killed writer of this folder left behind."""
    for kind in ("partial", "replaced"):
        for path in final.parent.glob(f".{glob.escape(final.name)}.{kind}-*"):
            pid = path.name.rpartition("-")[2]
            if re.fullmatch("[0-9]{1,18}", pid) and (
                int(pid) == os.getpid() or not files.alive(int(pid))
            ):
                shutil.rmtree(path, ignore_errors=True)


class Artefact:
    """An encoder on the host, ready to be written by another thread."""

    def __init__(
        self, arrays: dict[str, np.ndarray], content: dict[str, Any], kind: str
    ):
        self._arrays, self._content, self._kind = arrays, content, kind
        self.nbytes = sum(a.nbytes for a in arrays.values()) + 4096 + 200 * len(arrays)

    def write(self, folder: pathlib.Path) -> None:
        """Write weights and manifest to a new folder, each synced to disk."""
        folder.mkdir(parents=True)
        files.write_bytes(folder / WEIGHTS, encode(self._arrays))
        content = {**self._content, "kind": self._kind}
        files.write_bytes(folder / manifest.NAME, manifest.seal(content, folder))
        files.sync_folder(folder)


def collect(
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    content: Mapping[str, Any],
    kind: str = ENCODER,
) -> Artefact:
    """Copy an encoder to the host; the arrays may be donated afterwards."""
    flat = flatten({"params": params, "stats": stats})
    arrays = {path: np.array(leaf, order="C") for path, leaf in flat.items()}
    content = manifest.require_json(content, f"The manifest of the {kind}")
    manifest.require_valid(content, kind)
    return Artefact(arrays, content, kind)


def read_encoder(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(params, stats, manifest) of an encoder, as nested dicts of NumPy arrays.

    `path` is a run folder, a `checkpoints/STEP` folder, or an `encoder/` folder. For a
    run folder, its own `encoder/` is used if good, else the newest step whose encoder
    is good. Every byte is compared with its checksum before it is used.

    Raises CheckpointError, listing everything that was tried and why it was refused.
    """
    place = local(path)
    if not place.is_dir():
        raise UsageError(
            f"{path} is not a folder; expected a run folder, a checkpoints/STEP "
            "folder, or an encoder/ folder."
        )
    refused: list[str] = []
    candidates, tried = _candidates(place), None
    # A run in progress may delete old steps while we read them; by then it has new
    # ones.
    while candidates != tried:
        refused = []
        for candidate in candidates:
            try:
                if candidate != place:
                    require_inside(candidate)
                return read_folder(candidate, ENCODER)
            except (CheckpointError, OSError) as error:
                refused.append(str(error))
        candidates, tried = _candidates(place), candidates
    if not refused:
        raise UsageError(
            f"{place} contains no encoder; expected a run folder with encoder/ or "
            "checkpoints/, a checkpoints/STEP folder, or an encoder/ folder."
        )
    raise CheckpointError(
        f"There is no good encoder in {place}:\n  " + "\n  ".join(refused)
    )


def _candidates(place: pathlib.Path) -> list[pathlib.Path]:
    if (place / WEIGHTS).exists():
        return [place]
    own = [place / ENCODER] if (place / ENCODER).is_dir() else []
    steps = reversed(manifest.numbered_steps(place))
    found = own + [folder / ENCODER for _, folder in steps]
    return found or ([place] if (place / manifest.NAME).exists() else [])


def require_inside(folder: pathlib.Path) -> None:
    """Raise CheckpointError if an artefact folder links out of its parent folder.

    The folder named by the user may itself be a link.
    """
    if files.leads_out(folder, folder.parent):
        raise CheckpointError(
            f"{folder} is a link to a place outside {folder.parent}. If this is "
            f"intended, give its target, {os.path.realpath(folder)}."
        )


def read_folder(folder: pathlib.Path, kind: str) -> tuple[dict, dict, dict]:
    """(params, stats, manifest) of one artefact folder of this kind, verified."""
    content, tree, findings = examine(folder, kind)
    fatal = [str(finding) for finding in findings if finding.fatal]
    if content is None or fatal:
        raise CheckpointError("; ".join(fatal))
    return tree.get("params", {}), tree.get("stats", {}), content


def examine(
    folder: pathlib.Path, kind: str
) -> tuple[dict[str, Any] | None, dict[str, Any], list[Finding]]:
    """(manifest, {"params", "stats"}, findings) of one artefact folder of this kind.

    Every byte is compared with its checksum; every name, shape and number is checked.
    """
    kept: dict[str, list[bytes]] = {WEIGHTS: []}
    content, findings = manifest.check_folder(folder, (kind,), keep=kept)
    if content is None or any(finding.fatal for finding in findings):
        return content, {}, findings
    place = folder / WEIGHTS
    if WEIGHTS not in content["files"]:
        text = f"lists no {WEIGHTS}"
        return content, {}, [*findings, Finding(str(folder), "damaged", text)]
    try:
        flat = decode(kept[WEIGHTS][0], str(place))
        wrong = schemas.wrong_paths(flat) + [
            f"{shown(name)} is under neither of {sorted(_NAMES)}"
            for name in flat
            if name.partition("/")[0] not in _NAMES or "/" not in name
        ]
        if wrong:
            raise CheckpointError(f"holds wrong names: {schemas.listed(wrong)}.")
        require_finite(flat, str(place))
    except CheckpointError as error:
        text = str(error).removeprefix(f"{place} ").removesuffix(".")
        return content, {}, [*findings, Finding(str(place), "damaged", text)]
    tree = unflatten({name: array.copy() for name, array in flat.items()})
    return content, tree, findings


def write_classifier(
    folder: str | os.PathLike[str],
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> None:
    """Write a classifier folder atomically, as `write_encoder` does.

    `params` and `stats` have the keys `encoder` and `heads`.
    """
    write_encoder(folder, params, stats, manifest, kind=CLASSIFIER)


def read_classifier(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(params, stats, manifest) of a fine-tuning run, or of its `classifier/` folder.

    Every byte is compared with its checksum. Raises UsageError where there is no
    classifier, CheckpointError where it is damaged.
    """
    whole = place = local(path, "classifier")
    if (place / CLASSIFIER).is_dir():
        place = place / CLASSIFIER
    try:
        if place != whole:
            require_inside(place)
        return read_folder(place, CLASSIFIER)
    except CheckpointError as error:
        if (place / WEIGHTS).is_file():
            raise
        raise UsageError(
            f"{path} contains no classifier; expected a finished fine-tuning run. To "
            f"make one: afterimage finetune --from {path} --data ... --out ..."
        ) from error


class ReadArtefact(NamedTuple):
    """What is in an artefact's folder; every byte was compared with its checksum."""

    folder: pathlib.Path
    kind: str
    params: dict[str, Any]
    stats: dict[str, Any]
    manifest: dict[str, Any]


def read_artefact(
    path: str | os.PathLike[str], kinds: Mapping[str, str]
) -> ReadArtefact:
    """The artefact of a finished run, or in its own folder.

    `kinds` maps what is looked for, in order, to the command that makes it; each is the
    name of its folder in a run. Raises UsageError where there is none, CheckpointError
    where it is damaged.
    """
    whole = local(path, "whole")
    found = [kind for kind in kinds if (whole / kind).is_dir()]
    if found:
        folder, kind = whole / found[0], found[0]
        require_inside(folder)
    elif (whole / WEIGHTS).is_file() or (whole / manifest.NAME).is_file():
        folder = whole
        kind = whole.name if whole.name in kinds else next(iter(kinds))
    else:
        makers = " or ".join(dict.fromkeys(kinds.values()))
        raise UsageError(
            f"{path} has no {' or '.join(kinds)}; expected a finished run of {makers}"
        )
    return ReadArtefact(folder, kind, *read_folder(folder, kind))


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
    and for a header that does not match the data.
    """
    if len(data) < 10 or data[8:9] != b"{":
        raise CheckpointError(
            f"{what} is not a safetensors file{_looks_like(data)}. Nothing in it was "
            "used."
        )
    size = int.from_bytes(data[:8], "little")
    if size > min(schemas.MOST, len(data) - 8):
        raise CheckpointError(
            f"{what} declares a header of {size} bytes, but the whole file has "
            f"{len(data)}; expected at most {schemas.MOST}."
        )
    try:
        header = schemas.parse(data[8 : 8 + size])
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
        raise CheckpointError(f"{what} is inconsistent: {schemas.listed(wrong)}.")
    _require_cover(header, body, what)
    arrays = {}
    for name, entry in header.items():
        part = body[slice(*entry["data_offsets"])]
        arrays[name] = from_bytes(part, _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def require_finite(arrays: Mapping[str, np.ndarray], what: str) -> None:
    """Raise CheckpointError naming every array with NaN or infinite numbers."""
    wrong = not_finite(arrays)
    if wrong:
        raise CheckpointError(
            f"{what} contains weights that are not finite: {schemas.listed(wrong)}. "
            "Use an earlier checkpoint, or train again."
        )


def not_finite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """`NAME: 3 of 64 numbers are NaN or infinite`, for each array with any."""
    return [
        f"{shown(name)}: {bad} of {array.size} numbers are NaN or infinite"
        for name, array in arrays.items()
        if array.dtype.kind not in "biu"
        and (bad := array.size - int(np.count_nonzero(np.isfinite(array))))
    ]


def from_bytes(data: bytes | memoryview, dtype: np.dtype) -> np.ndarray:
    """A read-only view of raw numbers; ValueError for booleans other than 0 and 1."""
    if dtype == np.bool_ and len(data) and np.frombuffer(data, np.uint8).max() > 1:
        raise ValueError("a boolean must be 0 or 1")
    return np.frombuffer(data, dtype)


def _require_cover(header: dict[str, Any], body: memoryview, what: str) -> None:
    """Require each byte in exactly one tensor: overlaps would multiply memory."""
    at = 0
    for begin, end in sorted(entry["data_offsets"] for entry in header.values()):
        if begin != at:
            raise CheckpointError(
                f"{what} is inconsistent: a tensor starts at byte {begin}, but the "
                f"one before ends at {at}."
            )
        at = end
    if at != len(body):
        raise CheckpointError(
            f"{what} has {len(body)} bytes of data, but its tensors use {at}."
        )


def _wrong(entry: Any, body: memoryview) -> str | None:
    """What is wrong with one header entry, or None."""
    code = entry.get("dtype") if isinstance(entry, dict) else None
    if not isinstance(code, str) or code not in _DTYPES:
        return "unknown dtype or no entry"
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if (
        not all(
            isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
            for value in (shape, offsets)
        )
        or len(offsets) != 2
    ):
        return "shape and data_offsets must be lists of non-negative integers"
    if reason := wrong_shape(shape):
        return reason
    begin, end = offsets
    needed = math.prod(shape) * _DTYPES[code].itemsize
    if end - begin != needed:
        return f"shape {shape} needs {needed} bytes, but has {end - begin}"
    if end > len(body):
        return f"ends at byte {end}, but there are {len(body)}"
    try:
        from_bytes(body[begin:end], _DTYPES[code])
    except ValueError as error:
        return str(error)
    return None


def _looks_like(data: bytes) -> str:
    if data[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return ": it is a Python pickle, which can run code when opened"
    if data[:4] == b"PK\x03\x04":
        return ": it is a zip archive (PyTorch's and NumPy's .npz look like this)"
    if data[:4] == b"\x89HDF":
        return ": it is HDF5 (Keras weights look like this)"
    return ""
