"""`zip:PATH[,PATH...]`: images in zip archives, read in place."""

import io
import os
import posixpath
import re
import stat
import zipfile
from collections.abc import Sequence

from afterimage.checkpoints.names import spelling
from afterimage.data.decode import is_image_name, is_metadata
from afterimage.data.sets import Request, Splits
from afterimage.data.sources import Source
from afterimage.data.sources.folder import nothing_found, open_tree, other_kinds
from afterimage.data.workers import check_size, reasons
from afterimage.errors import DataError
from afterimage.plugins import SOURCES
from afterimage.storage.bucket import open_bytes
from afterimage.storage.urls import is_remote

_BLOCK = 2**22  # bytes that are read at once from a bucket; members follow each other


@SOURCES.add("zip")
class ZipSource(Source):
    """Like `folder`, inside one or more zip archives read together, not extracted."""

    form = "PATH[,PATH...]"
    remote = True
    named_splits = True

    def open(self, rest: str, request: Request) -> Splits:
        return open_tree(Archives(rest), f"zip:{spelling(rest)}", request)


class Archives:
    """Every image in zip archives, read in place; rejects archives with unsafe members.

    `metadata` are the names of the label tables among them.
    """

    def __init__(self, paths: str):
        self._zips = [_open_zip(path) for path in archive_paths(paths)]
        several = len(self._zips) > 1
        members = {}
        self.others = other_kinds(n for _, z in self._zips for n in z.namelist())
        for path, archive in self._zips:
            for info in archive.infolist():
                name = _member_name(info)
                _check_member(path, info, name)
                if info.is_dir() or not (is_image_name(name) or is_metadata(name)):
                    continue
                name = posixpath.normpath(name)
                if name in members:
                    raise DataError(
                        f"zip:{spelling(paths)} contains {spelling(name)} twice"
                    )
                members[name] = (archive, info)
        self.names: Sequence[str] = sorted(filter(is_image_name, members))
        self.metadata: Sequence[str] = sorted(filter(is_metadata, members))
        self._members = members
        if not self.names:
            where = f"zip:{spelling(paths)}" + (" (all of them)" if several else "")
            raise DataError(nothing_found(where, self.others))

    def stamp(self, row: int) -> Sequence[int | str]:
        """The member's own checksum, which zipfile verifies on reading."""
        info = self._members[self.names[row]][1]
        return (info.file_size, info.CRC)

    def size(self, row: int) -> int:
        """The declared size: reading stops there; a shorter one fails its checksum."""
        return self._members[self.names[row]][1].file_size

    def open(self, row: int) -> io.BufferedIOBase:
        archive, info = self._members[self.names[row]]
        check_size(info.file_size, info.compress_size)
        if archive.filename is None:  # remote: read here, not inside a decoder
            return io.BytesIO(archive.read(info))
        return archive.open(info)

    def read_metadata(self, name: str) -> bytes:
        """The content of one of `metadata`; NotAnImage if it cannot be read."""
        archive, info = self._members[name]
        check_size(info.file_size, info.compress_size)
        with reasons():
            return archive.read(info)


def archive_paths(paths: str) -> list[str]:
    """The archives named by `A.zip,B.zip`; commas within file names are kept."""
    found, parts = [], paths.split(",")
    while parts:
        fits = (n for n in range(len(parts), 0, -1) if _is_file(",".join(parts[:n])))
        count = next(fits, 1)
        path = ",".join(parts[:count])
        found.append(path if _is_file(path) else path.strip())  # `A.zip, B.zip`
        parts = parts[count:]
    return [path for path in found if path]


def _is_file(path: str) -> bool:
    return is_remote(path) or os.path.isfile(os.path.expanduser(path))


def _open_zip(path: str) -> tuple[str, zipfile.ZipFile]:
    shown = spelling(path)
    if is_remote(path):
        return shown, _opened(shown, path)
    if not _is_file(path):
        folder = os.path.isdir(os.path.expanduser(path))
        what = f"it is a folder; use folder:{shown}" if folder else "it does not exist"
        raise DataError(f"zip:{shown}: {what}")
    return shown, _opened(shown, os.path.expanduser(path))


def _opened(shown: str, path: str) -> zipfile.ZipFile:
    try:
        remote = is_remote(path)
        return zipfile.ZipFile(open_bytes(path, block=_BLOCK) if remote else path)
    except FileNotFoundError as error:
        raise DataError(f"zip:{shown}: it does not exist") from error
    # A name marked as UTF-8 that is not raises ValueError.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"zip:{shown} is not a readable zip archive ({error})"
        ) from error


def _member_name(info: zipfile.ZipInfo) -> str:
    """A member's name, with `/` between its parts as in a folder.

    By the standard, a name without the UTF-8 flag is cp437, but Unix tools write the
    raw bytes of the file name.
    """
    name = info.orig_filename
    if not info.flag_bits & 0x800:
        raw = name.encode("cp437")
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            if info.create_system == 3:  # Unix
                name = raw.decode(errors="surrogateescape")
    return name.replace("\\", "/")


def _check_member(path: str, info: zipfile.ZipInfo, name: str) -> None:
    if stat.S_ISLNK(info.external_attr >> 16):
        problem = "is a symbolic link"
    elif name.startswith("/") or re.match(r"[A-Za-z]:", name):
        problem = "has an absolute path"
    elif ".." in name.split("/"):
        problem = "points outside the archive"
    elif "\0" in name:
        problem = "contains a NUL character"
    elif info.flag_bits & 1:
        problem = "is encrypted"
    else:
        return
    raise DataError(
        f"zip:{path}: the member {spelling(name)} {problem}, so the archive was not "
        "read. Pack plain image files under relative paths"
    )
