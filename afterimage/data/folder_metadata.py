"""`metadata.csv` and `metadata.jsonl` in a folder of images: labels as on the Hub.

The format of Hugging Face's `imagefolder`: a column `file_name`, from the table's own
folder on, in the folder of all images or of each split.
https://huggingface.co/docs/datasets/image_dataset#imagefolder
"""

import posixpath
from collections.abc import Sequence, Set

from afterimage.checkpoints.names import spelling
from afterimage.data.files import Archives, Folder
from afterimage.data.header import NotAnImage
from afterimage.data.labels import named
from afterimage.data.layout import Groups
from afterimage.data.near_miss import by_likeness, nearest
from afterimage.data.table_rows import Table, listed, read_table
from afterimage.errors import DataError
from afterimage.notes import say_once
from afterimage.reading import ReadingOptions


def with_metadata(
    files: Folder | Archives,
    source: str,
    groups: Groups,
    reading: ReadingOptions,
    unused: Set[str] = frozenset(),
) -> Groups:
    """`groups` with the labels of the tables among `files`; unchanged if there is none.

    A table's labels replace those of the folders; images that it does not list have
    none. `unused` are images that may be listed although they are not among `files`.
    Raises DataError if both name a class and differ, if a table cannot be read or lists
    a missing file, and if only the table knows the splits.
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
            # A single folder tells no classes apart.
            if folder and label and label != folder and len(folders) > 1:
                raise DataError(
                    f"{source}: {spelling(name)} lies in the folder {folder}, but its "
                    f"label in {files.metadata[0]} is {label}. To use the table, give "
                    f"csv:PATH/{files.metadata[0]}; to use the folders, move the table "
                    "away"
                )
        found[split] = (rows, [given.get(name) for name in names])
    rest = sum(len(rows) for rows, _ in groups.values()) - listed_images
    say_once(
        f"{source}: labels of {listed_images:,} images are read from "
        f"{', '.join(map(spelling, files.metadata))}"
        + (f"; {rest:,} images that are not listed have none" if rest else "")
    )
    return found


def _labels(
    files: Folder | Archives,
    name: str,
    source: str,
    groups: Groups,
    reading: ReadingOptions,
    unused: Set[str],
) -> dict[str, str | None]:
    """{image: label} of one table; empty where it has no labels."""
    where = f"{source}/{spelling(name)}"
    try:
        content = files.read_metadata(name)
    except NotAnImage as error:
        raise DataError(f"{where}: {error}") from error
    table = read_table(content, where, json_lines=name.endswith(".jsonl"))
    column, label = table.named("image", where), table.named("label", where)
    if column is None or label is None:
        lacks = "file_name" if column is None else "label"
        say_once(f"{where} has no column {lacks} and is ignored")
        return {}
    if table.named("split", where) is not None and len(groups) == 1:
        raise DataError(
            f"{where} has a column split, which is not read inside a folder; give the "
            "table itself as csv:PATH"
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
    files: Folder | Archives,
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
            hint = f"; {spelling(close)} is" if close else ""
            problems.append(
                f"line {line}: {spelling(cell)} is not among the images{hint}"
            )
        elif image in found:
            problems.append(f"line {line}: {spelling(cell)} is listed twice")
        found[image] = label
    if problems:
        raise DataError(listed(problems, where))
    return found
