"""JSON from a file that anybody may have written: strict, bounded, then one schema.

Stricter than `json.loads`: no NaN, no number beyond a double, no key twice in one
object, no nesting beyond 64 levels. What a file must hold is in `schemas.py`.
"""

import json
import math
import pathlib
import typing
from typing import Any

import msgspec

from checkpoints import files
from checkpoints.errors import CheckpointError

MOST = 16 * 2**20
"""Bytes of a manifest or a header: ours have a few hundred bytes a leaf."""
_DEEPEST = 64
_LISTED = 10  # mistakes in one message


def parse(data: bytes | str) -> Any:
    """The value of strict JSON in UTF-8; ValueError says what it is instead."""
    try:
        if isinstance(data, bytes):
            data = data.decode()
        value = _DECODER.decode(data)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: {error.reason} at {error.start}") from None
    except json.JSONDecodeError as error:
        text = f"is not JSON: {error.msg}, line {error.lineno} column {error.colno}"
        raise ValueError(text) from None
    except RecursionError:
        raise ValueError(f"is nested deeper than {_DEEPEST} levels") from None
    if _deeper(value, _DEEPEST):
        raise ValueError(f"is nested deeper than {_DEEPEST} levels")
    return value


def read(path: pathlib.Path, kind: Any, cure: str, *, most: int = MOST) -> Any:
    """The plain value of a JSON file that fits `kind`, one of `schemas`.

    Raises CheckpointError with everything that does not fit, ending in `cure`.
    """
    try:
        value = parse(files.read_bytes(path, most))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} {files.reason(error)}; {cure}.") from None
    if wrong := mistakes(value, kind):
        raise CheckpointError(f"{path} is damaged: {listed(wrong)}; {cure}.")
    return value


def mistakes(value: Any, kind: Any, where: str = "") -> list[str]:
    """Every place where a JSON value is not what the schema `kind` says; [] if none."""
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, OverflowError, UnicodeError) as error:
        said = str(error).partition(" - at `$")[0].replace("`", "")
        return _inside(value, kind, where) or [f"{where}: {said}" if where else said]
    return []


def listed(lines: list[str]) -> str:
    """The first of many mistakes, each cut, and how many more there are."""
    more = len(lines) - _LISTED
    text = "; ".join(line[:300] for line in lines[:_LISTED])
    return text + (f"; and {more} more" if more > 0 else "")


def _inside(value: Any, kind: Any, where: str) -> list[str]:
    """The mistakes of a value's parts, as far as the schema names parts."""
    kind = getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind
    if not isinstance(value, dict):
        return []
    if typing.get_origin(kind) is dict:
        parts = [
            (files.shown(k), v, typing.get_args(kind)[1]) for k, v in value.items()
        ]
        missing = []
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = msgspec.structs.fields(kind)
        names = {field.encode_name: field.type for field in fields}
        parts = [(name, value[name], names[name]) for name in names if name in value]
        missing = [
            f.encode_name for f in fields if f.required and f.encode_name not in value
        ]
    else:
        return []
    prefix = f"{where}." if where else ""
    found = [line for name, v, t in parts for line in mistakes(v, t, prefix + name)]
    return [f"{prefix}{name}: missing" for name in missing] + found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for n, name in enumerate(names) if name in names[:n])
        raise ValueError(f"has the key {files.shown(twice)} twice in one object")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"holds {files.shown(text)}, which no number can hold")
    return value


def _whole(text: str) -> int:
    if len(text) > 20:  # 2^64 has 20 digits
        raise ValueError(f"holds {files.shown(text)}, an integer beyond 64 bits")
    return int(text)


def _constant(text: str) -> Any:
    raise ValueError(f"holds {text}, which is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=_number,
    parse_int=_whole,
    parse_constant=_constant,
)


def _deeper(value: Any, levels: int) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    while level:
        if levels < 0:
            return True
        levels -= 1
        parts = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for part in parts for v in part if isinstance(v, dict | list)]
    return False
