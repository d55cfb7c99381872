"""What is published together: a folder with a manifest, which is written last."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from afterimage.checkpoints import manifest
from afterimage.checkpoints.files import files_under, is_partial, put_in_place, sha256
from afterimage.storage.bucket import THREADS, Bucket, Entry

_TRIES = 3
"""Times that a folder is fetched whose bytes are not those of its manifest."""


def in_parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> None:
    """`function` of every item, many at once; raises the first error."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(function, item) for item in items]:
            done.result()


def safe(name: str) -> bool:
    """Whether an object's name may become the name of a local file below a folder."""
    parts = name.split("/")
    return not any(p in ("", ".", "..") or "\\" in p or "\0" in p for p in parts)


def remote_units(names: Iterable[str]) -> list[str]:
    """The outermost folders that have a manifest; `` is the whole."""
    ends = sorted(n for n in names if n.rpartition("/")[2] == manifest.NAME)
    found: list[str] = []
    for folder in sorted(n.rpartition("/")[0] for n in ends):
        if not any(inside(folder, other) for other in found):
            found.append(folder)
    return found


def inside(name: str, folder: str) -> bool:
    """Whether a name is a folder's, or below it."""
    return folder == "" or name == folder or name.startswith(f"{folder}/")


def local_units(place: pathlib.Path) -> tuple[list[str], list[str]]:
    """(units, other files) below a local folder, both as sorted relative names.

    Leaves out what is being written, and locks.
    """
    units: list[str] = []
    loose: list[str] = []
    for parent, folders, names in os.walk(place):
        where = pathlib.Path(parent).relative_to(place).as_posix()
        start = "" if where == "." else f"{where}/"
        if start and manifest.NAME in names:
            units.append(where)
            folders.clear()
            continue
        folders[:] = [n for n in folders if not n.startswith(".")]
        loose += [start + n for n in names if not is_partial(n) and start + n != "lock"]
    return sorted(units), sorted(loose)


def digest(data: bytes) -> str:
    """The SHA-256 of bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def publish(
    bucket: Bucket,
    place: pathlib.Path,
    unit: str,
    check: Callable[[], None],
    alive: Callable[[], None] = lambda: None,
) -> str | None:
    """Upload a local unit, its manifest last; the digest of the manifest.

    `check` is called before anything is changed and again before the manifest, and
    `alive` before each file; both may raise. An older unit of this name is first copied
    beside it inside the store, so that at any time one of them is complete. None if the
    unit was deleted here meanwhile.
    """
    folder = place / unit
    try:
        sealed = (folder / manifest.NAME).read_bytes()
        names = [n for n in files_under(folder) if n != manifest.NAME]
        check()
        old = bucket.entries(unit)
        if f"{unit}/{manifest.NAME}" in old:
            _copy(bucket, old, unit, aside(unit))
            bucket.delete([f"{unit}/{manifest.NAME}"])

        def upload(name: str) -> None:
            alive()
            bucket.upload(folder / name, f"{unit}/{name}")

        in_parallel(upload, names)
        if (folder / manifest.NAME).read_bytes() != sealed:
            return None
    except (FileNotFoundError, NotADirectoryError):
        if folder.exists():
            raise
        return None
    check()
    bucket.put(f"{unit}/{manifest.NAME}", sealed)
    kept = {f"{unit}/{n}" for n in (*names, manifest.NAME)}
    bucket.delete(name for name in old if name not in kept)
    withdraw(bucket, aside(unit))
    return digest(sealed)


def withdraw(bucket: Bucket, unit: str) -> None:
    """Delete a unit, its manifest first."""
    names = list(bucket.entries(unit))
    last = f"{unit}/{manifest.NAME}"
    bucket.delete(sorted(names, key=lambda name: name != last))


def aside(unit: str) -> str:
    """The name of a unit that is being replaced."""
    folder, slash, name = unit.rpartition("/")
    return f"{folder}{slash}.{name}.replaced"


def _copy(bucket: Bucket, old: Mapping[str, Entry], unit: str, to: str) -> None:
    last = f"{unit}/{manifest.NAME}"
    for name in sorted(old, key=lambda name: name == last):
        bucket.copy(name, to + name.removeprefix(unit))


def fetch(
    bucket: Bucket,
    unit: str,
    final: pathlib.Path,
    wanted: Callable[[str], bool] = lambda name: True,
) -> str:
    """Download a unit, each file compared with the manifest; the manifest's digest.

    `wanted` chooses among its files, by their names in the unit. Files whose bytes stay
    wrong are kept as they are: who reads them says what is damaged. Raises
    FileNotFoundError if there is no manifest.
    """
    scratch = final.with_name(f".{final.name}.partial-{os.getpid()}")
    start = f"{unit}/" if unit else ""
    sealed = b""
    try:
        for left in range(_TRIES - 1, -1, -1):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            sealed = bucket.get(start + manifest.NAME)
            files = listed(sealed)
            names = [n for n in files if safe(n) and wanted(n)]
            (scratch / manifest.NAME).write_bytes(sealed)
            try:
                in_parallel(
                    lambda n: bucket.download(start + n, scratch / n),
                    names,
                )
            except FileNotFoundError:
                if left:
                    continue
            if not left or not any(_differs(scratch / n, files[n]) for n in names):
                break
        final.parent.mkdir(parents=True, exist_ok=True)
        put_in_place(scratch, final)
        return digest(sealed)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def listed(sealed: bytes) -> dict[str, Any]:
    """The files of a manifest; empty for one that its reader will refuse."""
    try:
        content = json.loads(sealed)
    except (ValueError, RecursionError):
        return {}
    files = content.get("files") if isinstance(content, dict) else None
    return files if isinstance(files, dict) else {}


def _differs(file: pathlib.Path, entry: Any) -> bool:
    wanted = entry.get("sha256") if isinstance(entry, dict) else None
    return not file.is_file() or sha256(file) != wanted


def steps(units: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(number, unit) of the units that are steps of a run."""
    for unit in units:
        folder, _, name = unit.rpartition("/")
        if folder == manifest.STEPS and name.isdecimal():
            yield int(name), unit
