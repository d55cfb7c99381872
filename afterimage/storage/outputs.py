"""Files of results in a bucket: written here, and uploaded when they are complete."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from afterimage.cache import cache_dir
from afterimage.checkpoints import manifest
from afterimage.console import say_doing
from afterimage.errors import UserError
from afterimage.storage.bucket import Bucket
from afterimage.storage.faults import RemoteError
from afterimage.storage.urls import as_text, is_remote, name_of, parent_of

SKIPPED = ".skipped.txt"
"""Ends the name of the list of broken images beside a file of rows."""
Result = TypeVar("Result")


@contextlib.contextmanager
def here(out: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """The path of this machine at which to write the file or folder `out`.

    A path stays what it is. For a URL it is in the cache folder; on leaving without an
    error, it and what was written beside it are uploaded, a manifest last, and deleted
    here. Otherwise they stay, so that a command that continues finds them. Raises
    RemoteError, before anything is done if the bucket cannot be listed, and UserError
    for a bucket without a name in it.
    """
    if not is_remote(out):
        yield pathlib.Path(out)
        return
    url = as_text(out)
    if url.count("/") < 3:
        raise UserError(f"out={url}: this is a bucket; give the name of a file in it")
    bucket, name = Bucket(parent_of(url)), name_of(url)
    bucket.entries(name)
    mark = hashlib.sha256(url.encode()).hexdigest()[:16]
    home = cache_dir() / "remote" / f"{mark}-out"
    home.mkdir(parents=True, exist_ok=True)
    yield home / name
    say_doing(f"Uploading {url}")
    try:
        _upload(bucket, home)
        if not (home / f"{name}{SKIPPED}").exists():
            bucket.delete([f"{name}{SKIPPED}"])  # of an earlier command
    except RemoteError as error:
        text = f"{error} Complete, but not uploaded: {home / name}"
        raise RemoteError(text, error.kind) from error
    shutil.rmtree(home, ignore_errors=True)


def _upload(bucket: Bucket, home: pathlib.Path) -> None:
    """Uploads all files but hidden ones, and manifests after the others."""
    files = [
        place
        for place in sorted(home.rglob("*"))
        if place.is_file()
        and not any(part.startswith(".") for part in place.relative_to(home).parts)
    ]
    for place in sorted(files, key=lambda file: file.name == manifest.NAME):
        bucket.upload(place, place.relative_to(home).as_posix())


def uploads(function: Callable[[Any], Result]) -> Callable[[Any], Result]:
    """Lets the fields in UPLOADED of a function's settings be URLs, by `here`.

    Paths in the result, a dataclass, become the URLs again.
    """

    @functools.wraps(function)
    def run(config: Any) -> Result:
        urls: dict[pathlib.Path, str] = {}
        with contextlib.ExitStack() as stack:

            def local(place: Any) -> Any:
                if isinstance(place, tuple | list):
                    return tuple(map(local, place))
                if not is_remote(place):
                    return place
                path = stack.enter_context(here(place))
                urls[path.parent] = parent_of(as_text(place))
                return str(path)

            changed = {name: local(getattr(config, name)) for name in config.UPLOADED}
            if not urls:
                return function(config)
            result = function(dataclasses.replace(config, **changed))
        return _named(result, urls)

    return run


def _named(result: Any, urls: dict[pathlib.Path, str]) -> Any:
    """A result with URLs for paths below the keys of `urls`."""

    def name(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(name, value))
        url = urls.get(value.parent) if isinstance(value, pathlib.Path) else None
        return value if url is None else f"{url}/{value.name}"

    if not dataclasses.is_dataclass(result) or isinstance(result, type):
        return result
    found = {one.name: getattr(result, one.name) for one in dataclasses.fields(result)}
    paths = {k: v for k, v in found.items() if isinstance(v, pathlib.Path | tuple)}
    return dataclasses.replace(result, **{k: name(v) for k, v in paths.items()})
