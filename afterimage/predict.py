"""Predictions of whole data sets, streamed to a file; a stopped one continues.

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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
from jaxtyping import Float

import afterimage
from afterimage.checkpoints.files import RunLock
from afterimage.checkpoints.names import printable, spelling
from afterimage.classifier import Classifier, load_classifier, probabilities
from afterimage.console import ProgressBar, say_once, say_reading
from afterimage.data import ImageSet, open_data
from afterimage.data.images import read_or_reason
from afterimage.data.sets import BadImage, Joined
from afterimage.errors import (
    DataError,
    Interrupted,
    UserError,
    disk_errors,
)
from afterimage.evaluation.configs import PredictConfig
from afterimage.evaluation.nearest import Reference
from afterimage.fields import output_file
from afterimage.reading import ReadingOptions

_FAR = 0.99  # farther than this share of usual images: counted in the summary
_ROWS_TOGETHER = 8192  # of a row group of a Parquet file


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The file of predictions, and what is in it."""

    out: pathlib.Path
    images: int
    """Rows in the file."""
    counts: Mapping[str, int]
    """{class: images}, the most frequent first."""
    far: int | None
    """Images unlike the training images; None without features to compare with."""
    unsure: int | None
    """Images below the threshold; None without one."""
    skipped: pathlib.Path | None
    """The list of broken images."""
    bad: int

    def summary(self) -> str:
        """A few lines for a terminal."""
        counts = [f"{name} {count:,}" for name, count in self.counts.items()]
        more = [f"and {len(counts) - 8} more classes"] if len(counts) > 8 else []
        lines = [f"{self.images:,} predictions in {spelling(str(self.out))}"]
        lines.append(f"  {', '.join([*counts[:8], *more])}")
        if self.unsure is not None:
            lines.append(f"  {self.unsure:,} unsure")
        if self.far:
            lines.append(
                f"  {self.far:,} farther from the training images than 99 % of usual "
                "ones (farther_than above 0.99): look at these first"
            )
        if self.skipped is not None:
            lines.append(
                f"  {self.bad:,} broken images were skipped, see "
                f"{spelling(str(self.skipped))}"
            )
        return "\n".join(lines)


def predict(config: PredictConfig) -> Predictions:
    """Write a row for each image of `config.data`; one that was stopped continues.

    Columns: file; class and probability; class_2, probability_2, … up to `top`; margin,
    the difference of the two highest probabilities; distance and farther_than, see
    `Reference` (absent if the classifier has no features of training images); unsure
    with a `threshold`. Memory does not grow with the number of images.

    Raises UserError for settings that cannot work, DataError for data without images
    and, with on_bad_image="fail", for the first broken ones; Interrupted on Ctrl-C.
    """
    out = pathlib.Path(config.out)
    output_file(out, _WRITERS)
    classifier = load_classifier(config.from_)
    task = classifier.task(config.task)
    images = _open(config, classifier)
    mark = _mark(config, classifier, task, images)
    folder = out.parent / f".{out.name}.partial"
    untouched = " What was written so far is kept; run the same command again"
    with disk_errors(f"out={out} was not finished", untouched), RunLock(folder):
        rows = folder / "rows.jsonl"
        done = _begin(rows, mark)
        if done:
            say_once(f"continuing after {done:,} of {len(images):,} images")
        with rows.open("a", encoding="utf-8") as file:
            try:
                _write_rows(file, classifier, config, images, done)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"Stopped. The predictions so far are kept in {folder}; run the "
                    "same command again to continue"
                ) from None
        found = _finish(rows, out, images.skipped)
        rows.unlink()
    for name in ("lock", ""):
        with contextlib.suppress(OSError):
            (folder / name).unlink() if name else folder.rmdir()
    return found


def _open(config: PredictConfig, classifier: Classifier) -> ImageSet:
    """All images, as one set, at the classifier's size."""
    data = one_spec(config.data)
    preprocessing = classifier.preprocessing
    height, width = preprocessing.image_size
    say_reading(
        config.data[0] if len(config.data) == 1 else f"{len(config.data)} files"
    )
    splits = open_data(
        data,
        image_size=height if height == width else None,
        channels=preprocessing.channels,
        value_range=preprocessing.value_range,
        on_bad_image=config.on_bad_image,
        reading=ReadingOptions(outside_images=config.outside_images),
        once=True,
    )
    parts = [splits.train, splits.validation, splits.test]
    return together([part for part in parts if part is not None])


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


def together(parts: Sequence[ImageSet]) -> ImageSet:
    """The images of several splits as one set, without labels."""
    if len(parts) == 1:
        return parts[0]
    text = " ".join(part.fingerprint for part in parts)
    return dataclasses.replace(
        parts[0],
        images=Joined([part.images for part in parts]),
        labels=None,
        ids=[name for part in parts for name in part.ids],
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        skipped=tuple(bad for part in parts for bad in part.skipped),
        tasks={},
    )


def _mark(
    config: PredictConfig, classifier: Classifier, task: str, images: ImageSet
) -> str:
    """A line that is the same only for the same predictions."""
    settings = [config.top, config.threshold, task, config.views]
    weights = classifier.manifest.get("files", {})
    text = [afterimage.__version__, settings, images.fingerprint, weights]
    mark = hashlib.sha256(json.dumps(text, sort_keys=True).encode())
    return json.dumps({"predictions": mark.hexdigest()})


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


def _write_rows(
    file: TextIO,
    classifier: Classifier,
    config: PredictConfig,
    images: ImageSet,
    done: int,
) -> None:
    """Appends a line for each image from `done` on, in order, as batches come."""
    task, size = classifier.task(config.task), config.batch_size
    reference = classifier.references.get(task)
    names = classifier.class_names[task]
    read: collections.deque[list[Any]] = collections.deque()

    def batches() -> Iterator[np.ndarray]:
        for start in range(done, len(images), size):
            numbers = range(start, min(start + size, len(images)))
            found = read_or_reason(images, np.array(numbers))
            bad = {r: one for r, one in zip(numbers, found) if isinstance(one, str)}
            if bad and config.on_bad_image == "fail":
                raise DataError(_bad_message(images, bad))
            good = [one for one in found if not isinstance(one, str)]
            read.append([(images.ids[r], bad.get(r)) for r in numbers])
            if good:
                yield np.stack(good)

    def write(outputs: Iterator[dict[str, Any]]) -> int:
        part = read.popleft()
        for name, reason in part:
            row = {"bad": printable(reason)} if reason is not None else next(outputs)
            file.write(json.dumps({"file": name, **row}) + "\n")
        file.flush()
        return len(part)

    with ProgressBar(len(images) - done, "predicting") as progress:
        how: Any = {"task": task, "views": config.views, "batch_size": size}
        for logits, features in classifier.stream(batches(), **how):
            while all(reason is not None for _, reason in read[0]):
                progress.add(write(iter(())))
            outputs = _outputs(logits, features, names, reference, config)
            progress.add(write(outputs))
        while read:
            progress.add(write(iter(())))


def _bad_message(images: ImageSet, bad: Mapping[int, str]) -> str:
    shown = [f"{images.ids[r]}: {printable(why)}" for r, why in list(bad.items())[:10]]
    return (
        f"{images.name}: not usable images:\n  " + "\n  ".join(shown) + "\nRemove or "
        "repair them and repeat the command, or skip them with --on-bad-image skip"
    )


def _outputs(
    logits: Float[np.ndarray, "b c"],
    features: Float[np.ndarray, "b d"],
    names: Sequence[str],
    reference: Reference | None,
    config: PredictConfig,
) -> Iterator[dict[str, Any]]:
    """What is written of each image."""
    shares = probabilities(logits)
    order = np.argsort(-shares, axis=1, kind="stable")
    shares = np.take_along_axis(shares, order, 1)
    distances = ranks = None
    if reference is not None:
        distances = reference.distance(features)
        ranks = reference.rank(distances)
    for row in range(len(logits)):
        found: dict[str, Any] = {}
        for place in range(min(config.top, len(names))):
            end = f"_{place + 1}" if place else ""
            found[f"class{end}"] = names[order[row, place]]
            found[f"probability{end}"] = round(float(shares[row, place]), 6)
        found["margin"] = round(float(shares[row, 0] - shares[row, 1]), 6)
        if distances is not None and ranks is not None:
            found["distance"] = round(float(distances[row]), 6)
            found["farther_than"] = round(float(ranks[row]), 4)
        if config.threshold is not None:
            found["unsure"] = bool(shares[row, 0] < config.threshold)
        yield found


def _finish(
    rows: pathlib.Path, out: pathlib.Path, skipped: Sequence[BadImage]
) -> Predictions:
    """Writes the output, and the list of broken images, from the lines."""
    counts: collections.Counter[str] = collections.Counter()
    far = unsure = None
    bad = [f"{one.path}\t{printable(one.reason)}\n" for one in skipped]

    def good() -> Iterator[dict[str, Any]]:
        nonlocal far, unsure
        with rows.open(encoding="utf-8") as file:
            for line in itertools.islice(file, 1, None):
                row = json.loads(line)
                if "bad" in row:
                    bad.append(f"{row['file']}\t{row['bad']}\n")
                    continue
                counts[row["class"]] += 1
                if "farther_than" in row:
                    far = (far or 0) + (row["farther_than"] > _FAR)
                if "unsure" in row:
                    unsure = (unsure or 0) + row["unsure"]
                yield row

    partial = rows.with_name(out.name)
    _WRITERS[out.suffix.lower()](partial, good())
    listed = out.with_name(f"{out.name}.skipped.txt")
    listed.unlink(missing_ok=True)
    if bad:
        listed.write_text("".join(bad), encoding="utf-8")
    if not counts:
        partial.unlink(missing_ok=True)
        raise DataError(f"none of {len(bad):,} files is a usable image, see {listed}")
    partial.replace(out)
    return Predictions(
        out=out,
        images=counts.total(),
        counts=dict(counts.most_common()),
        far=far,
        unsure=unsure,
        skipped=listed if bad else None,
        bad=len(bad),
    )


def _write_csv(path: pathlib.Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for number, row in enumerate(rows):
            if not number:
                writer.writerow(row)
            writer.writerow(
                str(cell).lower() if isinstance(cell, bool) else cell
                for cell in row.values()
            )


def _write_jsonl(path: pathlib.Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _write_parquet(path: pathlib.Path, rows: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        writer = None
        while some := list(itertools.islice(rows, _ROWS_TOGETHER)):
            table = pa.Table.from_pylist(some)
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(path, table.schema))
            writer.write_table(table)


_WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
