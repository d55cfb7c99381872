"""Encoded images -> image sets: look at the headers, decode once, keep the pixels."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from afterimage.checkpoints.names import printable, spelling
from afterimage.data import cache as store
from afterimage.data import decode
from afterimage.data.files import (
    Archives,
    Files,
    Folder,
    listed_kinds,
    opened,
    read,
)
from afterimage.data.folder_metadata import with_metadata
from afterimage.data.header import Header, NotAnImage, check_seen, takes_bands
from afterimage.data.labels import index_names, say_alike, task_labels
from afterimage.data.layout import Groups, layout
from afterimage.data.samples import Range, range_of
from afterimage.data.sets import (
    BadImage,
    ImageSet,
    Selected,
    Splits,
    content_fingerprint,
)
from afterimage.data.workers import Decoder, Lazy, budget, or_reason, windows
from afterimage.errors import DataError
from afterimage.notes import say_once
from afterimage.reading import ReadingOptions
from afterimage.runtime import cache_dir

_FIRST_PAGE = (
    "of several pages the first is read: write bands as the samples of one page "
    "(tifffile: photometric='minisblack', planarconfig='contig')"
)
_MEASURED = 1024  # images that an automatic value range looks at


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The images that files are decoded to; None keeps what is there."""

    image_size: int | None = None
    channels: int | None = None
    value_range: Range | Literal["auto"] | None = None


def open_folder(
    path: str, *, reading: ReadingOptions, strict: bool, **options: Any
) -> Splits:
    """Images under a folder: flat, one subfolder a class, or splits above those.

    A `metadata.csv` or `.jsonl` among them gives their labels.
    """
    files, source = Folder(path), f"folder:{spelling(path)}"
    _say_ignored(files, source)
    return image_sets(files, source, _groups(files, source, reading, strict), **options)


def open_zip(
    paths: str, *, reading: ReadingOptions, strict: bool, **options: Any
) -> Splits:
    """The same inside one or several zip archives, taken together, unextracted."""
    files, source = Archives(paths), f"zip:{spelling(paths)}"
    _say_ignored(files, source)
    return image_sets(files, source, _groups(files, source, reading, strict), **options)


def _groups(
    files: Folder | Archives, source: str, reading: ReadingOptions, strict: bool
) -> Groups:
    groups = layout(files.names, source, reading.split_folders, strict=strict)
    # Images that the options exclude are not even opened.
    used = sorted(row for rows, _ in groups.values() for row in rows)
    place = {row: number for number, row in enumerate(used)}
    unused = {name for row, name in enumerate(files.names) if row not in place}
    files.names = [files.names[row] for row in used]
    groups = {s: ([place[row] for row in rows], c) for s, (rows, c) in groups.items()}
    return with_metadata(files, source, groups, reading, unused)


def _say_ignored(files: Folder | Archives, source: str) -> None:
    if files.others:
        kinds = listed_kinds(files.others)
        say_once(f"{source}: files of other kinds, ignored: {kinds}")


def image_sets(
    files: Files,
    source: str,
    groups: Mapping[str, tuple[Sequence[int], Sequence[str | None]]],
    *,
    image_size: int | None,
    channels: int | None,
    on_bad_image: str,
    cache: bool,
    value_range: Range | Literal["auto"] | None = None,
    tasks: Mapping[str, Sequence[str | None]] | None = None,
) -> Splits:
    """Sets of {split: (rows of `files`, class name of each)}, decoded as asked.

    `tasks` has the class names of further tasks, one for each of `files`.

    The fingerprint of each is over the digests of its files' bytes, so it does not
    depend on where they lie, when they were written, or whether there is a cache.
    """
    wanted = Wanted(image_size, channels, value_range)
    learnt = groups["train"][0]
    folder = _cache_folder(files, wanted, learnt) if cache else None
    entry = store.load(folder) if folder else None
    if entry is None:
        entry = _decode_all(files, source, wanted, learnt, on_bad_image, folder)
    if entry.bad and (on_bad_image == "fail" or not len(entry.images)):
        raise DataError(_bad_message(files, entry.bad, source))
    good = [row for row in range(len(files.names)) if row not in entry.bad]
    place = {row: position for position, row in enumerate(good)}
    kept = {
        split: [(row, name) for row, name in zip(*group) if row in place]
        for split, group in groups.items()
    }
    labels, classes = index_names({s: [n for _, n in k] for s, k in kept.items()})
    say_alike(classes, source)
    more = task_labels(
        {
            task: index_names({s: [names[r] for r, _ in k] for s, k in kept.items()})
            for task, names in (tasks or {}).items()
        }
    )
    sets = {}
    for split, pairs in kept.items():
        if not pairs:
            raise DataError(f"{source} [{split}]: every file is bad")
        rows = np.array([place[row] for row, _ in pairs], np.int64)
        ids = [spelling(files.names[row]) for row, _ in pairs]
        images, own = Selected(entry.images, rows), more.get(split, {})
        digests = [entry.digests[row] for row in rows]
        if entry.value_range:  # the same bytes are other images in another range
            digests.append(repr(entry.value_range).encode())
        mark = content_fingerprint(digests, labels[split], ids, images.shape, own)
        skipped = [row for row in groups[split][0] if row in entry.bad]
        sets[split] = ImageSet(
            images=images,
            labels=labels[split],
            ids=ids,
            class_names=classes,
            name=f"{source} [{split}]",
            fingerprint=mark,
            tasks=own,
            value_range=entry.value_range,
            skipped=tuple(
                BadImage(spelling(files.names[r]), printable(entry.bad[r]))
                for r in skipped
            ),
        )
    return Splits(**sets)


def _cache_folder(files: Files, wanted: Wanted, learnt: Sequence[int]) -> pathlib.Path:
    stamps = [[name, *files.stamp(row)] for row, name in enumerate(files.names)]
    # An automatic range depends on which images are for training.
    measured = list(learnt) if wanted.value_range == "auto" else None
    key = json.dumps([dataclasses.astuple(wanted), measured, stamps]).encode()
    return cache_dir() / "images" / hashlib.sha256(key).hexdigest()


def _decode_all(
    files: Files,
    source: str,
    wanted: Wanted,
    learnt: Sequence[int],
    on_bad_image: str,
    folder: pathlib.Path | None,
) -> store.Entry:
    """One pass over the headers and one over the pixels, into the cache if there is."""
    good, bad = _headers(files, wanted.channels)
    if bad and (on_bad_image == "fail" or not good):
        raise DataError(_bad_message(files, bad, source))
    if wanted.channels != 4:
        _say_alpha(files, good, source)
    _say_pages(files, good, source)
    side = wanted.image_size
    size = None if side is None else (side, side)
    height, width = size or _common_size(files, good, source)
    value_range = wanted.value_range
    if value_range == "auto":
        value_range = _measured(
            files, {r: good[r] for r in learnt if r in good}, source
        )
    channels = wanted.channels or max(h.channels for h in good.values())
    decoder = Decoder((height, width, channels), size, value_range)

    def pixels(row: int) -> tuple[np.ndarray, bytes]:
        with budget.hold(costs[row]):
            data = read(files, row)
            return decoder(data), hashlib.sha256(data).digest()

    digests = []
    each = height * width * channels
    costs = {row: header.cost + files.size(row) + each for row, header in good.items()}
    with store.writer(folder, len(good), decoder.shape) as writer:
        for row, found in windows(or_reason(pixels), list(good), "decoding", each):
            if isinstance(found, str):
                bad[row] = found
                continue
            writer.add(found[0])
            digests.append(found[1])
        entry = writer.commit(digests, bad, value_range)
    if entry is not None:
        return entry
    rows = [row for row in good if row not in bad]
    lazy = Lazy(files, np.array(rows), np.array([costs[r] for r in rows]), decoder)
    return store.Entry(lazy, digests, bad, value_range)


def _headers(
    files: Files, channels: int | None
) -> tuple[dict[int, Header], dict[int, str]]:
    """({row: what its header says}, {row: why it cannot be used so})."""

    def header(row: int) -> Header:
        with opened(files, row) as file:
            found = decode.read_header(file)
        try:
            if channels is None:
                check_seen(found)
            else:
                takes_bands(found.channels, found.samples, channels)
        except NotAnImage as error:
            if found.pages > 1:
                raise NotAnImage(f"{error}; {_FIRST_PAGE}") from None
            raise
        return found

    found = dict(windows(or_reason(header), range(len(files.names)), "headers"))
    bad = {row: reason for row, reason in found.items() if isinstance(reason, str)}
    return {row: h for row, h in found.items() if row not in bad}, bad


def _say_alpha(files: Files, headers: Mapping[int, Header], source: str) -> None:
    """Some programs call the fourth of four bands transparency, whatever it is."""
    found = sum(
        (header.channels, header.samples) == (3, 4)
        and files.names[row].lower().endswith((".tif", ".tiff"))
        for row, header in headers.items()
    )
    if found:
        say_once(
            f"{source}: the fourth band of {found} TIFF files is marked as "
            "transparency. If it is something else, e.g. near-infrared, give "
            "channels=4 (--channels 4)"
        )


def _say_pages(files: Files, headers: Mapping[int, Header], source: str) -> None:
    """Microscopes write bands, layers and times as pages; so does tifffile, unasked."""
    found = [row for row, header in headers.items() if header.pages > 1]
    if found:
        first = headers[found[0]]
        say_once(
            f"{source}: {len(found)} TIFF files have several pages, such as "
            f"{spelling(files.names[found[0]])}, each {first.height} pixels high and "
            f"{first.width} wide; {_FIRST_PAGE}"
        )


def _measured(files: Files, headers: Mapping[int, Header], source: str) -> Range:
    """The range of the training images of more than 8 bits: see `range_of`."""
    wide = [row for row, header in headers.items() if header.wide]
    if not wide:
        raise DataError(
            f"{source}: value_range='auto' (--value-range auto) is for images of more "
            "than 8 bits, and no training image has more"
        )
    chosen = wide[:: -(-len(wide) // _MEASURED)]

    def values(row: int) -> np.ndarray:
        with budget.hold(headers[row].cost + files.size(row)):
            return decode.some_values(read(files, row))

    found = (v for _, v in windows(or_reason(values), chosen, "values", 2**20))
    return range_of([v for v in found if not isinstance(v, str)], source)


def _common_size(
    files: Files, headers: Mapping[int, decode.Header], source: str
) -> tuple[int, int]:
    sizes = {
        (h.height, h.width): spelling(files.names[row]) for row, h in headers.items()
    }
    if len(sizes) > 1:
        small, large = min(sizes), max(sizes)
        raise DataError(
            f"{source}: images differ in size ({len(sizes)} sizes, from "
            f"{small[0]}x{small[1]}, {sizes[small]}, to {large[0]}x{large[1]}, "
            f"{sizes[large]}); give an image size to bring them to, for example 64"
        )
    (size,) = sizes
    return size


def _bad_message(files: Files, bad: Mapping[int, str], source: str) -> str:
    shown = [
        f"{spelling(files.names[row])}: {printable(bad[row])}"
        for row in sorted(bad)[:10]
    ]
    more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
    cure = (
        "Remove or repair them, or leave them out with on_bad_image='skip' "
        "(--on-bad-image skip)"
    )
    return (
        f"{source}: {len(bad)} of {len(files.names)} files are not usable images:\n  "
        + "\n  ".join(shown)
        + f"{more}\n{cure}"
    )
