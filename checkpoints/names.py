r"""External names (files, classes, columns) in one form, safe to store and show.

A file name can be any bytes except NUL and `/`, in any Unicode form or none. Files are
opened by that raw name. Everything else (ids, class names, messages, reports,
artefacts) uses its escaped form: bytes that are not UTF-8, control characters and
characters that change text direction are written as `\xe9`, `\x1b` or `\u202e`.
"""

import os
import re
import unicodedata
from collections.abc import Sequence

# Control characters, surrogates (bytes that are not UTF-8: Python's surrogateescape),
# line separators, and characters that change text direction.
_UNSAFE = re.compile(
    r"[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_ESCAPED = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4})")


def spelling(name: str) -> str:
    r"""The form in which a raw name is stored and shown; unique to each raw name.

    If a name already looks like an escape, its backslashes are doubled.
    """
    if _ESCAPED.search(name) or ("\\" in name and _UNSAFE.search(name)):
        name = name.replace("\\", "\\\\")
    return printable(name)


def class_name(name: str) -> str:
    """The form of a class or column name, also normalised to Unicode NFC.

    macOS writes é as e plus an accent; both are the same class.
    """
    return spelling(unicodedata.normalize("NFC", name))


def printable(text: str, keep: str = "") -> str:
    """`text` with characters escaped that could break a line or control a terminal.

    Characters in `keep` (a newline between messages, say) stay.
    """
    return _UNSAFE.sub(lambda found: _escape(found[0], keep), text)


def shortened(text: str, most: int = 200) -> str:
    """`text` made printable, and cut to `most` characters."""
    return printable(text if len(text) <= most else f"{text[:most]}…")


def shown(name: object, most: int = 80) -> str:
    """A name or value from a file for a message: quoted, escaped, and cut."""
    text = name if isinstance(name, str) else repr(name)
    cut = text[:most]
    quoted = repr(cut) if isinstance(name, str) else cut
    more = len(text) - most
    return f"{quoted}… ({more} more characters)" if more > 0 else quoted


def _escape(character: str, keep: str) -> str:
    if character in keep:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def is_utf8(name: str) -> bool:
    """Whether a raw name is UTF-8, as non-Python libraries may require."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def unfit_for_arrays(path: str) -> str | None:
    r"""Why a checkpoint's arrays cannot be stored under a path; None if they can.

    TensorStore needs UTF-8 and treats `\` as `/`; Orbax finds its files by a glob
    pattern, in which `[ab]` matches one letter. Both would lose the arrays without an
    error.
    """
    if not is_utf8(path):
        return "checkpoints need a path in UTF-8; choose another"
    marks = "[" if os.sep == "\\" else "[\\"
    if found := [mark for mark in marks if mark in path]:
        return (
            f"checkpoints cannot be saved under a name with {found[0]}; choose another"
        )
    return None


def alike(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of different names that differ only in case or spaces."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(" ".join(name.casefold().split()), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]
