"""Encoded images -> image sets: read the headers, decode once, keep the pixels.

The pixels are cached on disk, as one .npy and its index. An entry's name is a SHA-256
of the files' names and stamps and the requested size and channels, so any change makes
a new entry. A single rename publishes it, so several processes may read and build at
once. A damaged entry is found by its checksum and rebuilt.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Integer

from afterimage.checkpoints import schemas
from afterimage.checkpoints.files import read_bytes
from afterimage.checkpoints.names import printable, spelling
from afterimage.console import say_once
from afterimage.data.decode import read_header, some_values
from afterimage.data.labels import index_names, say_alike, task_labels
from afterimage.data.pixels import (
    Header,
    NotAnImage,
    check_seen,
    range_of,
    takes_bands,
)
from afterimage.data.sets import (
    BadImage,
    Images,
    ImageSet,
    Labels,
    Numbers,
    Range,
    Request,
    Selected,
    Sizes,
    Splits,
    content_fingerprint,
)
from afterimage.data.whole_photos import shown
from afterimage.data.workers import (
    Decoder,
    Files,
    Lazy,
    Once,
    budget,
    opened,
    or_reason,
    read,
    threads_for,
    windows,
)
from afterimage.errors import DataError
from afterimage.runtime import cache_dir

_FIRST_PAGE = (
    "only the first page is read: write bands as the samples of one page (tifffile: "
    "photometric='minisblack', planarconfig='contig')"
)
_MEASURED = 1024  # images sampled for an automatic value range


@dataclasses.dataclass(frozen=True)
class Entry:
    """Result of a pass over the files: the rows kept, their digests, the bad ones."""

    images: Images
    digests: list[bytes]
    bad: dict[int, str]
    """{row of the file: why it is not an image}."""
    value_range: Range | None = None
    """The values mapped to 0 and 255 in images of more than 8 bits."""


def image_sets(
    files: Files,
    source: str,
    groups: Mapping[str, tuple[Sequence[int], Sequence[str | None]]],
    request: Request,
    tasks: Mapping[str, Sequence[str | None]] | None = None,
    numbers: Numbers | None = None,
) -> Splits:
    """Sets for {split: (rows of `files`, class name of each)}, decoded as requested.

    `tasks` has the class names of further tasks, one per file in `files`; `numbers` the
    labels of these files that are numbers.

    Each fingerprint is computed from the digests of the files' bytes, so it does not
    depend on their location or date, or on whether there is a cache.
    """
    lazily = request.once or request.lazily  # then the size is never a rule
    if lazily and request.size is not None and request.channels is not None:
        return _read_once(files, source, groups, request)
    learnt = groups["train"][0]
    request = request.sized(lambda: _sizes(files, request.channels, source))
    folder = _cache_folder(files, request, learnt) if request.cache else None
    entry = load_entry(folder) if folder else None
    if entry is None:
        entry = _decode_all(files, source, request, learnt, folder)
    if entry.bad and (request.on_bad_image == "fail" or not len(entry.images)):
        raise DataError(bad_message(files, entry.bad, source))
    good = [row for row in range(len(files.names)) if row not in entry.bad]
    place = {row: position for position, row in enumerate(good)}
    kept = {
        split: [(row, name) for row, name in zip(*group) if row in place]
        for split, group in groups.items()
    }
    entry = dataclasses.replace(entry, images=shown(entry.images, request))
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
        sets[split] = _image_set(
            entry,
            name=f"{source} [{split}]",
            rows=np.array([place[row] for row, _ in pairs], np.int64),
            ids=[spelling(files.names[row]) for row, _ in pairs],
            labels=labels[split],
            classes=classes,
            tasks=more.get(split, {}),
            numbers=numbers and numbers.rows(np.array([r for r, _ in pairs], np.int64)),
            skipped=tuple(
                BadImage(spelling(files.names[row]), printable(entry.bad[row]))
                for row in groups[split][0]
                if row in entry.bad
            ),
        )
    return Splits(**sets)


def _image_set(
    entry: Entry,
    *,
    name: str,
    rows: np.ndarray,
    ids: list[str],
    labels: np.ndarray | None,
    classes: tuple[str, ...] | None,
    tasks: Mapping[str, Labels],
    numbers: Numbers | None,
    skipped: tuple[BadImage, ...],
) -> ImageSet:
    """One split of the decoded images."""
    if not ids:
        raise DataError(f"{name}: no file can be read as an image")
    images = Selected(entry.images, rows)
    digests = [entry.digests[row] for row in rows]
    if entry.value_range:  # another range makes other images of the same bytes
        digests.append(repr(entry.value_range).encode())
    return ImageSet(
        images=images,
        labels=labels,
        ids=ids,
        class_names=classes,
        name=name,
        fingerprint=content_fingerprint(
            digests, labels, ids, images.shape, tasks, numbers
        ),
        tasks=tasks,
        numbers=numbers,
        value_range=entry.value_range,
        skipped=skipped,
    )


def _read_once(
    files: Files,
    source: str,
    groups: Mapping[str, tuple[Sequence[int], Sequence[str | None]]],
    request: Request,
) -> Splits:
    """Sets of images that are not opened yet; see `Once`."""
    height, width = request.size or (0, 0)
    value_range = None if request.value_range == "auto" else request.value_range
    shape = (height, width, request.channels or 0)
    images, sets = (
        Once(files, Decoder(shape, request.size, value_range), threads_for(files)),
        {},
    )
    given_names = {split: names for split, (_, names) in groups.items()}
    labels, classes = index_names(given_names)
    for split, (given, _) in groups.items():
        rows = np.asarray(given, np.int64)
        ids = [spelling(files.names[row]) for row in given]
        marks = [mark.encode() for mark in images.marks(rows)]
        sets[split] = ImageSet(
            images=Selected(images, rows),
            labels=labels[split],
            ids=ids,
            class_names=classes,
            name=f"{source} [{split}]",
            fingerprint=content_fingerprint(marks, None, ids, images.shape),
            value_range=value_range,
        )
    return Splits(**sets)


def read_or_reason(
    images: ImageSet, rows: Integer[np.ndarray, " b"]
) -> list[np.ndarray | str]:
    """The images at these positions, each an array, or the reason it is not one."""
    own = images.images
    if isinstance(own, Selected) and isinstance(own.source, Once):
        return own.source.read(own.rows[rows])
    return list(images.gather(rows))


def marks(images: ImageSet) -> list[str]:
    """A text for each image that changes when its file or its pixels change."""
    own = images.images
    if isinstance(own, Selected) and isinstance(own.source, Once):
        return own.source.marks(own.rows)
    return [
        hashlib.sha256(np.ascontiguousarray(images.gather([row])).data).hexdigest()
        for row in range(len(images))
    ]


def _cache_folder(
    files: Files, request: Request, learnt: Sequence[int]
) -> pathlib.Path:
    stamps = [[name, *files.stamp(row)] for row, name in enumerate(files.names)]
    # An automatic range depends on which images are in the training split.
    measured = list(learnt) if request.value_range == "auto" else None
    asked = [request.image_size, request.channels, request.value_range]
    asked += ["whole"] if request.whole else []
    key = json.dumps([asked, measured, stamps]).encode()
    return cache_dir() / "images" / hashlib.sha256(key).hexdigest()


def _decode_all(
    files: Files,
    source: str,
    request: Request,
    learnt: Sequence[int],
    folder: pathlib.Path | None,
) -> Entry:
    """One pass over the headers and one over the pixels, into the cache if any."""
    good, bad = headers(files, request.channels)
    if bad and (request.on_bad_image == "fail" or not good):
        raise DataError(bad_message(files, bad, source))
    if request.channels != 4:
        _say_alpha(files, good, source)
    _say_pages(files, good, source)
    size = request.size
    height, width = size or common_size(files, good, source)
    value_range = request.value_range
    if value_range == "auto":
        value_range = measured_range(
            files, {r: good[r] for r in learnt if r in good}, source
        )
    channels = request.channels or max(h.channels for h in good.values())
    decoder = Decoder((height, width, channels), size, value_range, whole=request.whole)

    def pixels(row: int) -> tuple[np.ndarray, bytes]:
        with budget.hold(costs[row]):
            data = read(files, row)
            return decoder(data), hashlib.sha256(data).digest()

    digests = []
    each = height * width * channels
    costs = {row: header.cost + files.size(row) + each for row, header in good.items()}
    with entry_writer(folder, len(good), decoder.stored) as writer:
        threads = threads_for(files)
        decoded = windows(
            or_reason(pixels), list(good), "decoding", each, threads=threads
        )
        for row, found in decoded:
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
    return Entry(lazy, digests, bad, value_range)


def headers(
    files: Files, channels: int | None, rows: Sequence[int] | None = None
) -> tuple[dict[int, Header], dict[int, str]]:
    """({row: its header}, {row: why it cannot be used as requested}).

    Of these rows; by default of all.
    """
    rows = range(len(files.names)) if rows is None else rows

    def header(row: int) -> Header:
        with opened(files, row) as file:
            found = read_header(file)
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

    found = dict(
        windows(or_reason(header), rows, "headers", threads=threads_for(files))
    )
    bad = {row: reason for row, reason in found.items() if isinstance(reason, str)}
    return {row: h for row, h in found.items() if row not in bad}, bad


def _sizes(files: Files, channels: int | None, source: str) -> Sizes:
    """The sizes of all usable images; DataError if there are none."""
    good, bad = headers(files, channels)
    if not good:
        raise DataError(bad_message(files, bad, source))
    return [(header.height, header.width) for header in good.values()]


def _say_alpha(files: Files, headers: Mapping[int, Header], source: str) -> None:
    """Warn of alpha in TIFFs: some programs mark any fourth band as transparency."""
    found = sum(
        (header.channels, header.samples) == (3, 4)
        and files.names[row].lower().endswith((".tif", ".tiff"))
        for row, header in headers.items()
    )
    if found:
        say_once(
            f"{source}: {found} TIFF files mark their fourth band as transparency. If "
            "it is something else, e.g. near-infrared, set channels=4 (--channels 4)"
        )


def _say_pages(files: Files, headers: Mapping[int, Header], source: str) -> None:
    """Warn of pages: microscopes, and tifffile by default, store bands as pages."""
    found = [row for row, header in headers.items() if header.pages > 1]
    if found:
        first = headers[found[0]]
        say_once(
            f"{source}: {len(found)} TIFF files have several pages, e.g. "
            f"{spelling(files.names[found[0]])}, each {first.height} pixels high and "
            f"{first.width} wide; {_FIRST_PAGE}"
        )


def measured_range(files: Files, found: Mapping[int, Header], source: str) -> Range:
    """The value range of the training images of more than 8 bits: see `range_of`."""
    wide = [row for row, header in found.items() if header.wide]
    if not wide:
        raise DataError(
            f"{source}: value_range='auto' (--value-range auto) applies to images of "
            "more than 8 bits, but all training images have 8. Leave it out"
        )
    chosen = wide[:: -(-len(wide) // _MEASURED)]

    def values(row: int) -> np.ndarray:
        with budget.hold(found[row].cost + files.size(row)):
            return some_values(read(files, row))

    threads = threads_for(files)
    parts = (
        v
        for _, v in windows(or_reason(values), chosen, "values", 2**20, threads=threads)
    )
    return range_of([v for v in parts if not isinstance(v, str)], source)


def common_size(
    files: Files, found: Mapping[int, Header], source: str
) -> tuple[int, int]:
    """The size that all images share; DataError if they have several."""
    sizes = {
        (h.height, h.width): spelling(files.names[row]) for row, h in found.items()
    }
    if len(sizes) > 1:
        small, large = min(sizes), max(sizes)
        raise DataError(
            f"{source}: images have {len(sizes)} different sizes, from "
            f"{small[0]}x{small[1]} ({sizes[small]}) to {large[0]}x{large[1]} "
            f"({sizes[large]}). Set the size to resize them to, e.g. --image-size 64"
        )
    (size,) = sizes
    return size


def bad_message(files: Files, bad: Mapping[int, str], source: str) -> str:
    """What an error says of files that are no images: the first ten, and the cure."""
    shown = [
        f"{spelling(files.names[row])}: {printable(bad[row])}"
        for row in sorted(bad)[:10]
    ]
    more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
    cure = (
        "Remove or repair them, or skip them with on_bad_image='skip' "
        "(--on-bad-image skip)"
    )
    return (
        f"{source}: {len(bad)} of {len(files.names)} files cannot be used:\n  "
        + "\n  ".join(shown)
        + f"{more}\n{cure}"
    )


_FORMAT = 1
_CHECKED_BYTES = 2**30  # in a larger entry, only evenly spaced images are checked


def load_entry(folder: pathlib.Path) -> Entry | None:
    """The entry at `folder`; None if there is none, or it is damaged."""
    try:
        index = schemas.parse(read_bytes(folder / "index.json"))
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        digests = [bytes.fromhex(text) for text in index["digests"]]
        bad = {int(row): str(reason) for row, reason in index["bad"]}
        value_range = None
        if index["value_range"] is not None:
            low, high = map(float, index["value_range"])
            value_range = (low, high)
        whole = (
            index["format"] == _FORMAT
            and images.dtype == np.uint8
            and images.ndim == 4
            and len(images) == len(digests)
            and index["checksum"] == _checksum(images)
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return Entry(images, digests, bad, value_range) if whole else None


def _checksum(images: np.ndarray) -> int:
    stride = max(1, -(-images.nbytes // _CHECKED_BYTES))
    value = zlib.crc32(repr(images.shape).encode())
    chunk = max(1, 2**24 // max(1, images[0].nbytes)) if len(images) else 1
    rows = range(0, len(images), stride)
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        block = images[part.start : part.stop : stride]
        value = zlib.crc32(np.ascontiguousarray(block).data, value)
    return value


class EntryWriter:
    """Writes an entry image by image; `commit` moves it into place.

    If the cache cannot be written, it prints a note and stops writing, and `commit`
    returns None.
    """

    def __init__(self, folder: pathlib.Path | None, most: int, shape: tuple[int, ...]):
        self._folder, self._shape, self._count = folder, shape, 0
        self._scratch: pathlib.Path | None = None
        self._file: io.BufferedIOBase | None = None
        if folder is None:
            return
        with self._or_without():
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._scratch = pathlib.Path(
                tempfile.mkdtemp(dir=folder.parent, prefix=".new-")
            )
            # Plain writes instead of a memory map: a full disk then raises OSError
            # instead of SIGBUS.
            self._file = (self._scratch / "images.npy").open("wb")
            self._header(self._file, most)

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            print(
                f"Decoded images are not cached: {error}. Set AFTERIMAGE_CACHE to a "
                "folder on a disk with free space.",
                file=sys.stderr,
            )
            self.close()

    def _header(self, file: io.BufferedIOBase, count: int) -> None:
        # NumPy pads the header, so a smaller count fits in the space of a larger one.
        np.lib.format.write_array_header_1_0(
            file,
            {"descr": "|u1", "fortran_order": False, "shape": (count, *self._shape)},
        )

    def add(self, image: np.ndarray) -> None:
        """Add the next image, uint8 in the entry's shape; RuntimeError for any other.

        Bytes of another shape would silently be cut into rows of the wrong width.
        """
        if image.dtype != np.uint8 or image.shape != self._shape:
            raise RuntimeError(
                f"a decoder returned {image.dtype} {image.shape} for a cache of uint8 "
                f"{self._shape}. This is a bug in Afterimage; please report it"
            )
        if self._file is not None:
            with self._or_without():
                self._file.write(np.ascontiguousarray(image).data)
                self._count += 1

    def commit(
        self,
        digests: list[bytes],
        bad: dict[int, str],
        value_range: Range | None = None,
    ) -> Entry | None:
        """Finish, rename into place unless another process was first; the entry."""
        if self._file is None or self._folder is None or self._scratch is None:
            return None
        with self._or_without():
            self._file.seek(0)
            self._header(self._file, self._count)
            self._file.close()
            images = np.load(self._scratch / "images.npy", mmap_mode="r")
            index = {
                "format": _FORMAT,
                "checksum": _checksum(images),
                "digests": [digest.hex() for digest in digests],
                "bad": sorted(bad.items()),
                "value_range": value_range,
            }
            (self._scratch / "index.json").write_text(json.dumps(index))
            if self._folder.exists() and load_entry(self._folder) is None:
                shutil.rmtree(self._folder, ignore_errors=True)
            try:
                self._scratch.rename(self._folder)
            except OSError:
                if not self._folder.is_dir():  # unless another process was first
                    raise
            return load_entry(self._folder)
        return None

    def close(self) -> None:
        """Remove what was not committed."""
        file, self._file = self._file, None
        if file is not None:
            # Closing flushes the buffer, which fails again on a full disk.
            with contextlib.suppress(OSError):
                file.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


@contextlib.contextmanager
def entry_writer(
    folder: pathlib.Path | None, most: int, shape: tuple[int, ...]
) -> Iterator[EntryWriter]:
    """An EntryWriter to `folder` (None: to nowhere); removes an unfinished entry."""
    made = EntryWriter(folder, most, shape)
    try:
        yield made
    finally:
        made.close()
