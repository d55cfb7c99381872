"""`csv:PATH`: images listed in a table, with their labels, split and further tasks."""

import collections
import csv
import io
import pathlib
from collections.abc import Sequence
from typing import Any

from afterimage.data.files import OnDisk
from afterimage.data.images import image_sets
from afterimage.data.layout import SPLITS, by_split
from afterimage.data.sets import Splits
from afterimage.errors import DataError

IMAGE, LABEL, SPLIT = "image", "label", "split"


def open_csv(path: str, *, tasks: Sequence[str] = (), **options: Any) -> Splits:
    """Images named in column `image`, from the table's own folder on.

    Column `label` holds class names, `split` train, validation or test; both may be
    left out. Any further column holds the labels of a task. An empty cell is an image
    without a label. Commas, semicolons or tabs part the cells; the text is UTF-8. A
    task without a column has no labels. Raises DataError for a table that is none.
    """
    source = f"csv:{path}"
    columns = _columns(pathlib.Path(path).expanduser(), source)
    files = OnDisk(pathlib.Path(path).expanduser().parent, columns[IMAGE])
    more = {task: columns[task] for task in tasks if task in columns}
    return image_sets(
        files,
        source,
        _groups(columns, source),
        tasks={task: [c or None for c in cells] for task, cells in more.items()},
        **options,
    )


def _columns(where: pathlib.Path, source: str) -> dict[str, list[str]]:
    """{column: its cells}, all of one length; every problem of the rows at once."""
    if not where.is_file():
        raise DataError(f"{source}: there is no such file")
    try:
        text = where.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source} is not a UTF-8 text ({error})") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    lines = csv.reader(io.StringIO(text), delimiter=delimiter)
    rows = [(lines.line_num, [cell.strip() for cell in row]) for row in lines if row]
    head = rows[0][1] if rows else []
    if IMAGE not in head or len(set(head)) < len(head):
        raise DataError(
            f"{source}: the first line is {first.strip()!r}; expected names of "
            "columns, each once, among them `image`; and `label`, `split` where there "
            "are such"
        )
    rows = rows[1:]
    column = head.index(IMAGE)
    whole = [(number, row) for number, row in rows if len(row) == len(head)]
    seen = collections.Counter(row[column] for _, row in whole)
    problems = [
        f"line {number} has {len(row)} cells, the first line {len(head)}"
        for number, row in rows
        if len(row) != len(head)
    ]
    problems += [f"line {n} names no image" for n, row in whole if not row[column]]
    problems += [f"{name} stands in {n} lines" for name, n in seen.items() if n > 1]
    if problems or not rows:
        raise DataError(_listed(problems or ["no image is listed"], source))
    return {name: [row[i] for _, row in rows] for i, name in enumerate(head)}


def _groups(
    columns: dict[str, list[str]], source: str
) -> dict[str, tuple[list[int], list[str | None]]]:
    """{split: (rows, class name of each)}."""
    count = len(columns[IMAGE])
    given = columns.get(SPLIT, ["train"] * count)
    wrong = sorted({name for name in given if name.lower() not in SPLITS})
    if wrong:
        raise DataError(
            f"{source}: column split holds {', '.join(map(repr, wrong[:5]))}; expected "
            "train, validation or test in each line"
        )
    splits = by_split([SPLITS[name.lower()] for name in given], source)
    labels = [cell or None for cell in columns.get(LABEL, [""] * count)]
    return {name: (rows, [labels[r] for r in rows]) for name, rows in splits.items()}


def _listed(problems: list[str], source: str) -> str:
    more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
    return f"{source}:\n  " + "\n  ".join(problems[:10]) + more
