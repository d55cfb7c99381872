"""A row for each image, in order, streamed to a file; a stopped pass continues.

Rows first go to `.NAME.partial` beside the output, one JSON object a line and in the
order of the images. A repeated command reads how far it got; at the end the output is
written from it in one piece.
"""

import collections
import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TextIO

import numpy as np

import afterimage
from afterimage.checkpoints.files import RunLock
from afterimage.checkpoints.names import printable, spelling
from afterimage.console import ProgressBar, say_once
from afterimage.data import ImageSet, Preprocessing, open_data
from afterimage.data.images import read_or_reason
from afterimage.data.sets import BadImage, Joined
from afterimage.errors import DataError, Interrupted, UserError, disk_errors
from afterimage.fields import output_file
from afterimage.reading import ReadingOptions
from afterimage.storage.outputs import SKIPPED

_ROWS_TOGETHER = 8192  # of a row group of a Parquet file
Row = dict[str, Any]
RowsOf = Callable[[Iterator[np.ndarray]], Iterator[Iterable[Row]]]
"""Batches of images [b, h, w, c] -> the rows of each batch, in turn."""
OnBadImage = Literal["skip", "fail"]


@dataclasses.dataclass(frozen=True)
class Written:
    """What is in a file of rows."""

    images: int
    """Its rows."""
    skipped: pathlib.Path | None
    """The list of broken images."""
    bad: int


def every_image(
    data: str,
    preprocessing: Preprocessing,
    *,
    on_bad_image: OnBadImage = "skip",
    reading: ReadingOptions,
) -> ImageSet:
    """All images, whatever their split, as one set at the size of `preprocessing`.

    They are read when they are asked for.
    """
    return together(
        every_split(
            data, preprocessing, on_bad_image=on_bad_image, reading=reading, once=True
        )
    )


def every_split(
    data: str, preprocessing: Preprocessing, **options: Any
) -> list[ImageSet]:
    """The splits that there are, at the size, channels and range of `preprocessing`.

    `options` are those of `open_data`.
    """
    height, width = preprocessing.image_size
    splits = open_data(
        data,
        image_size=height if height == width else None,
        channels=preprocessing.channels,
        value_range=preprocessing.value_range,
        rendering=preprocessing.rendering,
        **options,
    )
    parts = [splits.train, splits.validation, splits.test]
    return [part for part in parts if part is not None]


def one_spec(data: Sequence[str]) -> str:
    """One spec for all of them; UserError for several that are not image files."""
    if len(data) == 1:
        return data[0]
    others = [one for one in data if not one.startswith("files:")]
    if others:
        raise UserError(
            f"data: {others[0]} and {len(data) - 1} more; give one folder, archive or "
            "table, or any number of image files"
        )
    return "files:" + "\n".join(one.removeprefix("files:") for one in data)


def skipped_lines(bad: int, listed: pathlib.Path | str | None) -> list[str]:
    """The line of a summary on broken images; none if none are listed."""
    if listed is None:
        return []
    return [f"  {bad:,} broken images were skipped, see {spelling(str(listed))}"]


def together(parts: Sequence[ImageSet]) -> ImageSet:
    """The images of several splits as one set; labels if every split has them."""
    if len(parts) == 1:
        return parts[0]
    text = " ".join(part.fingerprint for part in parts)
    labels: list[Any] = [part.labels for part in parts]
    return dataclasses.replace(
        parts[0],
        images=Joined([part.images for part in parts]),
        labels=None if any(one is None for one in labels) else np.concatenate(labels),
        ids=[name for part in parts for name in part.ids],
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        skipped=tuple(bad for part in parts for bad in part.skipped),
        tasks={},
    )


def write_rows(
    out: pathlib.Path,
    images: ImageSet,
    rows_of: RowsOf,
    *,
    mark: Any,
    batch_size: int,
    on_bad_image: OnBadImage,
    doing: str,
    count: Callable[[int, Row], None],
    place: Callable[[int, Row], Row] = lambda _, row: row,
) -> Written:
    """Write a row for each image to `out`; a pass that was stopped continues.

    `mark`, JSON, decides with the images whether it is the same pass. `place` gets the
    number of an image and its new row before that is written; `count` gets every row at
    the end.

    Raises DataError if no image is usable and, with on_bad_image="fail", for the first
    broken ones; Interrupted on Ctrl-C.
    """
    folder = out.parent / f".{out.name}.partial"
    untouched = " What was written so far is kept; run the same command again"
    with disk_errors(f"out={out} was not finished", untouched), RunLock(folder):
        rows = folder / "rows.jsonl"
        done = _begin(rows, _first_line(mark, images))
        if done:
            say_once(f"continuing after {done:,} of {len(images):,} images")
        stream = _Pass(images, done, batch_size, on_bad_image, place)
        with rows.open("a", encoding="utf-8") as file:
            try:
                stream.write(file, rows_of, doing)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"Stopped. The rows so far are kept in {folder}; run the "
                    "same command again to continue"
                ) from None
        found = _finish(rows, out, images.skipped, count)
        rows.unlink()
    for name in ("lock", ""):
        with contextlib.suppress(OSError):
            (folder / name).unlink() if name else folder.rmdir()
    return found


def _first_line(mark: Any, images: ImageSet) -> str:
    """A line that is the same only for the same rows."""
    text = json.dumps(
        [afterimage.__version__, mark, images.fingerprint], sort_keys=True
    )
    return json.dumps({"rows": hashlib.sha256(text.encode()).hexdigest()})


def _begin(rows: pathlib.Path, mark: str) -> int:
    """Images whose rows are written already; a torn last line is cut off."""
    good, count = 0, 0
    with contextlib.suppress(FileNotFoundError), rows.open("rb") as file:
        for number, line in enumerate(file):
            whole = line.endswith(b"\n")
            if not whole or (number == 0 and line.decode().rstrip() != mark):
                break
            good, count = good + len(line), number
    if good:
        os.truncate(rows, good)
        return count
    rows.write_text(mark + "\n", encoding="utf-8")
    return 0


class _Pass:
    """The images from `done` on, batch by batch, and what became of each."""

    def __init__(
        self,
        images: ImageSet,
        done: int,
        batch_size: int,
        on_bad_image: OnBadImage,
        place: Callable[[int, Row], Row],
    ):
        self.images, self.done, self.size = images, done, batch_size
        self.on_bad_image, self.place = on_bad_image, place
        self.read: collections.deque[list[tuple[int, str | None]]] = collections.deque()
        """For each batch that has no rows yet: (number, why it is broken)."""

    def write(self, file: TextIO, rows_of: RowsOf, doing: str) -> None:
        """Appends a line for each image, in order, as batches come."""
        with ProgressBar(len(self.images) - self.done, doing) as progress:
            for rows in rows_of(self.batches()):
                while all(reason is not None for _, reason in self.read[0]):
                    progress.add(self.append(file, ()))
                progress.add(self.append(file, rows))
            while self.read:
                progress.add(self.append(file, ()))

    def batches(self) -> Iterator[np.ndarray]:
        for start in range(self.done, len(self.images), self.size):
            numbers = range(start, min(start + self.size, len(self.images)))
            found = read_or_reason(self.images, np.array(numbers))
            bad = {r: one for r, one in zip(numbers, found) if isinstance(one, str)}
            if bad and self.on_bad_image == "fail":
                raise DataError(_bad_message(self.images, bad))
            good = [one for one in found if not isinstance(one, str)]
            self.read.append([(r, bad.get(r)) for r in numbers])
            if good:
                yield np.stack(good)

    def append(self, file: TextIO, rows: Iterable[Row]) -> int:
        """Writes the lines of the next batch; returns its images."""
        part, rows = self.read.popleft(), iter(rows)
        for number, reason in part:
            if reason is not None:
                row = {"bad": printable(reason)}
            else:
                row = self.place(number, next(rows))
            file.write(json.dumps({"file": self.images.ids[number], **row}) + "\n")
        file.flush()
        return len(part)


def _bad_message(images: ImageSet, bad: Mapping[int, str]) -> str:
    shown = [f"{images.ids[r]}: {printable(why)}" for r, why in list(bad.items())[:10]]
    return (
        f"{images.name}: not usable images:\n  " + "\n  ".join(shown) + "\nRemove or "
        "repair them and repeat the command, or skip them with --on-bad-image skip"
    )


def _finish(
    rows: pathlib.Path,
    out: pathlib.Path,
    skipped: Sequence[BadImage],
    count: Callable[[int, Row], None],
) -> Written:
    """Writes the output, and the list of broken images, from the lines."""
    images = 0
    bad = [f"{one.path}\t{printable(one.reason)}\n" for one in skipped]

    def good() -> Iterator[Row]:
        nonlocal images
        with rows.open(encoding="utf-8") as file:
            for number, line in enumerate(itertools.islice(file, 1, None)):
                row = json.loads(line)
                if "bad" in row:
                    bad.append(f"{row['file']}\t{row['bad']}\n")
                    continue
                images += 1
                count(number, row)
                yield row

    partial = rows.with_name(out.name)
    WRITERS[out.suffix.lower()](partial, good())
    listed = out.with_name(f"{out.name}{SKIPPED}")
    listed.unlink(missing_ok=True)
    if bad:
        listed.write_text("".join(bad), encoding="utf-8")
    if not images:
        partial.unlink(missing_ok=True)
        raise DataError(f"none of {len(bad):,} files is a usable image, see {listed}")
    partial.replace(out)
    return Written(images, listed if bad else None, len(bad))


def _write_csv(
    path: pathlib.Path, rows: Iterator[Row], columns: Sequence[str] = ()
) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer, head = csv.writer(file), tuple(columns)
        if head:
            writer.writerow(head)
        for row in rows:
            if not head:
                head = tuple(row)
                writer.writerow(head)
            writer.writerow(
                str(cell).lower() if isinstance(cell, bool) else cell
                for cell in row.values()
            )


def _write_jsonl(
    path: pathlib.Path, rows: Iterator[Row], columns: Sequence[str] = ()
) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _write_parquet(
    path: pathlib.Path, rows: Iterator[Row], columns: Sequence[str] = ()
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        writer = None
        while some := list(itertools.islice(rows, _ROWS_TOGETHER)):
            table = pa.Table.from_pylist(some)
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(path, table.schema))
            writer.write_table(table)
        if writer is None:
            pq.write_table(pa.table({name: pa.nulls(0) for name in columns}), path)


def write_table(
    out: str | os.PathLike[str],
    rows: Iterator[Row],
    columns: Sequence[str] = (),
) -> None:
    """Writes rows to a file, which is there only when all are written.

    Raises UserError for another ending than those of WRITERS, DiskError where it cannot
    be written.
    """
    path = output_file(out, WRITERS)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with disk_errors(f"out={path}"):
            WRITERS[path.suffix.lower()](partial, rows, *([columns] if columns else []))
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
"""{suffix: what writes (path, rows, columns)}. Columns default to those of the first
row; a table that may have no rows needs them."""
