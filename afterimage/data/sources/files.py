"""`files:PATTERN`: image files by name, or all that match a pattern."""

import glob
import os
import pathlib
from collections.abc import Iterator

from afterimage.checkpoints.names import spelling
from afterimage.console import say_once
from afterimage.data.decode import SUFFIXES, suffix_of
from afterimage.data.images import image_sets
from afterimage.data.sets import Request, Splits
from afterimage.data.sources import Source
from afterimage.data.sources.folder import OnDisk
from afterimage.errors import DataError
from afterimage.plugins import SOURCES

_SHOWN = 3  # names in the name of the data


@SOURCES.add("files")
class FilesSource(Source):
    """Image files by name, or all that match a pattern such as photos/2024-*.jpg.

    Several names or patterns are separated by newlines. `*`, `?` and `[…]` match within
    a name, and `**/` any folders. None of the images has a label.
    """

    form = "PATTERN"

    def open(self, rest: str, request: Request) -> Splits:
        parts = [part for part in rest.split("\n") if part]
        names = sorted({name for part in parts for name in _matches(part)})
        if not names:
            raise DataError(
                f"files:{spelling(rest)}: no image matches; looked for "
                f"{' '.join(sorted(SUFFIXES))}"
            )
        more = f" and {len(parts) - _SHOWN:,} more" if len(parts) > _SHOWN else ""
        source = f"files:{spelling(' '.join(parts[:_SHOWN]))}{more}"
        groups = {"train": (range(len(names)), [None] * len(names))}
        return image_sets(OnDisk(pathlib.Path(), names), source, groups, request)


def _matches(part: str) -> Iterator[str]:
    """The images named by a path or a pattern; a file's own name comes first."""
    place = os.path.expanduser(part)
    if os.path.isfile(place):
        yield place
        return
    found = [p for p in glob.iglob(place, recursive=True) if os.path.isfile(p)]
    images = [path for path in found if suffix_of(path) in SUFFIXES]
    if len(images) < len(found):
        ignored = f"{len(found) - len(images):,} other files are ignored"
        say_once(f"files:{spelling(part)}: {ignored}")
    yield from images
