"""Where encoded images lie: a folder, archives, or any list of named bytes."""

import contextlib
import io
import os
import pathlib
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
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
        # Told a number, Python would first make room for as many bytes.
        return file.read()


def check_size(size: int) -> None:
    """NotAnImage where encoded bytes are too many to be read."""
    if size > MAX_BYTES:
        raise NotAnImage(f"more than {MAX_BYTES:,} bytes")


def is_image_name(name: str) -> bool:
    """A suffix of a known format, and nothing hidden on the way."""
    parts = pathlib.PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and pathlib.PurePosixPath(name).suffix.lower() in SUFFIXES


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
        super().__init__(root, sorted(filter(is_image_name, _walk(root))))
        if not self.names:
            raise DataError(_nothing(f"folder:{path}", _walk(root)))


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
            everything = (n for _, z in self._zips for n in z.namelist())
            raise DataError(_nothing(where, everything))

    def stamp(self, row: int) -> Sequence[int | str]:
        """The member's own checksum, which zipfile verifies on reading."""
        info = self._members[row][1]
        return (info.file_size, info.CRC)

    def open(self, row: int) -> io.BufferedIOBase:
        archive, info = self._members[row]
        check_size(info.file_size)
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


def _nothing(where: str, names: Iterator[str]) -> str:
    suffixes = {pathlib.PurePosixPath(name).suffix.lower() for name in names} - {""}
    found = f" (found only {', '.join(sorted(suffixes)[:8])})" if suffixes else ""
    return (
        f"{where} holds no images{found}; looked for {' '.join(sorted(SUFFIXES))}, "
        "flat, in one subfolder a class, or in train/, validation/, test/ above those"
    )
