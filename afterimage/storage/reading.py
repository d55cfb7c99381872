"""Runs and encoders in a bucket, for reading: what is needed is fetched into the cache.

Everything with a manifest is compared with it, byte by byte, when it is fetched, and
again by its reader. What the bucket replaced or deleted is so in the cache too.
"""

import hashlib
import os
import pathlib
import shutil
from typing import Literal

from afterimage.cache import cache_dir
from afterimage.checkpoints import manifest
from afterimage.storage import units
from afterimage.storage.bucket import Bucket, Entry
from afterimage.storage.lock import FOLDER
from afterimage.storage.urls import as_text, is_remote, name_of, parent_of

Need = Literal["encoder", "classifier", "records", "names", "whole"]
"""encoder: `encoder/`, or those of the steps if there is none. classifier: the same of
`classifier/`, or the newest step. records: settings, metrics and results. names: every
name and size, and the manifests. whole: everything."""

_ARTEFACTS = ("encoder", "classifier")


def local(place: str | os.PathLike[str], need: Need = "encoder") -> pathlib.Path:
    """The local folder of a run, a step or an artefact; a path stays what it is.

    Of a URL, what `need` says is fetched, with the files at the top of a run. The
    folder does not exist if there is nothing at the URL. Raises RemoteError.
    """
    if not is_remote(place):
        return pathlib.Path(place)
    url = as_text(place)
    if name_of(url) == manifest.STEPS:
        return local(parent_of(url), need) / manifest.STEPS
    mark = hashlib.sha256(url.encode()).hexdigest()[:16]
    names = need == "names"  # kept apart: its other files are empty
    home = cache_dir() / "remote" / f"{mark}-{'names' if names else 'read'}"
    path = home / name_of(url)
    if name_of(parent_of(url)) == manifest.STEPS:  # a step, inside a folder of steps
        path = home / "run" / manifest.STEPS / name_of(url)
    bucket = Bucket(url)
    entries = {n: e for n, e in bucket.entries().items() if units.safe(n)}
    entries = {n: e for n, e in entries.items() if not units.inside(n, FOLDER)}
    found = units.remote_units(entries)
    _forget(path, found, entries)
    if entries:
        path.mkdir(parents=True, exist_ok=True)
    if names:
        _outline(path, entries)
    for unit in _needed(found, need):
        _fetch(bucket, unit, path, need)
    loose = [n for n in entries if not any(units.inside(n, unit) for unit in found)]
    units.in_parallel(
        lambda n: bucket.download(n, path / n),
        [n for n in loose if _is_wanted(n, loose, need)],
    )
    return path


def look(out: str | os.PathLike[str]) -> pathlib.Path:
    """A run folder with its config.json and the names of its checkpoints.

    The run may go on; nothing is locked.
    """
    if not is_remote(out):
        return pathlib.Path(out)
    from afterimage.storage.working import WorkingCopy

    return WorkingCopy(os.fspath(out)).peek()


def _needed(found: list[str], need: Need) -> list[str]:
    """The units to fetch, of those there are."""
    numbered = [unit for _, unit in sorted(units.steps(found))]
    own = [unit for unit in found if unit in _ARTEFACTS]
    if need == "whole" or "" in found:
        return [unit for unit in found if not unit.endswith(".replaced")]
    if need == "names":
        return [*own, *numbered]
    if need == "records":
        return own[:1]
    if own:
        return [need] if need in own else own
    # Of a run that is not finished.
    return numbered if need == "encoder" else numbered[-1:]


def _fetch(bucket: Bucket, unit: str, path: pathlib.Path, need: Need) -> None:
    """Fetch a unit, or the part of a step that is needed, unless it is here."""
    step = bool(list(units.steps([unit]))) or unit == ""
    if need == "names" and step:
        name = f"{unit}/{manifest.NAME}" if unit else manifest.NAME
        bucket.download(name, path / name)
        return
    encoder_only = step and need == "encoder" and unit != ""
    final = path / unit if unit else path
    if _is_here(bucket, unit, final, encoder_only):
        return

    def wanted(name: str) -> bool:
        return not encoder_only or name.startswith("encoder/")

    try:
        units.fetch(bucket, unit, final, wanted)
    except FileNotFoundError:  # deleted meanwhile, as retention does
        shutil.rmtree(final, ignore_errors=True)


def _is_here(bucket: Bucket, unit: str, final: pathlib.Path, part: bool) -> bool:
    """Whether the local unit has the bucket's manifest, and every file it lists."""
    try:
        own = (final / manifest.NAME).read_bytes()
        if own != bucket.get(f"{unit}/{manifest.NAME}" if unit else manifest.NAME):
            return False
        return all(
            (final / name).stat().st_size == entry["size"]
            for name, entry in units.listed(own).items()
            if not part or name.startswith("encoder/")
        )
    except (OSError, TypeError, KeyError):
        return False


def _is_wanted(name: str, loose: list[str], need: Need) -> bool:
    """Whether a single file is fetched: those at the top, and the last picture."""
    if need == "whole":
        return True
    if "/" not in name:
        return need != "names"
    if need != "records":
        return False
    pictures = [n for n in loose if n.startswith("pictures/step-")]
    return name in pictures[-1:]


def _forget(path: pathlib.Path, found: list[str], entries: dict[str, Entry]) -> None:
    """Delete local units and files that the bucket no longer has."""
    if not path.is_dir():
        return
    have, loose = units.local_units(path)
    for unit in have:
        if unit not in found and "" not in found:
            shutil.rmtree(path / unit, ignore_errors=True)
    for name in loose:
        if name not in entries:
            (path / name).unlink(missing_ok=True)


def _outline(path: pathlib.Path, entries: dict[str, Entry]) -> None:
    """Files of the right names and sizes, without their bytes."""
    for name, entry in entries.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as made:
            made.truncate(entry.size)
