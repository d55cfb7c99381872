"""`folder:PATH`: images under a folder, with classes named by its subfolders."""

import collections
import functools
import io
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from afterimage.checkpoints.files import open_regular, read_bytes
from afterimage.checkpoints.names import spelling
from afterimage.console import say_once
from afterimage.data.decode import (
    SUFFIXES,
    is_hidden,
    is_image_name,
    is_metadata,
    suffix_of,
)
from afterimage.data.images import image_sets
from afterimage.data.layout import layout
from afterimage.data.pixels import MAX_BYTES, NotAnImage
from afterimage.data.remote import RemoteFolder
from afterimage.data.sets import Request, Splits
from afterimage.data.sources import Source
from afterimage.data.table import listing, near_miss, with_metadata
from afterimage.data.workers import FileTree, check_size, reasons
from afterimage.errors import DataError
from afterimage.plugins import SOURCES
from afterimage.storage.urls import is_remote


class OnDisk:
    """Files by their paths relative to a folder."""

    def __init__(self, root: pathlib.Path, names: Sequence[str]):
        self._root = root
        self.names: Sequence[str] = names
        self._listing = functools.cache(listing)

    def stamp(self, row: int) -> Sequence[int | str]:
        """Size and both times: a file replaced under an old date has a new ctime."""
        try:
            found = (self._root / self.names[row]).stat()
        except OSError as error:  # a broken link: reading it will report it
            return (str(error.errno),)
        return (found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def size(self, row: int) -> int:
        try:
            return (self._root / self.names[row]).stat().st_size
        except OSError:
            return 0

    def open(self, row: int) -> io.BufferedIOBase:
        path = os.path.join(self._root, self.names[row])
        try:
            file = open_regular(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            if os.path.islink(path):
                raise NotAnImage("a broken link: its target is missing") from error
            near = near_miss(str(self._root), self.names[row], self._listing)
            hint = f"; did you mean {spelling(near)}?" if near else ""
            raise NotAnImage(f"is missing{hint}") from error
        try:
            check_size(os.fstat(file.fileno()).st_size)
        except NotAnImage:
            file.close()
            raise
        return file


class Folder(OnDisk):
    """Every image under a folder; follows links, except in cycles.

    `metadata` are the names of the label tables among them.
    """

    def __init__(self, path: str):
        root = pathlib.Path(os.path.expanduser(path))
        if not os.path.isdir(root):
            raise DataError(
                f"folder:{spelling(path)} is not a folder"
                + ("; it is a file" if os.path.exists(root) else "; it does not exist")
            )
        everything = sorted(walk(root))
        super().__init__(root, list(filter(is_image_name, everything)))
        self.metadata: Sequence[str] = list(filter(is_metadata, everything))
        self.others = other_kinds(everything)
        if not self.names:
            raise DataError(nothing_found(f"folder:{spelling(path)}", self.others))

    def read_metadata(self, name: str) -> bytes:
        """The content of one of `metadata`; NotAnImage if it cannot be read."""
        with reasons():
            return read_bytes(os.path.join(self._root, name), MAX_BYTES)


def walk(root: pathlib.Path) -> Iterator[str]:
    """Every file below, by its relative path; DataError for an unreadable folder."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_unreadable):
        where = os.stat(folder)
        if (where.st_dev, where.st_ino) in seen:
            folders.clear()
            continue
        seen.add((where.st_dev, where.st_ino))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in names:
            yield pathlib.Path(folder, name).relative_to(root).as_posix()


def _unreadable(error: OSError) -> None:
    name = str(error.filename)
    shown = name if len(name) < 300 else f"{name[:100]} … {name[-100:]}"
    raise DataError(
        f"the folder {spelling(shown)} cannot be read ({error.strerror}), so the data "
        "would be incomplete. Make it readable, or move it away"
    ) from error


def other_kinds(names: Iterable[str]) -> Mapping[str, int]:
    """{suffix: number of files}, for names that are neither images nor label tables."""
    found = collections.Counter(
        spelling(suffix_of(name)) or "without suffix"
        for name in names
        if not name.endswith("/")
        and not is_image_name(name)
        and not is_metadata(name)
        and not any(map(is_hidden, name.split("/")))
    )
    return dict(found.most_common())


def listed_kinds(kinds: Mapping[str, int]) -> str:
    """Text such as "3 .heic, 1 .txt", for the first eight kinds."""
    shown = [f"{count} {suffix}" for suffix, count in list(kinds.items())[:8]]
    return ", ".join(shown) + (", and others" if len(kinds) > 8 else "")


def nothing_found(where: str, others: Mapping[str, int]) -> str:
    """The message for a folder or archive without images; `others` counts suffixes."""
    found = f" (only {listed_kinds(others)})" if others else ""
    for kind in ("tar", "parquet"):
        if f".{kind}" in others:
            place = where.partition(":")[2]
            found += f". For the .{kind} files, give {kind}:{place}"
    return (
        f"{where} contains no images{found}; expected {' '.join(sorted(SUFFIXES))}, "
        "directly, in one subfolder per class, or in train/, validation/, test/ "
        "above those"
    )


@SOURCES.add("folder")
class FolderSource(Source):
    """Images under a folder: flat, one subfolder per class, or splits above those.

    A `metadata.csv` or `.jsonl` among them gives their labels.
    """

    form = "PATH"
    remote = True
    named_splits = True

    def open(self, rest: str, request: Request) -> Splits:
        files = RemoteFolder(rest) if is_remote(rest) else Folder(rest)
        return open_tree(files, f"folder:{spelling(rest)}", request)


def open_tree(files: FileTree, source: str, request: Request) -> Splits:
    """The splits of images whose folders or label tables give the classes."""
    if files.others:
        kinds = listed_kinds(files.others)
        say_once(f"{source}: other files are ignored: {kinds}")
    reading = request.reading
    if request.once:
        every = range(len(files.names))
        groups = {"train": (every, [None] * len(every))}
        return image_sets(files, source, groups, request)
    groups = layout(files.names, source, reading.split_folders, strict=request.strict)
    # Images excluded by the options are not opened at all.
    used = sorted(row for rows, _ in groups.values() for row in rows)
    place = {row: number for number, row in enumerate(used)}
    unused = {name for row, name in enumerate(files.names) if row not in place}
    files.names = [files.names[row] for row in used]
    groups = {s: ([place[row] for row in rows], c) for s, (rows, c) in groups.items()}
    if files.metadata:
        groups = with_metadata(files, source, groups, reading, unused)
    return image_sets(files, source, groups, request)
