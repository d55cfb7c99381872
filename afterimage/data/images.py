"""Encoded images -> image sets: look at the headers, decode once, keep the pixels."""

import concurrent.futures
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from afterimage.data import cache as store
from afterimage.data import decode
from afterimage.data.files import Archives, Files, Folder, opened, read
from afterimage.data.folder_metadata import with_metadata
from afterimage.data.labels import index_names, say_alike, task_labels
from afterimage.data.layout import Groups, layout
from afterimage.data.progress import Progress
from afterimage.data.sets import (
    BadImage,
    ImageSet,
    Selected,
    Splits,
    content_fingerprint,
)
from afterimage.errors import DataError
from afterimage.names import printable, spelling
from afterimage.reading import ReadingOptions
from afterimage.runtime import cache_dir, cores

_WINDOW = 256  # files in flight: bounds memory, keeps every thread busy


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(cores(), thread_name_prefix="decode")


def _windows(
    function: Callable[[int], Any], rows: Sequence[int], what: str
) -> Iterator[tuple[int, Any]]:
    """(row, function(row)) in order, from all cores, a window at a time."""
    with decode.strict(), Progress(len(rows), what) as progress:
        for start in range(0, len(rows), _WINDOW):
            part = rows[start : start + _WINDOW]
            yield from zip(part, _pool().map(function, part), strict=True)
            progress.add(len(part))


def _or_reason(function: Callable[[int], Any]) -> Callable[[int], Any]:
    """`function`, returning the reason as a string where it finds no image."""

    def call(row: int) -> Any:
        try:
            return function(row)
        except decode.NotAnImage as error:
            return str(error)
        except MemoryError:
            return "too large for this machine's memory"

    return call


class Lazy:
    """Decodes whenever asked, on all cores: for images that no cache can hold."""

    def __init__(
        self, files: Files, rows: np.ndarray, shape: tuple[int, int, int], size: Any
    ):
        self._files, self._rows, self._size = files, rows, size
        self._shape = shape

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._rows), *self._shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any, /) -> np.ndarray:
        rows = self._rows[index]
        out = np.empty((*rows.shape, *self._shape), np.uint8)
        flat = out.reshape(-1, *self._shape)
        # All threads take from one iterator: cheaper than a future an image.
        jobs = iter(list(zip(flat, rows.ravel().tolist(), strict=True)))
        for _ in _pool().map(self._decode_next, [jobs] * cores()):
            pass
        return out

    def _decode_next(self, jobs: Iterator[tuple[np.ndarray, int]]) -> None:
        for job in jobs:
            self._decode(job)

    def _decode(self, job: tuple[np.ndarray, int]) -> None:
        target, row = job
        try:
            data = read(self._files, row)
            target[:] = decode.decode(data, self._size, self._shape[2])
        except ValueError as error:
            raise DataError(
                f"{spelling(self._files.names[row])} was an image when the run began "
                f"and is not now: {error}"
            ) from error


def open_folder(
    path: str, *, reading: ReadingOptions, strict: bool, **options: Any
) -> Splits:
    """Images under a folder: flat, one subfolder a class, or splits above those.

    A `metadata.csv` or `.jsonl` among them gives their labels.
    """
    files, source = Folder(path), f"folder:{spelling(path)}"
    return image_sets(files, source, _groups(files, source, reading, strict), **options)


def open_zip(
    paths: str, *, reading: ReadingOptions, strict: bool, **options: Any
) -> Splits:
    """The same inside one or several zip archives, taken together, unextracted."""
    files, source = Archives(paths), f"zip:{spelling(paths)}"
    return image_sets(files, source, _groups(files, source, reading, strict), **options)


def _groups(
    files: Folder | Archives, source: str, reading: ReadingOptions, strict: bool
) -> Groups:
    groups = layout(files.names, source, reading.split_folders, strict=strict)
    # What the options leave aside is not even read.
    used = sorted(row for rows, _ in groups.values() for row in rows)
    place = {row: number for number, row in enumerate(used)}
    files.names = [files.names[row] for row in used]
    groups = {s: ([place[row] for row in rows], c) for s, (rows, c) in groups.items()}
    return with_metadata(files, source, groups, reading)


def image_sets(
    files: Files,
    source: str,
    groups: Mapping[str, tuple[Sequence[int], Sequence[str | None]]],
    *,
    image_size: int | None,
    channels: int | None,
    on_bad_image: str,
    cache: bool,
    tasks: Mapping[str, Sequence[str | None]] | None = None,
) -> Splits:
    """Sets of {split: (rows of `files`, class name of each)}, decoded as asked.

    `tasks` has the class names of further tasks, one for each of `files`.

    The fingerprint of each is over the digests of its files' bytes, so it does not
    depend on where they lie, when they were written, or whether there is a cache.
    """
    folder = _cache_folder(files, image_size, channels) if cache else None
    entry = store.load(folder) if folder else None
    if entry is None:
        entry = _decode_all(files, source, image_size, channels, on_bad_image, folder)
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
            skipped=tuple(
                BadImage(spelling(files.names[r]), printable(entry.bad[r]))
                for r in skipped
            ),
        )
    return Splits(**sets)


def _cache_folder(
    files: Files, image_size: int | None, channels: int | None
) -> pathlib.Path:
    stamps = [[name, *files.stamp(row)] for row, name in enumerate(files.names)]
    key = json.dumps([image_size, channels, stamps]).encode()
    return cache_dir() / "images" / hashlib.sha256(key).hexdigest()


def _decode_all(
    files: Files,
    source: str,
    image_size: int | None,
    channels: int | None,
    on_bad_image: str,
    folder: pathlib.Path | None,
) -> store.Entry:
    """One pass over the headers and one over the pixels, into the cache if there is."""

    def header(row: int) -> decode.Header:
        with opened(files, row) as file:
            return decode.read_header(file)

    headers = dict(_windows(_or_reason(header), range(len(files.names)), "headers"))
    bad = {row: found for row, found in headers.items() if isinstance(found, str)}
    good = {row: found for row, found in headers.items() if row not in bad}
    if bad and (on_bad_image == "fail" or not good):
        raise DataError(_bad_message(files, bad, source))
    size = None if image_size is None else (image_size, image_size)
    height, width = size or _common_size(files, good, source)
    shape = (height, width, channels or max(h.channels for h in good.values()))

    def pixels(row: int) -> tuple[np.ndarray, bytes]:
        data = read(files, row)
        digest = hashlib.sha256(data).digest()
        return decode.decode(data, size, shape[2]), digest

    digests = []
    with store.writer(folder, len(good), shape) as writer:
        for row, found in _windows(_or_reason(pixels), list(good), "decoding"):
            if isinstance(found, str):
                bad[row] = found
                continue
            writer.add(found[0])
            digests.append(found[1])
        entry = writer.commit(digests, bad)
    if entry is not None:
        return entry
    rows = np.array([row for row in good if row not in bad], np.int64)
    return store.Entry(Lazy(files, rows, shape, size), digests, bad)


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
