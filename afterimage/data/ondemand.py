"""Image sets whose images are decoded when they are asked for.

For data too large to decode before training, or to keep in a cache. Size and channels
come from a sample of the headers; an image that differs is an error when it is read.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from afterimage.checkpoints import schemas
from afterimage.checkpoints.files import read_bytes
from afterimage.checkpoints.names import printable, spelling
from afterimage.data.decoded import decoded_in
from afterimage.data.images import (
    bad_message,
    common_size,
    headers,
    measured_range,
)
from afterimage.data.index import Index
from afterimage.data.labels import say_alike, task_labels
from afterimage.data.sets import (
    UNLABELLED,
    BadImage,
    ImageSet,
    Names,
    Numbers,
    Request,
    Selected,
    Splits,
    content_fingerprint,
)
from afterimage.data.whole_photos import shown
from afterimage.data.workers import Decoder, Files, Once, or_reason, windows
from afterimage.errors import DataError

_SAMPLE = 1024
Coded = tuple[np.ndarray, Sequence[str | None]]
"""(the code of each image, the class name of each code)."""


@runtime_checkable
class IndexedFiles(Files, Protocol):
    """Files of an index."""

    index: Index
    threads: int
    """How many should read at once."""


def sets_on_demand(
    files: IndexedFiles,
    source: str,
    groups: Mapping[str, Int64[np.ndarray, " n"]],
    request: Request,
    classes: Coded | None,
    tasks: Mapping[str, Coded],
    numbers: Numbers | None,
) -> Splits:
    """Sets for {split: rows}; nothing but a sample of headers is read.

    With on_bad_image="skip", and not for a single pass, every image is decoded once, to
    know which cannot be; the answer is kept beside the index.

    Images are kept once they are decoded, if the cache's disk has room for all of them.

    Each fingerprint is computed from the index and from a sample of the images' bytes.
    """
    decoder, request = _decoder(files, source, groups, request)
    decoded = None
    if request.cache and not request.once:
        place = files.index.folder / f"decoded-{_key(decoder)}"
        decoded = decoded_in(place, len(files.names), decoder.stored)
    images = Once(files, decoder, files.threads, decoded)
    bad: Mapping[int, str] = {}
    if request.on_bad_image == "skip" and not request.once:
        bad = _checked(files, source, groups, decoder, images)
    names = Names(lambda row: spelling(files.names[row]), range(len(files.names)))
    kept = {s: _without(rows, bad) for s, rows in groups.items()}
    labels, given = _indexed(classes, kept)
    say_alike(given, source)
    more = task_labels({name: _indexed(coded, kept) for name, coded in tasks.items()})
    sets = {}
    for split, rows in kept.items():
        if not len(rows):
            raise DataError(f"{source} [{split}]: no file can be read as an image")
        sets[split] = _image_set(
            files,
            rows,
            numbers=numbers and numbers.rows(rows),
            images=Selected(shown(images, request), rows),
            labels=labels[split],
            ids=names.take(rows),
            class_names=given,
            name=f"{source} [{split}]",
            skipped=tuple(
                BadImage(names[row], printable(bad[row]))
                for row in np.intersect1d(groups[split], list(bad)).tolist()
            ),
            tasks=more.get(split, {}),
            value_range=decoder.value_range,
        )
    return Splits(**sets)


def _image_set(
    files: IndexedFiles, rows: np.ndarray, *, numbers: Numbers | None, **parts: Any
) -> ImageSet:
    digests = [bytes.fromhex(files.index.fingerprint), hashlib.sha256(rows).digest()]
    if parts["value_range"]:
        digests.append(repr(parts["value_range"]).encode())
    fingerprint = content_fingerprint(
        digests, parts["labels"], (), parts["images"].shape, parts["tasks"], numbers
    )
    return ImageSet(**parts, numbers=numbers, fingerprint=fingerprint)


def _decoder(
    files: IndexedFiles,
    source: str,
    groups: Mapping[str, np.ndarray],
    request: Request,
) -> tuple[Decoder, Request]:
    """How all images are decoded, from the request or a sample of the headers."""
    known = request.once and request.size is not None and request.channels is not None
    value_range = request.value_range
    if request.once and value_range == "auto":
        value_range = None
    if known and request.size is not None and value_range != "auto":
        height, width = request.size
        shape = (height, width, request.channels or 0)
        return Decoder(shape, request.size, value_range, whole=request.whole), request
    learnt = groups["train"]
    step = max(1, -(-len(learnt) // _SAMPLE))
    good, bad = headers(files, request.channels, learnt[::step].tolist())
    if bad and (request.on_bad_image == "fail" or not good):
        raise DataError(bad_message(files, bad, source))
    request = request.sized(lambda: [(h.height, h.width) for h in good.values()])
    height, width = request.size or common_size(files, good, source)
    if value_range == "auto":
        value_range = measured_range(files, good, source)
    channels = request.channels or max(h.channels for h in good.values())
    shape = (height, width, channels)
    return Decoder(shape, request.size, value_range, whole=request.whole), request


def _without(rows: np.ndarray, bad: Mapping[int, str]) -> np.ndarray:
    return rows[~np.isin(rows, list(bad))] if bad else rows


def _indexed(
    coded: Coded | None, groups: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray | None], tuple[str, ...] | None]:
    """Class indices by split, and the class names, as `labels.index_names`."""
    if coded is None:
        return dict.fromkeys(groups), None
    codes, names = coded
    found = {split: codes[rows] for split, rows in groups.items()}
    used = {s: np.unique(part) for s, part in found.items()}
    known = {names[c] for part in used.values() for c in part.tolist()} - {None}
    classes = sorted(name for name in known if name is not None)
    number = {name: place for place, name in enumerate(classes)}
    table = np.array(
        [UNLABELLED if n is None else number.get(n, UNLABELLED) for n in names],
        np.int32,
    )
    labels = {
        split: table[part] if any(names[c] is not None for c in used[split]) else None
        for split, part in found.items()
    }
    return labels, tuple(classes) or None


def _checked(
    files: IndexedFiles,
    source: str,
    groups: Mapping[str, np.ndarray],
    decoder: Decoder,
    images: Once,
) -> dict[int, str]:
    """{row: why it is not an image}, from a pass over all images or the last one."""
    rows = np.sort(np.concatenate(list(groups.values())))
    chosen = hashlib.sha256(rows).hexdigest()[:16]
    place = files.index.folder / f"bad-{_key(decoder)}-{chosen}.json"
    if (known := _read_bad(place)) is not None:
        return known
    bad: dict[int, str] = {}

    def check(row: int) -> None:
        images.one(row)

    for row, reason in windows(or_reason(check), rows.tolist(), f"checking {source}"):
        if reason is not None:
            bad[row] = reason
    with contextlib.suppress(OSError):  # without a cache, the next run checks again
        place.write_text(json.dumps(sorted(bad.items())))
    return bad


def _key(decoder: Decoder) -> str:
    """A name for everything that decides the pixels, besides the files."""
    asked = [decoder.stored, decoder.size, decoder.value_range]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _read_bad(place: pathlib.Path) -> dict[int, str] | None:
    try:
        return {int(row): str(why) for row, why in schemas.parse(read_bytes(place))}
    except (OSError, ValueError, TypeError):
        return None
