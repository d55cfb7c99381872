"""Where Afterimage keeps what it can make or fetch again."""

import os
import pathlib
import tempfile

from afterimage.errors import UserError
from afterimage.storage.urls import scheme_of


def cache_dir() -> pathlib.Path:
    """The cache folder: $AFTERIMAGE_CACHE, else the user's, else a temporary folder.

    Raises UserError for a bucket: the pixels in it are mapped into memory.
    """
    if explicit := os.environ.get("AFTERIMAGE_CACHE"):
        if scheme_of(explicit):
            raise UserError(
                f"AFTERIMAGE_CACHE={explicit}: the cache must be a folder of this "
                "machine, as its files are mapped into memory. Data and runs may be in "
                "a bucket; what they need is kept in the cache"
            )
        return pathlib.Path(explicit)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return pathlib.Path(base) / "afterimage"
    try:
        return pathlib.Path.home() / ".cache" / "afterimage"
    except RuntimeError:  # a user without a home, as in many containers
        return pathlib.Path(tempfile.gettempdir()) / f"afterimage-{os.getuid()}"
