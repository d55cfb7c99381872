"""Buckets: `s3://` and `gs://` where a path is expected, over fsspec.

Only objects are assumed: whole writes, ranged reads, a listing of a prefix, and no
renaming. Whatever is written in several objects is committed by its manifest, last.
"""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage.storage.bucket import Bucket as Bucket
    from afterimage.storage.bucket import open_bytes as open_bytes
    from afterimage.storage.faults import RemoteError as RemoteError
    from afterimage.storage.urls import is_remote as is_remote


__getattr__, __dir__ = exports(__name__, __file__)
