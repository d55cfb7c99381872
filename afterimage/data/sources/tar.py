"""`tar:PATTERN`: images in tar files, such as WebDataset's shards, read in place.

The members of one image lie together and share the name before the first dot of their
file name: `0001.jpg`, `0001.cls`, `0001.json`.
https://github.com/webdataset/webdataset
"""

import hashlib
import posixpath
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from afterimage.checkpoints import schemas
from afterimage.checkpoints.files import reason
from afterimage.checkpoints.names import class_name, spelling
from afterimage.console import ProgressBar
from afterimage.data.decode import SUFFIXES, is_hidden, suffix_of
from afterimage.data.index import IndexWriter, kept
from afterimage.data.ranged import Shards
from afterimage.data.shards import (
    FOLDER,
    ShardFiles,
    ShardSource,
    column_for,
    sample_digest,
)
from afterimage.data.table import cell_text
from afterimage.data.tar import BadTar, Member, Window, members
from afterimage.errors import DataError
from afterimage.plugins import SOURCES

_LABEL, _FIELDS = "cls", "json"
_LONGEST = {_LABEL: 2**12, _FIELDS: 2**20}
"""Bytes of the largest label, and of the largest JSON, that are read."""


@SOURCES.add("tar")
class TarSource(ShardSource):
    """Images in tar files, such as WebDataset's shards, read in place.

    A file, a folder of them, or a pattern such as `shard-{000..099}.tar`. Labels are
    the members .cls or .json (field `label`) beside each image, otherwise its folder.
    """

    suffix = ".tar"

    def files(self, shards: Shards, columns: list[str]) -> ShardFiles:
        def build(writer: IndexWriter) -> None:
            doing = f"indexing {shards.source}"
            with ProgressBar(len(shards.paths), doing, "files") as bar:
                for number, name in enumerate(shards.names):
                    try:
                        _add_shard(writer, Window(shards.open(number)), columns)
                    except (BadTar, OSError) as error:
                        why = reason(error)
                        raise DataError(f"tar:{spelling(name)}: {why}") from error
                    bar.add(1)

        key = ["tar", list(zip(shards.paths, shards.stamps)), columns]
        index = kept(key, build, lambda index: sample_digest(index, shards.open))
        return ShardFiles(index, shards.names, shards.open, shards.threads)


class _Part(NamedTuple):
    """A member of a group; the text of a label or of JSON."""

    name: str
    start: int
    size: int
    text: str


def _add_shard(writer: IndexWriter, window: Window, columns: Sequence[str]) -> None:
    """Add the images of one file, in its order."""
    keys = array("Q")
    for key, own in _samples(writer, window):
        image = _image_of(key, own)
        if image is None:
            for suffix in own:
                writer.ignore(f".{suffix}")
            continue
        values = {FOLDER: posixpath.dirname(key)}
        if _LABEL in own:
            values["label"] = own[_LABEL].text.strip()
        if _FIELDS in own:
            values = _fields(own[_FIELDS], columns) | values
        writer.add(image.name, image.start, image.size, values)
        raw = key.encode("utf-8", "surrogateescape")
        keys.append(int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest()))
    writer.end_shard()
    found = np.frombuffer(keys, np.uint64)
    if len(np.unique(found)) < len(found):
        values, counts = np.unique(found, return_counts=True)
        first = np.flatnonzero(found == values[counts > 1][0])[0]
        raise BadTar(
            f"the image {first + 1:,} of the file has a name that comes again later. "
            "All members of one image must lie together: pack them with tar "
            "--sort=name, each name once"
        )


def _samples(
    writer: IndexWriter, window: Window
) -> Iterator[tuple[str, dict[str, _Part]]]:
    """(key, {suffix: member}) of each group of members that lie together."""
    key, own = None, dict[str, _Part]()
    for member in members(window):
        name = _clean(member.name)
        folder, base = posixpath.split(name)
        if any(map(is_hidden, name.split("/"))):
            continue
        stem, _, suffix = base.partition(".")
        suffix = suffix.lower()
        image = suffix_of(base) in SUFFIXES
        if not image and suffix not in _LONGEST:
            writer.ignore(suffix_of(base) or "without suffix")
            continue
        if member.problem:
            raise BadTar(
                f"the member {spelling(name)} is {member.problem}, so the file was not "
                "read. Pack plain files (tar --dereference --hard-dereference)"
            )
        if (found := posixpath.join(folder, stem)) != key:
            if key is not None:
                yield key, own
            key, own = found, {}
        if suffix in own:
            raise BadTar(f"it contains {spelling(name)} twice")
        text = _read(window, member, suffix) if suffix in _LONGEST else ""
        own[suffix] = _Part(name, member.start, member.size, text)
    if key is not None:
        yield key, own


def _clean(name: str) -> str:
    """A member's path; BadTar for one that leads out of the archive."""
    if name.startswith("/") or ".." in name.split("/"):
        raise BadTar(
            f"the member {spelling(name)} points outside the archive, so the file was "
            "not read. Pack files under relative paths"
        )
    return posixpath.normpath(name)


def _image_of(key: str, own: Mapping[str, _Part]) -> _Part | None:
    """The image among the members of a group: `.jpg` before `.mask.jpg`."""
    images = [suffix for suffix in own if f".{suffix.rpartition('.')[2]}" in SUFFIXES]
    plain = [suffix for suffix in images if "." not in suffix] or images
    if len(plain) > 1:
        raise BadTar(
            f"{spelling(key)} has {len(plain)} images: {', '.join(sorted(plain))}. "
            "Members that share the name before the first dot of their file name are "
            "one image and its labels; give each image its own name"
        )
    return own[plain[0]] if plain else None


def _read(window: Window, member: Member, kind: str) -> str:
    if member.size > _LONGEST[kind]:
        raise BadTar(
            f"{spelling(member.name)} has {member.size:,} bytes; expected at most "
            f"{_LONGEST[kind]:,}"
        )
    data = window.read(member.start, member.size)
    return data.decode("utf-8", "surrogateescape")


def _fields(part: _Part, columns: Sequence[str]) -> dict[str, str]:
    """The label, and further columns, in an image's JSON."""
    try:
        row = schemas.parse(part.text)
    except ValueError as error:
        raise BadTar(f"{spelling(part.name)} {error}") from error
    if not isinstance(row, dict):
        raise BadTar(f"{spelling(part.name)} is not a JSON object, {{…}}")
    row = {class_name(name.strip()): value for name, value in row.items()}
    found = {name: cell_text(row[name]) for name in columns if name in row}
    label = column_for("label", [name for name in row if name not in columns])
    return found | ({} if label is None else {"label": cell_text(row[label])})
