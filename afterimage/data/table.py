"""Tables of images: CSV (also saved by Excel) or JSON lines, alone or in a folder.

A `metadata.csv` or `.jsonl` in an image folder has the format of Hugging Face's
`imagefolder`: a column `file_name` with paths relative to the table's folder.
https://huggingface.co/docs/datasets/image_dataset#imagefolder
"""

import codecs
import csv
import dataclasses
import io
import json
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from afterimage.checkpoints import schemas
from afterimage.checkpoints.names import class_name, printable, spelling
from afterimage.console import say_once
from afterimage.data.decode import SUFFIXES, is_image_name
from afterimage.data.labels import named
from afterimage.data.layout import Groups
from afterimage.data.pixels import NotAnImage
from afterimage.data.workers import FileTree
from afterimage.errors import DataError
from afterimage.reading import ReadingOptions

SYNONYMS = {
    "image": (
        *("file_name", "filename", "file", "path", "filepath", "file_path"),
        *("image_path", "image_file", "image_name", "img", "img_path"),
    ),
    "label": ("labels", "class", "classes", "class_name", "category", "target"),
    "split": ("subset",),
}
"""Other programs' names for the columns `image`, `label` and `split`."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of equal length, and the line number of each row."""

    columns: Mapping[str, list[str]]
    lines: Sequence[int]
    unit: str = "line"
    """What these numbers count."""

    def rows(self, chosen: Sequence[int]) -> "Table":
        """A table with only these rows."""
        columns = {n: [c[row] for row in chosen] for n, c in self.columns.items()}
        return Table(columns, [self.lines[row] for row in chosen], self.unit)

    def named(self, what: str, source: str, taken: Sequence[str] = ()) -> str | None:
        """The name of the column for `what` (a key of SYNONYMS); None without one.

        `taken` are columns with another meaning. Raises DataError if two columns match
        and neither has exactly that name.
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
    """Parse a table from a file's bytes; DataError names the invalid line.

    CSV: commas, semicolons or tabs; UTF-8, or UTF-16 with a byte order mark. Cells are
    stripped and empty lines skipped. JSON lines: one object per line.
    """
    text = _text(content, source)
    if json_lines:
        return _from_json(text, source)
    mark, _, rest = text.partition("\n")
    if given := re.fullmatch(r"sep=(.)\r?", mark):  # Excel's line for the delimiter
        return _from_csv(rest, given[1], 1, source)
    return _from_csv(text, max(",;\t", key=mark.count), 0, source)


def no_columns(source: str, head: Iterable[str]) -> str:
    """The message for a table without the columns of an image table."""
    shown = ", ".join(head)[:200] or "empty"
    return (
        f"{source}: the first line names the columns {shown}; expected unique names, "
        "including `image` (or file_name, path, …), and optionally `label` and "
        "`split`"
    )


def listed(problems: Sequence[str], source: str) -> str:
    """An error message for several problems, the first ten in full."""
    more = f"\n  and {len(problems) - 10:,} more" if len(problems) > 10 else ""
    shown = [printable(problem) for problem in problems[:10]]
    return f"{source}:\n  " + "\n  ".join(shown) + more


def _text(content: bytes, source: str) -> str:
    """The decoded text, with line feeds as line ends."""
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        if wide:
            raise DataError(
                f"{source} claims to be UTF-16 but is not ({error})"
            ) from error
        line = content.count(b"\n", 0, error.start) + 1
        say_once(
            f"{source}: line {line} is not UTF-8; its bytes are used unchanged, as "
            "file names may contain them. If letters look wrong, save the table as "
            "UTF-8"
        )
        # The form in which Python returns such file names.
        text = content.decode("utf-8-sig", errors="surrogateescape")
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise DataError(
            f"{source}: line {line} contains a NUL character; save the table as UTF-8 "
            "text"
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
            "and not closed? Inside a quoted cell, write a quote twice"
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
        yield f"line {line} has {len(row)} cells, but the first line has {len(head)}"
    for name, cell in zip(head, row):
        if "\n" not in cell.strip():
            continue
        inner = re.split(r"[,;\t\n]", cell)
        if is_known(name) or any(is_image_name(part.strip()) for part in inner):
            yield (
                f'line {line}: a quote (") opens in column {name} and closes only '
                f"{cell.strip().count(chr(10))} lines later; inside a quoted cell, "
                "write a quote twice"
            )


def is_known(name: str) -> bool:
    """Whether a column of this name holds the image, the label or the split."""
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
            raise DataError(f"{source}: line {line} is not a JSON object, {{…}}")
        rows.append(
            (line, {class_name(k.strip()): cell_text(v) for k, v in row.items()})
        )
    head = dict.fromkeys(name for _, row in rows for name in row)
    columns = {name: [row.get(name, "") for _, row in rows] for name in head}
    return Table(columns, [line for line, _ in rows])


def cell_text(value: Any) -> str:
    """A value as a CSV cell: null is empty, true is 1, nested values stay JSON."""
    if value is None:
        return ""
    if isinstance(value, bool):
        value = int(value)
    return value.strip() if isinstance(value, str) else json.dumps(value)


def with_metadata(
    files: FileTree,
    source: str,
    groups: Groups,
    reading: ReadingOptions,
    unused: Set[str] = frozenset(),
) -> Groups:
    """`groups` with labels from the tables among `files`; unchanged without tables.

    A table's labels replace those of the folders; images it does not list have no
    label. `unused` are images that it may list although they are not among `files`.
    Raises DataError if both give a class and differ, if a table cannot be read or lists
    a missing file, or if only the table has the splits.
    """
    given: dict[str, str | None] = {}
    for name in files.metadata:
        mine = _labels(files, name, source, groups, reading, unused)
        if both := next((image for image in mine if image in given), None):
            raise DataError(
                f"{source}: {spelling(both)} is listed in two metadata files"
            )
        given |= mine
    if not given:
        return groups
    found, listed_images = {}, 0
    folders = {name for _, classes in groups.values() for name in classes if name}
    for split, (rows, classes) in groups.items():
        names = [files.names[row] for row in rows]
        listed_images += sum(name in given for name in names)
        for name, folder in zip(names, classes):
            label = given.get(name)
            # A single folder does not distinguish classes.
            if folder and label and label != folder and len(folders) > 1:
                raise DataError(
                    f"{source}: {spelling(name)} is in the folder {folder}, but its "
                    f"label in {files.metadata[0]} is {label}. To use the table, give "
                    f"csv:PATH/{files.metadata[0]}; to use the folders, move the "
                    "table away"
                )
        found[split] = (rows, [given.get(name) for name in names])
    rest = sum(len(rows) for rows, _ in groups.values()) - listed_images
    say_once(
        f"{source}: labels of {listed_images:,} images are read from "
        f"{', '.join(map(spelling, files.metadata))}"
        + (f"; {rest:,} unlisted images have none" if rest else "")
    )
    return found


def _labels(
    files: FileTree,
    name: str,
    source: str,
    groups: Groups,
    reading: ReadingOptions,
    unused: Set[str],
) -> dict[str, str | None]:
    """{image: label} of one table; empty if it has no labels."""
    where = f"{source}/{spelling(name)}"
    try:
        content = files.read_metadata(name)
    except NotAnImage as error:
        raise DataError(f"{where}: {error}") from error
    table = read_table(content, where, json_lines=name.endswith(".jsonl"))
    column, label = table.named("image", where), table.named("label", where)
    if column is None or label is None:
        lacks = "file_name" if column is None else "label"
        say_once(f"{where} has no column {lacks}, so it is ignored")
        return {}
    if table.named("split", where) is not None and len(groups) == 1:
        raise DataError(
            f"{where}: the column split is ignored inside a folder; to use it, give "
            "the table itself, csv:PATH"
        )
    return _by_image(
        files,
        table,
        column,
        named(table.columns[label], f"{where}, column {label}", reading),
        name,
        where,
        unused,
    )


def _by_image(
    files: FileTree,
    table: Table,
    column: str,
    labels: Sequence[str | None],
    name: str,
    where: str,
    unused: Set[str],
) -> dict[str, str | None]:
    there, folder = set(files.names), posixpath.dirname(name)
    near = by_likeness(files.names)
    found: dict[str, str | None] = {}
    problems = []
    for line, cell, label in zip(table.lines, table.columns[column], labels):
        image = posixpath.normpath(posixpath.join(folder, cell))
        if image in unused:
            continue
        if image not in there:
            close = nearest(image, near)
            hint = f"; {spelling(close)} exists" if close else ""
            problems.append(f"line {line}: {spelling(cell)} does not exist{hint}")
        elif image in found:
            problems.append(f"line {line}: {spelling(cell)} is listed twice")
        found[image] = label
    if problems:
        raise DataError(listed(problems, where))
    return found


Listing = tuple[dict[str, str], dict[str, str]]
"""({key: name}, {key of the stem: name of an image}) for a folder's contents."""


def near_miss(root: str, name: str, names: Callable[[str], Listing]) -> str | None:
    r"""The path of a file below `root` that nearly matches `name`; None without one.

    Ignores differences in case, Unicode form, image suffix and `\` for `/`. `names` is
    `listing`, or a cached version: a table may list many missing files.
    """
    *folders, last = (part for part in name.replace("\\", "/").split("/") if part)
    if name.startswith("/"):
        root = "/"
    place, found = root, []
    for part in folders:
        part = part if part in (".", "..") else names(place)[0].get(_alike(part))
        if part is None:
            return None
        place = os.path.join(place, part)
        found.append(part)
    whole, stems = names(place)
    key = _alike(last)
    near = whole.get(key) or stems.get(_stem(key)) or stems.get(key)
    if near is None:
        return None
    return os.path.join("/" if name.startswith("/") else "", *found, near)


def listing(folder: str) -> Listing:
    """The names in a folder, by the key they share with similar names."""
    try:
        names = sorted(os.listdir(folder))
    except (OSError, ValueError):
        return {}, {}
    images = [n for n in names if os.path.splitext(n)[1].lower() in SUFFIXES]
    return {_alike(n): n for n in names}, {_stem(_alike(n)): n for n in images}


def by_likeness(names: Iterable[str]) -> dict[str, str]:
    """Names by the key they share with similar names; for `nearest`."""
    keys = {_alike(name): name for name in names}
    return {_stem(key): name for key, name in keys.items()} | keys


def nearest(name: str, likeness: Mapping[str, str]) -> str | None:
    """The name in `likeness` that nearly matches this one; None without one."""
    key = _alike(name.replace("\\", "/"))
    return likeness.get(key) or likeness.get(_stem(key))


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]
