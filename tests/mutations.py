"""Damage to files, drawn by hypothesis: of bytes, of JSON's structure, of opcodes."""

import copy
import io
import json
import pickletools
from typing import Any

from hypothesis import strategies as st

DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
VALUES = [
    *(None, True, False, 0, -1, 1, 2, 65, 255, 2**20, 2**31, 2**53, 2**63, 2**64),
    *(10**40, 0.0, -0.0, 0.5, 1e-320, 1e308, float("nan"), float("inf"), -(2**63)),
    *("", "x", "1", "params/a", "../x", "/etc", "a\0b", "\x1b[2J", "é", "\ud800"),
    *("a" * 5000, "a/" * 3000, "F32", "float32", "encoder", "step"),
    *([], {}, [[]], [None], [1] * 65, {"": None}, {"a": {"b": {}}}, DEEP),
]
BITS = [b"", b"\0", b"\xff", b"NaN", b"-", b"[" * 500, b"9" * 400, b"\n", b'"', b"{}"]
MANY = st.integers(1, 4)


def bytes_of(draw, data: bytes) -> bytes:
    """Bits flipped, pieces cut, copied, emptied, or put in."""
    for _ in range(draw(MANY)):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(len(data), start + draw(st.sampled_from([1, 2, 8, 64, 10**6])))
        kind = draw(st.integers(0, 5))
        if kind == 0 and data:
            flipped = data[start] ^ (1 << draw(st.integers(0, 7)))
            piece, end = bytes([flipped]), start + 1
        elif kind == 1:
            piece = b""
        elif kind == 2:
            piece = data[start:end] * 2
        elif kind == 3:
            piece = bytes(end - start)
        elif kind == 4:
            piece = draw(st.sampled_from(BITS))
        else:
            piece = draw(st.binary(max_size=8))
        data = data[:start] + piece + data[end:]
    return data


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every part of a JSON value."""
    keys = value if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for part in [value[key] for key in keys]:
        if isinstance(part, dict | list):
            found += _places(part)
    return found


def json_of(draw, value: Any) -> Any:
    """Parts replaced by others, taken out, renamed, wrapped or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(draw(MANY)):
        places = _places(value) if isinstance(value, dict | list) else []
        if not places:
            return draw(st.sampled_from(VALUES))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.integers(0, 5))
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = [holder[key]]
        elif kind == 2:
            other, name = places[draw(st.integers(0, len(places) - 1))]
            holder[key] = copy.deepcopy(other[name])
        elif kind == 3 and isinstance(holder, dict):
            names = [v for v in VALUES if isinstance(v, str)]
            holder[draw(st.sampled_from(names))] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    return value


def json_text(value: Any) -> bytes:
    """JSON as a careless writer makes it: NaN and lone surrogates as they are."""
    return json.dumps(value).encode()


def opcodes_of(draw, data: bytes) -> bytes:
    """Opcodes of a pickle taken out, doubled, moved, or put in from elsewhere."""
    starts = [place for *_, place in pickletools.genops(io.BytesIO(data))]
    parts = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    foreign = [
        b"b",
        b"R",
        b"}",
        b")",
        b"]",
        b"(",
        b"s",
        b"u",
        b"e",
        b"0",
        b"2",
        b"\x85",
    ]
    foreign += [b"h\0", b"q\0", b"\x81", b"N", b"\x8a\x09" + b"\xff" * 8 + b"\x7f"]
    for _ in range(draw(MANY)):
        here = draw(st.integers(0, len(parts) - 1))
        there = draw(st.integers(0, len(parts) - 1))
        kind = draw(st.integers(0, 4))
        if kind == 0 and len(parts) > 1:
            del parts[here]
        elif kind == 1:
            parts.insert(here, parts[there])
        elif kind == 2:
            parts[here], parts[there] = parts[there], parts[here]
        elif kind == 3:
            parts.insert(here, draw(st.sampled_from(foreign)))
        else:
            parts[here] = bytes_of(draw, parts[here])
    return b"".join(parts)
