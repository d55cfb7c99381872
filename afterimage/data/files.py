"""Where encoded images lie: a folder, archives, or any list of named bytes."""

import collections
import contextlib
import io
import os
import pathlib
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from afterimage.data.decode import MAX_BYTES, SUFFIXES, NotAnImage
from afterimage.errors import DataError


@runtime_checkable
class Files(Protocol):
    """Encoded images by name, read from several threads at once."""

    @property
    def names(self) -> Sequence[str]:
        """One name an image, unique; the folders in it tell split and class."""
        ...

    def stamp(self, row: int) -> Sequence[int | str]:
        """What changes whenever the content does, from metadata alone."""
        ...

    def size(self, row: int) -> int:
        """Bytes of one image, as far as they are known without reading them."""
        ...

    def open(self, row: int) -> io.BufferedIOBase:
        """One image's bytes, which end: NotAnImage where they are too many."""
        ...


@contextlib.contextmanager
def opened(files: Files, row: int) -> Iterator[Any]:
    """One image's bytes as a file; NotAnImage where they cannot be had."""
    try:
        with files.open(row) as file:
            yield file
    except NotAnImage:
        raise
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise NotAnImage(f"cannot be read ({error})") from error


def read(files: Files, row: int) -> bytes:
    """All bytes of one image; NotAnImage where they are too many or unreadable."""
    with opened(files, row) as file:
        # Without a number an archive's member is inflated whatever size it claims.
        return file.read(files.size(row) or -1)


def check_size(size: int, packed: int | None = None) -> None:
    """NotAnImage where encoded bytes are too many to be read, or are a bomb's."""
    if size > MAX_BYTES:
        raise NotAnImage(f"more than {MAX_BYTES:,} bytes")
    if packed is not None and inflates_too_much(size, packed):
        raise NotAnImage(f"{packed:,} bytes that inflate to {size:,}")


def inflates_too_much(size: int, packed: int) -> bool:
    """Whether no data worth keeping does: beyond 64 MiB, to over a hundred times."""
    return size > 2**26 and size > 100 * packed


def is_image_name(name: str) -> bool:
    """A suffix of a known format, and nothing hidden on the way."""
    path = pathlib.PurePosixPath(name)
    return not _is_hidden(path) and path.suffix.lower() in SUFFIXES


def _is_hidden(path: pathlib.PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


class OnDisk:
    """Files by their paths from a folder on."""

    def __init__(self, root: pathlib.Path, names: Sequence[str]):
        self._root, self.names = root, names

    def stamp(self, row: int) -> Sequence[int | str]:
        """Size and both times: a file replaced under an old date has a new ctime."""
        try:
            found = (self._root / self.names[row]).stat()
        except OSError as error:  # a broken link: reading it will say so
            return (str(error.errno),)
        return (found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def size(self, row: int) -> int:
        try:
            return (self._root / self.names[row]).stat().st_size
        except OSError:
            return 0

    def open(self, row: int) -> io.BufferedIOBase:
        path = os.path.join(self._root, self.names[row])
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # a device or a pipe, say, without an end
            raise NotAnImage("not a regular file")
        check_size(found.st_size)
        return open(path, "rb")


class Folder(OnDisk):
    """Every image under a folder; links are followed, cycles are not."""

    def __init__(self, path: str):
        root = pathlib.Path(path).expanduser()
        if not root.is_dir():
            raise DataError(
                f"folder:{path} is not a folder"
                + ("; it is a file" if root.exists() else "; it does not exist")
            )
        names = list(_walk(root))
        super().__init__(root, sorted(filter(is_image_name, names)))
        self.others = other_kinds(names)
        if not self.names:
            raise DataError(_nothing(f"folder:{path}", self.others))


def _walk(root: pathlib.Path) -> Iterator[str]:
    """Every file below, by its path from there."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        where = os.stat(folder)
        if (where.st_dev, where.st_ino) in seen:
            folders.clear()
            continue
        seen.add((where.st_dev, where.st_ino))
        folders.sort()
        for name in names:
            yield pathlib.Path(folder, name).relative_to(root).as_posix()


class Archives:
    """Every image in zip archives, read in place; unsafe members refuse the archive."""

    def __init__(self, paths: str):
        self._zips = [_open_zip(path) for path in paths.split(",") if path]
        several = len(self._zips) > 1
        members = {}
        self.others = other_kinds(n for _, z in self._zips for n in z.namelist())
        for path, archive in self._zips:
            for info in archive.infolist():
                _check_member(path, info)
                if info.is_dir() or not is_image_name(info.filename):
                    continue
                name = info.filename
                if name in members:
                    raise DataError(f"zip:{paths}: {name} is there twice")
                members[name] = (archive, info)
        self.names = sorted(members)
        self._members = [members[name] for name in self.names]
        if not self.names:
            where = f"zip:{paths}" + (" (all of them)" if several else "")
            raise DataError(_nothing(where, self.others))

    def stamp(self, row: int) -> Sequence[int | str]:
        """The member's own checksum, which zipfile verifies on reading."""
        info = self._members[row][1]
        return (info.file_size, info.CRC)

    def size(self, row: int) -> int:
        """As declared: more is not inflated, and less fails its checksum."""
        return self._members[row][1].file_size

    def open(self, row: int) -> io.BufferedIOBase:
        archive, info = self._members[row]
        check_size(info.file_size, info.compress_size)
        return archive.open(info)


def _open_zip(path: str) -> tuple[str, zipfile.ZipFile]:
    where = pathlib.Path(path).expanduser()
    if not where.is_file():
        raise DataError(f"zip:{path}: there is no such file")
    try:
        return path, zipfile.ZipFile(where)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"zip:{path} is not a readable zip archive ({error})"
        ) from error


def _check_member(path: str, info: zipfile.ZipInfo) -> None:
    name = info.orig_filename
    parts = re.split(r"[/\\]", name)
    if stat.S_ISLNK(info.external_attr >> 16):
        problem = "is a symbolic link"
    elif name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        problem = "has an absolute path"
    elif ".." in parts:
        problem = "leads out of the archive"
    elif info.flag_bits & 1:
        problem = "is encrypted"
    else:
        return
    raise DataError(
        f"zip:{path}: member {name!r} {problem}; the archive is refused. Pack plain "
        "image files under relative paths"
    )


def other_kinds(names: Iterable[str]) -> Mapping[str, int]:
    """{suffix: how many files that are no images by their name}, most first."""
    paths = map(pathlib.PurePosixPath, (n for n in names if not n.endswith("/")))
    found = collections.Counter(
        path.suffix.lower() or "without suffix"
        for path in paths
        if not is_image_name(str(path)) and not _is_hidden(path)
    )
    return dict(found.most_common())


def listed_kinds(kinds: Mapping[str, int]) -> str:
    """ "3 .heic, 1 .txt", the first eight."""
    shown = [f"{count} {suffix}" for suffix, count in list(kinds.items())[:8]]
    return ", ".join(shown) + (", and others" if len(kinds) > 8 else "")


def _nothing(where: str, others: Mapping[str, int]) -> str:
    found = f" (found only {listed_kinds(others)})" if others else ""
    return (
        f"{where} holds no images{found}; looked for {' '.join(sorted(SUFFIXES))}, "
        "flat, in one subfolder a class, or in train/, validation/, test/ above those"
    )
