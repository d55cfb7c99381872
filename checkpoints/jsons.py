"""JSON from a file that anybody may have written: strict, bounded, then one schema.

Stricter than `json.loads`: no NaN, no number beyond a double, no key twice in one
object, no nesting beyond 64 levels. What a file must hold is in `schemas.py`.
"""

import collections
import json
import math
import pathlib
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from afterimage.checkpoints import files
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.names import shown

MOST = 16 * 2**20
"""Bytes of a manifest or a header: ours have a few hundred bytes a leaf."""
_DEEPEST = 64
_LISTED = 10  # mistakes in one message


def parse(data: bytes | str) -> Any:
    """The value of strict JSON in UTF-8; ValueError says what is wrong with it."""
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
    except _Refused:
        raise
    except ValueError:  # Python's own bound on the digits of an integer
        raise ValueError("holds an integer of thousands of digits") from None
    if reason := _beyond(value):
        raise ValueError(reason)
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


def in_lines(lines: Sequence[str], most: int = 100) -> str:
    """The first of many mistakes, one an indented line, and how many more there are."""
    more = len(lines) - most
    shown = [*lines[:most], *([f"and {more} more"] if more > 0 else [])]
    return "".join(f"\n  {line}" for line in shown)


def _inside(value: Any, kind: Any, where: str) -> list[str]:
    """The mistakes of a value's parts, as far as the schema names parts."""
    kind = _of_objects(kind)
    if kind is None or not isinstance(value, dict):
        return []
    prefix = f"{where}." if where else ""
    if typing.get_origin(kind) is dict:
        inner = typing.get_args(kind)[1]
        parts = {shown(name): (part, inner) for name, part in value.items()}
        found = []
    else:
        fields = msgspec.structs.fields(kind)
        names = {field.encode_name: field for field in fields}
        parts = {n: (value[n], field.type) for n, field in names.items() if n in value}
        missing = [n for n, f in names.items() if f.required and n not in value]
        found = [f"{prefix}{name}: missing" for name in missing]
    for name, (part, inner) in parts.items():
        found += mistakes(part, inner, prefix + name)
    return found


def _of_objects(kind: Any) -> Any:
    """The schema of the objects that `kind` admits: a Struct or dict, or None."""
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        found = map(_of_objects, typing.get_args(kind))
        return next((inner for inner in found if inner is not None), None)
    of_objects = typing.get_origin(kind) is dict or (
        isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    )
    return kind if of_objects else None


class _Refused(ValueError):
    """The parser would accept this; we do not."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = collections.Counter(name for name, _ in pairs)
        name = names.most_common(1)[0][0]
        raise _Refused(f"has the key {shown(name)} twice in one object")
    return value


def _constant(text: str) -> Any:
    raise _Refused(f"holds {text}, which is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _beyond(value: Any) -> str | None:
    """Which bound a value exceeds, by its nesting or a number; None if none."""
    level = [value]
    for _ in range(_DEEPEST + 1):
        inside = []
        for part in level:
            if isinstance(part, dict):
                inside.extend(part.values())
            elif isinstance(part, list):
                inside.extend(part)
            elif isinstance(part, int) and part.bit_length() > 64:
                return f"holds an integer of {part.bit_length()} bits, beyond 64"
            elif isinstance(part, float) and not math.isfinite(part):
                return "holds a number that is beyond a double"
        if not inside:
            return None
        level = inside
    return f"is nested deeper than {_DEEPEST} levels"
