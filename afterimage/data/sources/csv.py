"""`csv:PATH`: images listed in a table, with their labels, split and further tasks."""

import os
import pathlib
import posixpath
from collections.abc import Mapping, Sequence

from afterimage.checkpoints import files
from afterimage.checkpoints.names import spelling
from afterimage.console import say_once
from afterimage.data.images import image_sets
from afterimage.data.labels import named
from afterimage.data.layout import OPTIONS, by_split, exact
from afterimage.data.numbers import say_unknown, table_numbers
from afterimage.data.pixels import MAX_BYTES
from afterimage.data.remote import Objects, small
from afterimage.data.sets import Numbers, Request, Splits
from afterimage.data.sources import Source
from afterimage.data.sources.folder import OnDisk
from afterimage.data.table import Table, is_known, listed, no_columns, read_table
from afterimage.data.workers import Files
from afterimage.errors import DataError
from afterimage.plugins import SOURCES
from afterimage.reading import ReadingOptions
from afterimage.storage.bucket import Bucket
from afterimage.storage.urls import is_remote


@SOURCES.add("csv")
class CsvSource(Source):
    """Images listed in a table (CSV, or JSON lines), with labels, split and tasks.

    Column `image` has paths relative to the table's folder, `label` class names, and
    `split` train, validation or test. The last two are optional, and all have synonyms
    (`SYNONYMS`). Any further column holds the labels of a task. An empty cell means
    that the image has no label. A task without a column has no labels. Raises DataError
    for a file that is not a table, an image listed twice, or an image outside the
    folder without `reading.outside_images`.
    """

    form = "PATH"
    remote = True
    tasks = True
    numbers = True
    named_splits = True

    def open(self, rest: str, request: Request) -> Splits:
        source = f"{self.name}:{spelling(rest)}"
        tasks, reading = request.tasks, request.reading
        where = rest if is_remote(rest) else os.path.expanduser(rest)
        folder = os.path.dirname(where)
        json_lines = rest.lower().endswith(".jsonl")
        table = read_table(_content(where, source), source, json_lines=json_lines)
        wanted = request.numbers
        taken = (*tasks, *(wanted.columns if wanted else ()))
        column = table.named("image", source, taken)
        if column is None:
            raise DataError(no_columns(source, table.columns))
        splits = ["train"] * len(table.lines)
        if not request.once:
            table, splits = _chosen(table, source, taken, reading, request.strict)
        label = table.named("label", source, taken)
        outside = reading.outside_images
        names = _names(table, column, label, source, folder, outside)
        if wanted is not None:
            numbers = table_numbers(table, label, wanted, source, reading)
            say_unknown(numbers, wanted, source)
            rows = by_split(splits, source)
            unnamed = {split: (own, [None] * len(own)) for split, own in rows.items()}
            return self.sets(folder, names, source, unnamed, request, numbers=numbers)
        classes = {
            name: named(table.columns[name], f"{source}, column {name}", reading)
            for name in (label, *tasks)
            if name is not None and name in table.columns
        }
        labels = [None] * len(names) if label is None else classes[label]
        groups = {
            split: (rows, [labels[row] for row in rows])
            for split, rows in by_split(splits, source).items()
        }
        more = {task: classes[task] for task in tasks if task in classes}
        return self.sets(folder, names, source, groups, request, more)

    def sets(
        self,
        folder: str,
        names: Sequence[str],
        source: str,
        groups: Mapping[str, tuple[Sequence[int], Sequence[str | None]]],
        request: Request,
        tasks: Mapping[str, Sequence[str | None]] | None = None,
        numbers: Numbers | None = None,
    ) -> Splits:
        """The images of the files listed, as `image_sets`; `names` are below `folder`.

        A source that lists other files in tables overrides it.
        """
        files = _files(folder, names)
        return image_sets(files, source, groups, request, tasks, numbers)


def _files(folder: str, names: Sequence[str]) -> Files:
    if is_remote(folder):
        return Objects(Bucket(folder), names)
    return OnDisk(pathlib.Path(folder), names)


def _content(where: str, source: str) -> bytes:
    try:
        if is_remote(where):
            return small(where)
        if not os.path.exists(where):
            raise DataError(f"{source} does not exist")
        return files.read_bytes(where, MAX_BYTES)
    except FileNotFoundError as error:
        raise DataError(f"{source} does not exist") from error
    except OSError as error:
        raise DataError(f"{source} {files.reason(error)}") from error


def _names(
    table: Table,
    column: str,
    label: str | None,
    source: str,
    folder: str,
    outside: bool,
) -> list[str]:
    """The images' paths, ready to open; one DataError for the problems of all rows."""
    cells = table.columns[column]
    problems, first = [], {}
    for row, cell in enumerate(cells):
        line, name = table.lines[row], posixpath.normpath(cell)
        if not cell:
            problems.append(f"line {line} names no image")
        elif "\0" in cell:
            problems.append(
                f"line {line}: the path {spelling(cell)} contains a NUL character"
            )
        elif not outside and (name.startswith(("/", "../")) or name == ".."):
            problems.append(
                f"line {line}: {spelling(cell)} is outside the table's folder; "
                "--outside-images allows this"
            )
        elif (path := os.path.abspath(os.path.join(folder, name))) in first:
            problems.append(_twice(table, first[path], row, name, label))
        else:
            first[path] = row
    if problems or not cells:
        raise DataError(listed(problems or ["it lists no images"], source))
    # Normalise only if safe: `a/../b` may be another file if `a` is a link.
    return [c if ".." in c.split("/") else posixpath.normpath(c) for c in cells]


def _twice(table: Table, one: int, other: int, name: str, label: str | None) -> str:
    lines = f"{table.lines[one]} and {table.lines[other]}"
    text = f"{spelling(name)} is listed twice, in lines {lines}"
    cells = ["", ""] if label is None else table.columns[label]
    if label is not None and cells[one] != cells[other]:
        text += f", as {spelling(cells[one])} and as {spelling(cells[other])}"
    return text


def _chosen(
    table: Table,
    source: str,
    tasks: Sequence[str],
    reading: ReadingOptions,
    strict: bool,
) -> tuple[Table, list[str]]:
    """The rows to use, and the split of each."""
    column = table.named("split", source, tasks)
    cells = ["train"] * len(table.lines) if column is None else table.columns[column]
    given, values = reading.split_folders, set(cells)
    if column is None:
        _check_no_splits(table, source, tasks)
    if given and (strict or values & set(given.values())):
        _check_given(given, column, values, source)
        meaning = {value: split for split, value in given.items()}
        if "train" not in given:  # the other values are read as usual
            ever = {value: str(exact(value)) for value in values if exact(value)}
            meaning = {v: s for v, s in ever.items() if s not in given} | meaning
        rows = [row for row, cell in enumerate(cells) if cell in meaning]
        if len(rows) < len(cells):
            say_once(
                f"{source}: {len(cells) - len(rows):,} images of other splits are "
                "ignored"
            )
        return table.rows(rows), [meaning[cells[row]] for row in rows]
    wrong = sorted(value for value in values if exact(value) is None)
    if wrong:
        shown = ", ".join(spelling(value) or "empty cells" for value in wrong[:5])
        raise DataError(
            f"{source}: column {column} contains {shown}; expected train, validation "
            "or test in each line. Otherwise name the value of each split with "
            f"{', '.join(OPTIONS.values())}"
        )
    return table, [str(exact(cell)) for cell in cells]


def _check_no_splits(table: Table, source: str, tasks: Sequence[str]) -> None:
    """Raise DataError if an unread column distinguishes splits.

    Otherwise the test images would be used for training.
    """
    for name, cells in table.columns.items():
        if name in tasks or is_known(name):
            continue
        values = set(cells)
        words = {exact(value) for value in values}
        flag = exact(name.casefold().removeprefix("is_")) is not None
        if (None not in words and len(words) > 1) or (flag and len(values) > 1):
            raise DataError(
                f"{source}: column {spelling(name)} contains "
                f"{', '.join(map(spelling, sorted(values)[:3]))} and seems to define "
                "splits. Rename it to `split`, with train, validation or test in "
                "each line, or remove it"
            )


def _check_given(
    given: Mapping[str, str], column: str | None, values: set[str], source: str
) -> None:
    for split, value in given.items():
        if column is None:
            why = "the table has no column split"
        elif value not in values:
            there = ", ".join(map(spelling, sorted(values)[:8]))
            why = f"column {column} has no such value; it has {there}"
        else:
            continue
        raise DataError(f"{source}: {OPTIONS[split]} {spelling(value)}: {why}")
