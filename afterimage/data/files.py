"""Where encoded images lie: a folder, archives, or any list of named bytes."""

import collections
import contextlib
import functools
import io
import os
import pathlib
import posixpath
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from afterimage.checkpoints.files import open_regular, read_bytes, reason
from afterimage.checkpoints.names import spelling
from afterimage.data.decode import MAX_BYTES, SUFFIXES, NotAnImage
from afterimage.data.near_miss import listing, near_miss
from afterimage.errors import DataError

METADATA = ("metadata.csv", "metadata.jsonl")
"""Tables of labels inside a folder of images, as Hugging Face's `imagefolder` reads."""

# Thumbnails, recycle bins and metadata of cameras, file systems and NAS boxes; names
# that begin with a dot are hidden anyway.
_NOT_OURS = {
    "@eadir",
    "@recycle",
    "@recently-snapshot",
    "@__thumb",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "recycler",
    "system volume information",
    "lost+found",
    "network trash folder",
    "temporary items",
    "__macosx",
    "thumbs.db",
    "desktop.ini",
}


@runtime_checkable
class Files(Protocol):
    """Encoded images by name, read from several threads at once."""

    @property
    def names(self) -> Sequence[str]:
        """One raw name an image, unique; the folders in it tell split and class."""
        ...

    def stamp(self, row: int) -> Sequence[int | str]:
        """What changes whenever the content does, from metadata alone."""
        ...

    def size(self, row: int) -> int:
        """Bytes of one image, as far as they are known without reading them."""
        ...

    def open(self, row: int) -> io.BufferedIOBase:
        """One image's bytes; NotAnImage if they are too many."""
        ...


@contextlib.contextmanager
def opened(files: Files, row: int) -> Iterator[Any]:
    """One image's bytes as a file; NotAnImage if they cannot be read."""
    with _reasons(), files.open(row) as file:
        yield file


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Errors of a disk or an archive become NotAnImage with the reason."""
    try:
        yield
    except OSError as error:
        raise NotAnImage(reason(error)) from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise NotAnImage(f"cannot be read: {error}") from error


def read(files: Files, row: int) -> bytes:
    """All bytes of one image; NotAnImage if they are too many or unreadable."""
    with opened(files, row) as file:
        # Without a number an archive's member is inflated whatever size it claims.
        return file.read(files.size(row) or -1)


def check_size(size: int, packed: int | None = None) -> None:
    """NotAnImage for more bytes than we read, and for zip bombs."""
    if size > MAX_BYTES:
        raise NotAnImage(f"more than {MAX_BYTES:,} bytes")
    if packed is not None and inflates_too_much(size, packed):
        raise NotAnImage(f"{packed:,} bytes that inflate to {size:,}")


def inflates_too_much(size: int, packed: int) -> bool:
    """Whether it is a bomb: over 64 MiB, and over a hundred times its packed size."""
    return size > 2**26 and size > 100 * packed


def is_image_name(name: str) -> bool:
    """A suffix of a known format, and nothing hidden on the way."""
    parts = name.split("/")
    return not any(map(_is_hidden, parts)) and _suffix(name) in SUFFIXES


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part.casefold() in _NOT_OURS


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _is_metadata(name: str) -> bool:
    return posixpath.basename(name) in METADATA and not any(
        map(_is_hidden, name.split("/"))
    )


class OnDisk:
    """Files by their paths from a folder on."""

    def __init__(self, root: pathlib.Path, names: Sequence[str]):
        self._root, self.names = root, names
        self._listing = functools.cache(listing)

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
    """Every image under a folder; links are followed, cycles are not.

    `metadata` are the names of tables of labels among them.
    """

    def __init__(self, path: str):
        root = pathlib.Path(os.path.expanduser(path))
        if not os.path.isdir(root):
            raise DataError(
                f"folder:{spelling(path)} is not a folder"
                + ("; it is a file" if os.path.exists(root) else "; it does not exist")
            )
        everything = sorted(_walk(root))
        super().__init__(root, list(filter(is_image_name, everything)))
        self.metadata = list(filter(_is_metadata, everything))
        self.others = other_kinds(everything)
        if not self.names:
            raise DataError(_nothing(f"folder:{spelling(path)}", self.others))

    def read_metadata(self, name: str) -> bytes:
        """The content of one of `metadata`; NotAnImage if it cannot be read."""
        with _reasons():
            return read_bytes(os.path.join(self._root, name), MAX_BYTES)


def _walk(root: pathlib.Path) -> Iterator[str]:
    """Every file below, by its path from there; DataError for an unreadable folder."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_unreadable):
        where = os.stat(folder)
        if (where.st_dev, where.st_ino) in seen:
            folders.clear()
            continue
        seen.add((where.st_dev, where.st_ino))
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in names:
            yield pathlib.Path(folder, name).relative_to(root).as_posix()


def _unreadable(error: OSError) -> None:
    name = str(error.filename)
    shown = name if len(name) < 300 else f"{name[:100]} … {name[-100:]}"
    raise DataError(
        f"the folder {spelling(shown)} cannot be read ({error.strerror}); without its "
        "images the data would be incomplete. Make it readable, or move it away"
    ) from error


class Archives:
    """Every image in zip archives, read in place; unsafe members refuse the archive.

    `metadata` are the names of tables of labels among them.
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
                if info.is_dir() or not (is_image_name(name) or _is_metadata(name)):
                    continue
                name = posixpath.normpath(name)
                if name in members:
                    raise DataError(
                        f"zip:{spelling(paths)}: {spelling(name)} is in it twice"
                    )
                members[name] = (archive, info)
        self.names = sorted(filter(is_image_name, members))
        self.metadata = sorted(filter(_is_metadata, members))
        self._members = members
        if not self.names:
            where = f"zip:{spelling(paths)}" + (" (all of them)" if several else "")
            raise DataError(_nothing(where, self.others))

    def stamp(self, row: int) -> Sequence[int | str]:
        """The member's own checksum, which zipfile verifies on reading."""
        info = self._members[self.names[row]][1]
        return (info.file_size, info.CRC)

    def size(self, row: int) -> int:
        """As declared: more is not inflated, and less fails its checksum."""
        return self._members[self.names[row]][1].file_size

    def open(self, row: int) -> io.BufferedIOBase:
        archive, info = self._members[self.names[row]]
        check_size(info.file_size, info.compress_size)
        return archive.open(info)

    def read_metadata(self, name: str) -> bytes:
        """The content of one of `metadata`; NotAnImage if it cannot be read."""
        archive, info = self._members[name]
        check_size(info.file_size, info.compress_size)
        with _reasons():
            return archive.read(info)


def archive_paths(paths: str) -> list[str]:
    """The archives that `A.zip,B.zip` names; a comma in a file's own name is kept."""
    found, parts = [], paths.split(",")
    while parts:
        fits = (n for n in range(len(parts), 0, -1) if _is_file(",".join(parts[:n])))
        count = next(fits, 1)
        path = ",".join(parts[:count])
        found.append(path if _is_file(path) else path.strip())  # `A.zip, B.zip`
        parts = parts[count:]
    return [path for path in found if path]


def _is_file(path: str) -> bool:
    return os.path.isfile(os.path.expanduser(path))


def _open_zip(path: str) -> tuple[str, zipfile.ZipFile]:
    shown = spelling(path)
    if not _is_file(path):
        folder = os.path.isdir(os.path.expanduser(path))
        what = f"it is a folder, folder:{shown}" if folder else "there is no such file"
        raise DataError(f"zip:{shown}: {what}")
    try:
        return shown, zipfile.ZipFile(os.path.expanduser(path))
    # A name that is marked as UTF-8 and is not gives a ValueError.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"zip:{shown} is not a readable zip archive ({error})"
        ) from error


def _member_name(info: zipfile.ZipInfo) -> str:
    """A member's name with `/` between its parts, as its folder would have it.

    Without the flag for UTF-8 a name is cp437 by the standard; tools on Unix write the
    bytes of the file's name.
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
        problem = "leads out of the archive"
    elif "\0" in name:
        problem = "has a NUL in its name"
    elif info.flag_bits & 1:
        problem = "is encrypted"
    else:
        return
    raise DataError(
        f"zip:{path}: member {spelling(name)} {problem}; the archive is refused. Pack "
        "plain image files under relative paths"
    )


def other_kinds(names: Iterable[str]) -> Mapping[str, int]:
    """{suffix: number of files} of those that by name are neither images nor labels."""
    found = collections.Counter(
        spelling(_suffix(name)) or "without suffix"
        for name in names
        if not name.endswith("/")
        and not is_image_name(name)
        and not _is_metadata(name)
        and not any(map(_is_hidden, name.split("/")))
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
