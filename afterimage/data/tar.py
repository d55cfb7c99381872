"""The members of a tar file, in order, read without unpacking and in bounded memory.

Reads ustar, GNU and pax archives. Only headers are read, and the few members that are
asked for, so a pass over large members skips most of the file.
https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html
"""

import dataclasses
from collections.abc import Iterator

from afterimage.checkpoints.names import spelling
from afterimage.data.ranged import Ranged

BLOCK = 512
_FAR = 2**18  # members of more bytes are skipped instead of read
_AHEAD, _NEAR = 2**20, 2**14  # bytes read at once, of small and of large members
_LONGEST_NAME = 4096
_LONGEST_EXTRA = 2**20
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_LINKS = {b"1": "a hard link", b"2": "a symbolic link"}


class BadTar(ValueError):
    """This file is not a usable tar; the message says why, and the cure."""


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A regular file, or a link."""

    name: str
    start: int
    """Its first byte in the archive."""
    size: int
    problem: str = ""
    """Why its bytes cannot be used, e.g. that it is a link; empty if they can."""


class Window:
    """Reads ahead, for ranges that are asked for in order."""

    def __init__(self, file: Ranged):
        self._file, self._first, self._data = file, 0, b""
        self.size = file.size

    def read(self, start: int, length: int) -> bytes:
        """The bytes from `start` on, fewer at the end of the file."""
        place = start - self._first
        if not 0 <= place <= len(self._data) - length:
            far = start - self._first - len(self._data) > _FAR
            self._data = self._file.read(start, max(length, _NEAR if far else _AHEAD))
            self._first, place = start, 0
        return self._data[place : place + length]


def members(window: Window) -> Iterator[Member]:
    """Every file and link, in order; BadTar for an archive that is not whole.

    Folders and devices are left out. Names are decoded as UTF-8; other bytes become
    surrogates, as in Python's own file names.
    """
    _check_start(window)
    at, extra, ended = 0, {}, False
    while at < window.size:
        block = window.read(at, BLOCK)
        if not block.strip(b"\0"):
            at, ended = at + BLOCK, True  # archives may be joined, so go on
            continue
        ended = False
        kind, name, size = _header(block, at)
        if kind == b"S":
            raise BadTar(f"the member {spelling(name)} is a sparse file; pack it again")
        start = at + BLOCK
        if kind in b"0\0007":
            size = int(extra.get("size", size))
        elif kind in b"123456":  # links, devices and folders have no bytes
            size = 0
        if size < 0 or start + size > window.size:
            raise BadTar(
                f"the member {spelling(name)} should have {size:,} bytes, but only "
                f"{max(0, window.size - start):,} follow: the file is cut off or "
                "damaged. Copy it again"
            )
        at = start + -(-size // BLOCK) * BLOCK
        if kind in b"xXgLK":
            if kind != b"g":
                extra |= _extra(kind, window, start, size)
            continue
        name = extra.get("path", name)
        if len(name) > _LONGEST_NAME:
            raise BadTar(f"a member's name has {len(name):,} characters")
        problem = "a sparse file" if "sparse" in extra else _LINKS.get(kind, "")
        extra = {}
        if kind in b"0\000127" and not name.endswith("/"):
            yield Member(name, start, size, problem)
    if not ended:
        raise BadTar(
            "it has no end: it was cut off between two members. Copy it again; if its "
            "writer leaves the end out, add it with truncate -s +1024 FILE"
        )


def _check_start(window: Window) -> None:
    head = window.read(0, BLOCK)
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            raise BadTar(
                f"it is compressed ({kind}), so images cannot be read out of order. "
                "Uncompress it once, as gunzip does, and give the .tar; images hardly "
                "get smaller by compression"
                if kind != "zip"
                else "it is a zip archive; use zip:PATH"
            )
    if len(head) < BLOCK:
        raise BadTar(f"it has {len(head)} bytes, which is no tar file")


def _header(block: bytes, at: int) -> tuple[bytes, str, int]:
    """(type, name, bytes) of a member."""
    try:
        stated = _number(block[148:156])
        size = _number(block[124:136])
    except ValueError:
        stated = size = -1
    found = sum(block) - sum(block[148:156]) + 8 * 32
    if len(block) < BLOCK or (stated != found and stated != _signed(block)):
        raise BadTar(
            f"no member's header at byte {at:,}: the file is damaged, or not a tar file"
        )
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0]
    # GNU tar uses the bytes of the prefix for other things.
    if prefix and block[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    return block[156:157], _text(name), size


def _signed(block: bytes) -> int:
    """The checksum of some old programs."""
    high = sum(byte > 127 for byte in block[:148] + block[156:])
    return sum(block) - sum(block[148:156]) + 8 * 32 - 256 * high


def _number(field: bytes) -> int:
    """An octal number, or GNU's binary one; ValueError if it is neither."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big", signed=field[0] == 0xFF)
    text = field.partition(b"\0")[0].strip()
    return int(text, 8) if text else 0


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _extra(kind: bytes, window: Window, start: int, size: int) -> dict[str, str]:
    """What a header before a member says of it."""
    if kind == b"K":  # the target of a link
        return {}
    if size > _LONGEST_EXTRA:
        raise BadTar(f"an extended header of {size:,} bytes at byte {start:,}")
    data = window.read(start, size)
    if kind == b"L":
        return {"path": _text(data.partition(b"\0")[0])}
    found: dict[str, str] = {}
    while data:
        length, space, _ = data[:20].partition(b" ")
        if not space or not length.isdigit() or not 4 < int(length) <= len(data):
            raise BadTar(f"a damaged extended header at byte {start:,}")
        record, data = data[: int(length)], data[int(length) :]
        key, _, value = record[len(length) + 1 : -1].partition(b"=")
        if key == b"path":
            found["path"] = _text(value)
        elif key == b"size" and value.isdigit() and len(value) < 19:
            found["size"] = value.decode()
        elif key.startswith(b"GNU.sparse."):
            found["sparse"] = "1"
    return found
