"""Classes that are given as words, into a file, and how often they are right."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from afterimage.checkpoints.files import read_bytes, reason
from afterimage.checkpoints.names import class_name, spelling
from afterimage.console import say_reading
from afterimage.data import ImageSet
from afterimage.errors import DataError, UserError
from afterimage.fields import output_file
from afterimage.outputs.classes import Classes
from afterimage.reading import ReadingOptions
from afterimage.rows import WRITERS, every_split, skipped_lines, together, write_rows
from afterimage_captions.aligner import Aligner, load_aligner
from afterimage_captions.config import ZeroShotConfig

_BATCH = 256


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """What was written, and how much of it is right."""

    out: pathlib.Path
    images: int
    accuracy: Mapping[str, float]
    """Of the images whose class is known and among the classes, the mean accuracy of
    the classes: `all`, `seen` and `unseen` in training, `harmonic` mean of the two."""
    text: str
    """A few lines for a terminal."""


def zero_shot(config: ZeroShotConfig) -> ZeroShot:
    """Write a row for each image; one that was stopped continues.

    Columns: file, class and probability, class_2, …, up to `top`, and margin; with
    known classes `label`. Accuracy is the mean over classes, and the harmonic mean that
    of classes seen and unseen in training (Xian et al. 2017).

    Raises UserError for settings that cannot work, DataError for data without images
    and, with on_bad_image="fail", for the first broken one.
    """
    out = pathlib.Path(config.out)
    output_file(out, WRITERS)
    names = class_names(config)
    aligner = load_aligner(config.from_)
    prompts = [config.prompt.replace("{}", name) for name in names]
    texts = aligner.embed_texts(prompts, text=config.text)
    images = _open(config, aligner)
    kind, labels = Classes(names=names), _labels(images)
    right: dict[str, list[bool]] = collections.defaultdict(list)

    def rows(batches: Iterator[np.ndarray]) -> Iterator[list[dict[str, Any]]]:
        for batch in batches:
            values = aligner.probabilities(aligner.embed_images(batch), texts)
            yield [kind.columns(each, config.top) for each in values]

    def count(_: int, row: Mapping[str, Any]) -> None:
        if row.get("label") in names:
            right[row["label"]].append(row["class"] == row["label"])

    written = write_rows(
        out,
        images,
        rows,
        mark=[prompts, config.top, texts.tolist(), aligner.manifest["files"]],
        batch_size=_BATCH,
        on_bad_image=config.on_bad_image,
        doing="classifying",
        count=count,
        place=lambda n, row: row if labels is None else {**row, "label": labels[n]},
    )
    seen = {name for name, p in zip(names, prompts) if {name, p} & {*aligner.seen}}
    accuracy = _accuracy(right, seen)
    lines = [f"{written.images:,} predictions in {spelling(str(out))}"]
    if accuracy:
        lines.append(
            f"  accuracy, mean over {len(right)} classes, "
            f"{sum(map(len, right.values())):,} images: "
            + ", ".join(f"{name} {100 * v:.1f} %" for name, v in accuracy.items())
            + f"; chance {100 / len(names):.1f} %"
        )
    lines += skipped_lines(written.bad, written.skipped)
    return ZeroShot(out, written.images, accuracy, "\n".join(lines))


def class_names(config: ZeroShotConfig) -> tuple[str, ...]:
    """The classes that a configuration names, or those in its file."""
    given = list(config.classes)
    if len(given) == 1 and given[0].lower().endswith(".txt"):
        try:
            content = read_bytes(given[0], 2**24).decode("utf-8-sig")
        except OSError as error:
            raise DataError(f"classes={given[0]} {reason(error)}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"classes={given[0]} is not UTF-8 ({error})") from error
        given = [line.strip() for line in content.splitlines()]
        given = [line for line in given if line]
    names = tuple(map(class_name, given))
    twice = [name for name, n in collections.Counter(names).items() if n > 1]
    if len(names) < 2 or twice or not all(name.strip() for name in names):
        found = f"{twice[0]!r} is listed twice" if twice else f"{len(names)} found"
        raise UserError(f"classes: {found}; give two or more different names")
    return names


def _open(config: ZeroShotConfig, aligner: Aligner) -> ImageSet:
    """The images, with their classes if they have any."""
    say_reading(config.images)
    parts = every_split(
        config.images,
        aligner.preprocessing,
        on_bad_image=config.on_bad_image,
        reading=ReadingOptions(**ReadingOptions.settings(config)),
        lazily=True,
    )
    if config.split is not None:
        parts = [part for part in parts if part.name.endswith(f"[{config.split}]")]
        if not parts:
            raise DataError(f"{config.images} has no split {config.split}")
    return together(parts)


def _labels(images: ImageSet) -> list[str] | None:
    """The class of each image, "" where it has none; None if no image has one."""
    if images.labels is None or images.class_names is None:
        return None
    known = (*images.class_names, "")  # -1: unknown
    return [known[label] for label in images.labels]


def _accuracy(right: Mapping[str, list[bool]], seen: set[str]) -> dict[str, float]:
    each = {name: float(np.mean(hits)) for name, hits in right.items()}
    groups = {
        "all": list(each.values()),
        "seen": [value for name, value in each.items() if name in seen],
        "unseen": [value for name, value in each.items() if name not in seen],
    }
    found = {name: float(np.mean(values)) for name, values in groups.items() if values}
    if {"seen", "unseen"} <= found.keys():
        both = found["seen"], found["unseen"]
        found["harmonic"] = 2 * both[0] * both[1] / sum(both) if sum(both) else 0.0
    return found
