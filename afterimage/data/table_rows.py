"""The rows of a table of images: CSV (also as Excel saves it) or JSON lines.

This module checks that the file is a table; `table` decides what its rows mean.
"""

import codecs
import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from afterimage.checkpoints import schemas
from afterimage.checkpoints.names import class_name, printable
from afterimage.data.files import is_image_name
from afterimage.errors import DataError
from afterimage.notes import say_once

SYNONYMS = {
    "image": (
        *("file_name", "filename", "file", "path", "filepath", "file_path"),
        *("image_path", "image_file", "image_name", "img", "img_path"),
    ),
    "label": ("labels", "class", "classes", "class_name", "category", "target"),
    "split": ("subset",),
}
"""What other programs call the columns `image`, `label` and `split`."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of equal length, and the line each of their cells comes from."""

    columns: Mapping[str, list[str]]
    lines: Sequence[int]

    def rows(self, chosen: Sequence[int]) -> "Table":
        """The table of these rows."""
        columns = {n: [c[row] for row in chosen] for n, c in self.columns.items()}
        return Table(columns, [self.lines[row] for row in chosen])

    def named(self, what: str, source: str, taken: Sequence[str] = ()) -> str | None:
        """The name of the column for `what`, of SYNONYMS; None if there is none.

        `taken` are columns with a meaning of their own. Raises DataError if two columns
        match and neither has the name itself.
        """
        known = {name.casefold(): name for name in self.columns if name not in taken}
        if what in known:
            return known[what]
        found = [known[name] for name in SYNONYMS[what] if name in known]
        if len(found) > 1:
            raise DataError(
                f"{source}: the columns {' and '.join(found)} could both be the "
                f"{what}; rename the right one to `{what}`"
            )
        return found[0] if found else None


def read_table(content: bytes, source: str, *, json_lines: bool) -> Table:
    """The table in a file's bytes; DataError names the line that is wrong.

    CSV: commas, semicolons or tabs; UTF-8, or UTF-16 with its mark. Cells are stripped,
    lines without a filled cell left out. JSON lines: an object a line.
    """
    text = _text(content, source)
    if json_lines:
        return _from_json(text, source)
    mark, _, rest = text.partition("\n")
    if given := re.fullmatch(r"sep=(.)\r?", mark):  # Excel's way to name the delimiter
        return _from_csv(rest, given[1], 1, source)
    return _from_csv(text, max(",;\t", key=mark.count), 0, source)


def no_columns(source: str, head: Iterable[str]) -> str:
    """The message for a table whose columns are not those of a table of images."""
    shown = ", ".join(head)[:200] or "empty"
    return (
        f"{source}: the columns in its first line are: {shown}; expected unique "
        "names, among them `image` (or file_name, path, …), and optionally `label` and "
        "`split`"
    )


def listed(problems: Sequence[str], source: str) -> str:
    """An error's message for several problems, ten of them in full."""
    more = f"\n  and {len(problems) - 10:,} more" if len(problems) > 10 else ""
    shown = [printable(problem) for problem in problems[:10]]
    return f"{source}:\n  " + "\n  ".join(shown) + more


def _text(content: bytes, source: str) -> str:
    """The text, its lines ended by a line feed."""
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        if wide:
            raise DataError(
                f"{source} is marked as UTF-16 but is not ({error})"
            ) from error
        line = content.count(b"\n", 0, error.start) + 1
        say_once(
            f"{source}: line {line} is not UTF-8; its bytes are used as they are, "
            "since file names may have them. If letters look wrong, save it as UTF-8"
        )
        # As Python gives the names of such files.
        text = content.decode("utf-8-sig", errors="surrogateescape")
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise DataError(
            f"{source}: line {line} holds a NUL character; save the table as UTF-8 text"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _from_csv(text: str, delimiter: str, before: int, source: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, first = [], 1
    try:
        for row in reader:
            if any(map(str.strip, row)):
                rows.append((before + first, row))
            first = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f'{source}: line {before + first}: {error}; is a quote (") opened there '
            "and not closed? A quote inside a quoted cell is written twice"
        ) from error
    head = [class_name(cell.strip()) for cell in rows[0][1]] if rows else []
    names = [name.casefold() for name in head if name]
    if len(set(names)) < max(1, len(names)):
        raise DataError(no_columns(source, head))
    problems = [p for line, row in rows[1:] for p in _problems(line, row, head)]
    if problems:
        raise DataError(listed(problems, source))
    cells = [[cell.strip() for cell in row] for _, row in rows[1:]]
    columns = {n: [row[i] for row in cells] for i, n in enumerate(head) if n}
    return Table(columns, [line for line, _ in rows[1:]])


def _problems(line: int, row: list[str], head: list[str]) -> Iterator[str]:
    if len(row) != len(head):
        yield f"line {line} has {len(row)} cells, the first line {len(head)}"
    for name, cell in zip(head, row):
        if "\n" not in cell.strip():
            continue
        inner = re.split(r"[,;\t\n]", cell)
        if is_known(name) or any(is_image_name(part.strip()) for part in inner):
            yield (
                f'line {line}: a quote (") opens in column {name} and closes only '
                f"{cell.strip().count(chr(10))} lines later; a quote inside a quoted "
                "cell is written twice"
            )


def is_known(name: str) -> bool:
    """Whether a column of this name is the image, the label or the split."""
    name = name.casefold()
    return any(name in (what, *more) for what, more in SYNONYMS.items())


def _from_json(text: str, source: str) -> Table:
    rows: list[tuple[int, dict[str, str]]] = []
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = schemas.parse(content)
        except ValueError as error:
            raise DataError(f"{source}: line {line} {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{source}: line {line} is not an object, {{…}}")
        rows.append((line, {class_name(k.strip()): _cell(v) for k, v in row.items()}))
    head = dict.fromkeys(name for _, row in rows for name in row)
    columns = {name: [row.get(name, "") for _, row in rows] for name in head}
    return Table(columns, [line for line, _ in rows])


def _cell(value: Any) -> str:
    """A value as a cell of CSV: null is empty, true is 1; what is nested stays JSON."""
    if value is None:
        return ""
    if isinstance(value, bool):
        value = int(value)
    return value.strip() if isinstance(value, str) else json.dumps(value)
