"""Labels from a few: which images to label next, and which labels look wrong."""

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from afterimage.checkpoints.names import printable, spelling
from afterimage.classifier import load_classifier, probabilities
from afterimage.console import ProgressBar, say_reading
from afterimage.data import WAYS_TO_LABEL, ImageSet, Preprocessing
from afterimage.data.images import read_or_reason
from afterimage.encoder import load_encoder
from afterimage.errors import DataError, UserError
from afterimage.evaluation.acquisition import (
    NEEDS_CLASSIFIER,
    images_to_label,
    margins,
)
from afterimage.evaluation.configs import LabelConfig, is_classifier
from afterimage.evaluation.label_issues import FEWEST, find_label_issues
from afterimage.label_files import (
    ACROSS,
    MOST_ROWS,
    Row,
    check_outputs,
    notes_on,
    write_files,
)
from afterimage.reading import ReadingOptions
from afterimage.rows import every_image, every_split, together

_PRINTED = 20  # rows
_COLUMNS = ("file", "label", "suggested", "score", "neighbours")
_ENOUGH = 10  # labels a class: with fewer, uncertainty misleads (benchmarks.suggest)
_WEAK = 0.7  # agreement below which a check is doubtful


@dataclasses.dataclass(frozen=True)
class Suggestions:
    """The images to label next."""

    rows: tuple[Row, ...]
    """The most useful first: file, label (empty) and, by a classifier, prediction and
    margin."""
    rule: str
    """How they were chosen."""
    images: int
    """Those that could be read."""
    known: int
    """Those of them that have a label already, or are the same as one that has."""
    bad: Mapping[str, str]
    """{image: why it could not be read}."""
    notes: tuple[str, ...]
    written: tuple[pathlib.Path, ...]

    def summary(self) -> str:
        """A few lines for a terminal."""
        lines = [f"{len(self.rows):,} of {self.images:,} images to label ({self.rule})"]
        if self.known:
            lines[0] += f"; {self.known:,} have a label already"
        lines += [f"  {row['file']}" for row in self.rows[:_PRINTED]]
        return "\n".join([*lines, *_ending(self, len(self.rows))])


@dataclasses.dataclass(frozen=True)
class LabelCheck:
    """The labels that look wrong."""

    rows: tuple[Row, ...]
    """The surest first: file, label, suggested, score and neighbours; see
    `LabelIssues`."""
    checked: int
    """Labels that were checked."""
    agreement: float
    """The share of them that a probe predicts without the image."""
    bad: Mapping[str, str]
    """{image: why it could not be read}."""
    notes: tuple[str, ...]
    written: tuple[pathlib.Path, ...]

    def summary(self) -> str:
        """A few lines for a terminal."""
        lines = [f"{len(self.rows):,} of {self.checked:,} labels look wrong"]
        lines += [
            f"  {row['score']:.2f}  {row['file']}: {row['label']}, looks like "
            f"{row['suggested']}"
            for row in self.rows[:_PRINTED]
        ]
        lines += _ending(self, len(self.rows))
        lines.append(
            f"A probe predicts {self.agreement:.0%} of the labels without having seen "
            "the image"
        )
        if self.agreement < _WEAK:
            lines.append(
                "  These features hardly tell the classes apart: most of the labels "
                "listed may be right"
            )
        return "\n".join(lines)


def _ending(found: Suggestions | LabelCheck, rows: int) -> list[str]:
    more = [f"  and {rows - _PRINTED:,} more"] if rows > _PRINTED else []
    bad = f"{len(found.bad):,} images could not be read, e.g. "
    bad += "".join(f"{name}: {why}" for name, why in list(found.bad.items())[:1])
    notes = [*([bad] if found.bad else []), *found.notes]
    return [*more, *notes, *(spelling(str(path)) for path in found.written)]


def suggest_labels(config: LabelConfig) -> Suggestions:
    """Choose the images to label next; see `images_to_label`.

    Raises UserError for settings that cannot work or a table whose labels would be
    lost, DataError if no image is left to label.
    """
    assert config.suggest is not None
    check_outputs(config)
    model = _Model(config)
    if config.rule in NEEDS_CLASSIFIER and not model.classes:
        raise UserError(
            f"rule={config.rule}: needs a classifier, but {config.from_} is an encoder"
        )
    say_reading(config.data)
    reading = ReadingOptions(**config.settings())
    images = every_image(config.data, model.preprocessing, reading=reading)
    own = model.read(images)
    covered = [own.vectors[own.labels >= 0]]
    known = {own.digests[row] for row in np.flatnonzero(own.labels >= 0)}
    if config.labelled is not None:
        more = model.read(_labelled(config, config.labelled, model.preprocessing))
        covered.append(more.vectors)
        known.update(more.digests)
    free = _first_of_each(own.digests, known)
    if not free:
        raise DataError(f"{images.name}: all images have labels; none is left to label")
    shares = own.shares[free] if own.shares is not None else None
    covered = np.concatenate(covered)
    rule = config.rule or ("badge" if model.learned(len(covered)) else "typical")
    chosen = images_to_label(
        own.vectors[free],
        config.suggest,
        known=covered,
        probabilities=shares,
        rule=rule,
        seed=config.seed,
    )
    margin = margins(shares) if shares is not None else None

    def row_of(place: int) -> Row:
        row: Row = {"file": own.ids[free[place]], "label": ""}
        if shares is not None and margin is not None:
            row["prediction"] = model.classes[int(shares[place].argmax())]
            row["margin"] = round(float(margin[place]), 6)
        return row

    rows = [row_of(int(place)) for place in chosen]
    caption = f"{len(rows)} of {len(images):,} images of {config.data} to label"
    found = Suggestions(
        rows=tuple(rows),
        rule=rule,
        images=len(own.ids),
        known=sum(digest in known for digest in own.digests),
        bad=own.bad,
        notes=notes_on(config),
        written=tuple(map(pathlib.Path, config.out)),
    )
    columns, sheet = list(rows[0]), _in_rows([row["file"] for row in rows])
    what: Any = ("Images to label", caption, rows, columns, sheet)
    write_files(config, model.preprocessing, *what)
    return found


def _first_of_each(digests: Sequence[bytes], known: Collection[bytes]) -> list[int]:
    """Rows of different images, none of them known: the first of each."""
    first: dict[bytes, int] = {}
    for row, digest in enumerate(digests):
        if digest not in known:
            first.setdefault(digest, row)
    return list(first.values())


def _in_rows(files: Sequence[str]) -> dict[str, list[str]]:
    """The rows of a contact sheet, by their numbers."""
    sheet = {}
    for start in range(0, min(len(files), ACROSS * MOST_ROWS), ACROSS):
        part = list(files[start : start + ACROSS])
        sheet[f"{start + 1} to {start + len(part)}"] = part
    return sheet


def check_labels(config: LabelConfig) -> LabelCheck:
    """Find the labels that look wrong; see `find_label_issues`.

    Raises UserError for settings that cannot work, DataError for data whose labels
    cannot be checked.
    """
    check_outputs(config)
    model = _Model(config)
    say_reading(config.data)
    images = _labelled(config, config.data, model.preprocessing)
    names = images.class_names or ()
    own = model.read(images)
    try:
        issues = find_label_issues(own.vectors, own.labels, seed=config.seed)
    except UserError as error:
        raise DataError(f"{images.name}: {error}") from error
    rows = [
        {
            "file": own.ids[row],
            "label": names[own.labels[row]],
            "suggested": names[suggested],
            "score": round(float(score), 6),
            "neighbours": round(float(share), 6),
        }
        for row, suggested, score, share in zip(
            issues.rows, issues.suggested, issues.score, issues.neighbours, strict=True
        )
    ]
    notes = list(notes_on(config))
    if left := int((~issues.checked).sum()):
        notes.append(
            f"{left:,} labels of classes with fewer than {FEWEST} images were not "
            "checked"
        )
    sheet: dict[str, list[str]] = collections.defaultdict(list)
    for row in rows:
        label = f"{row['label'][:10]}, like {row['suggested'][:10]}"
        if len(sheet[label]) < ACROSS:
            sheet[label].append(row["file"])
    found = LabelCheck(
        rows=tuple(rows),
        checked=int(issues.checked.sum()),
        agreement=issues.agreement,
        bad=own.bad,
        notes=tuple(notes),
        written=tuple(map(pathlib.Path, config.out)),
    )
    sheet = dict(list(sheet.items())[:MOST_ROWS])
    caption = f"{len(rows):,} of {found.checked:,} labels of {config.data} look wrong"
    what: Any = ("Labels that look wrong", caption, rows, _COLUMNS, sheet)
    write_files(config, model.preprocessing, *what)
    return found


@dataclasses.dataclass(frozen=True)
class _Read:
    """What was computed of the images that could be read."""

    ids: list[str]
    digests: list[bytes]
    """Equal for equal pixels."""
    labels: np.ndarray
    """-1 where unknown."""
    vectors: np.ndarray
    shares: np.ndarray | None
    """Class probabilities, by a classifier."""
    bad: Mapping[str, str]


class _Model:
    """The encoder, or the classifier, that sees the images."""

    def __init__(self, config: LabelConfig):
        self._size = config.batch_size
        self.classes: tuple[str, ...] = ()
        if is_classifier(config.from_):
            classifier = load_classifier(config.from_)
            task = classifier.task(config.task)
            classifier.require_classes(task, f"from={config.from_}: label")
            self.classes = classifier.class_names[task]
            self.preprocessing: Preprocessing = classifier.preprocessing
            self._stream: Callable[..., Iterator[Any]] = classifier.stream
            self._how: dict[str, Any] = {"task": task}
        else:
            if config.task is not None:
                raise UserError(
                    f"task={config.task}: {config.from_} is an encoder, which has none"
                )
            encoder = load_encoder(config.from_)
            self.preprocessing = encoder.preprocessing
            self._stream, self._how = encoder.stream, {}

    def learned(self, labels: int) -> bool:
        """Whether this is a classifier, and there are labels enough to trust it."""
        return bool(self.classes) and labels >= _ENOUGH * len(self.classes)

    def read(self, images: ImageSet) -> _Read:
        """Reads the images once, batch by batch; only their vectors are kept.

        Raises DataError if none can be read.
        """
        good: list[int] = []
        digests: list[bytes] = []
        bad: dict[str, str] = {}

        def batches() -> Iterator[np.ndarray]:
            with ProgressBar(len(images), "features") as progress:
                for start in range(0, len(images), self._size):
                    rows = np.arange(start, min(start + self._size, len(images)))
                    kept = []
                    for row, one in zip(rows.tolist(), read_or_reason(images, rows)):
                        if isinstance(one, str):
                            bad[images.ids[row]] = printable(one)
                            continue
                        kept.append(one)
                        good.append(row)
                        pixels = np.ascontiguousarray(one)
                        digests.append(hashlib.sha256(pixels.data).digest())
                    if kept:
                        yield np.stack(kept)
                    progress.add(len(rows))

        outs = list(self._stream(batches(), batch_size=self._size, **self._how))
        if not outs:
            raise DataError(
                f"{images.name}: none of {len(images):,} images can be read"
            )
        labels = np.full(len(images), -1) if images.labels is None else images.labels
        shares = None
        if self.classes:
            shares = probabilities(np.concatenate([logits for logits, _ in outs]))
            outs = [features for _, features in outs]
        vectors = np.concatenate(outs)
        ids = [images.ids[row] for row in good]
        return _Read(ids, digests, np.asarray(labels)[good], vectors, shares, bad)


def _labelled(config: LabelConfig, data: str, preprocessing: Preprocessing) -> ImageSet:
    """The labelled images of all splits; DataError without any."""
    reading = ReadingOptions(**config.settings())
    splits = every_split(
        data, preprocessing, on_bad_image="skip", reading=reading, strict=False
    )
    parts = [
        part.subset(np.flatnonzero(part.labels >= 0))
        for part in splits
        if part.labels is not None and (part.labels >= 0).any()
    ]
    if not parts:
        raise DataError(f"{splits[0].name} has no labels. Add them: {WAYS_TO_LABEL}")
    return together(parts)
