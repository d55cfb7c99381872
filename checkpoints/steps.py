"""Where the steps of a run lie, and which of them are kept."""

import contextlib
import itertools
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping

from afterimage.checkpoints import files, manifest

FOLDER = "checkpoints"
KIND = "step"
_NUMBER = re.compile(r"0|[1-9]\d{0,17}")
_OURS = re.compile(r"\.(\d{1,18})\.(partial|replaced)-\d+")


def steps_folder(folder: str | os.PathLike[str]) -> pathlib.Path:
    """The `checkpoints/` of a run folder; given that folder itself, it is returned."""
    path = pathlib.Path(folder)
    return path if path.name == FOLDER else path / FOLDER


def numbered(folder: str | os.PathLike[str]) -> list[tuple[int, pathlib.Path]]:
    """(step, folder) of everything with a number for a name, oldest step first."""
    place = steps_folder(folder)
    if not place.is_dir():
        return []
    found = [
        (int(entry.name), entry)
        for entry in place.iterdir()
        if _NUMBER.fullmatch(entry.name) and entry.is_dir()
    ]
    return sorted(found)


def complete(folder: str | os.PathLike[str]) -> list[int]:
    """Steps that were written to their end, oldest first; bytes are not verified."""
    return [step for step, path in numbered(folder) if (path / manifest.NAME).is_file()]


def leftovers(folder: str | os.PathLike[str]) -> list[tuple[int, str, pathlib.Path]]:
    """(step, "partial" or "replaced", folder) that an interrupted save left behind."""
    place = steps_folder(folder)
    if not place.is_dir():
        return []
    return sorted(
        (int(match[1]), match[2], entry)
        for entry in place.iterdir()
        if (match := _OURS.fullmatch(entry.name)) and entry.is_dir()
    )


def recover(
    folder: str | os.PathLike[str], writing: Collection[pathlib.Path] = ()
) -> None:
    """Finish or remove what dead processes left; only for the holder of the lock.

    `writing` are folders of this process that are not left over. One that is whole
    but was killed before its last rename gets its name; the rest is deleted.
    """
    for step, _, path in leftovers(folder):
        if path in writing:
            continue
        final = path.with_name(str(step))
        _, findings = manifest.check_folder(path, (KIND,))
        if not final.exists() and not any(finding.fatal for finding in findings):
            path.rename(final)
        else:
            files.remove(path, ignore_errors=True)


def set_aside(final: pathlib.Path) -> pathlib.Path | None:
    """Move what is no complete step out of a step's way; where to, if it held anything.

    It may be somebody's: only an empty folder is deleted.
    """
    if final.is_symlink() and not final.exists():
        final.unlink()  # it leads nowhere
    if not final.exists() or (final / manifest.NAME).is_file():
        return None
    with contextlib.suppress(OSError):
        final.rmdir()
        return None
    names = (f"{final.name}.set-aside-{n}" for n in itertools.count(1))
    aside = next(p for n in names if not (p := final.with_name(n)).exists())
    return final.rename(aside)


def delete(folder: str | os.PathLike[str], step: int) -> None:
    """Delete a step; one killed half-way leaves no step that looks damaged."""
    path = steps_folder(folder) / str(step)
    gone = path.with_name(f".{path.name}.replaced-{os.getpid()}")
    path.rename(gone)
    files.remove(gone)


def kept(
    metrics: Mapping[int, float | None],
    *,
    keep_last: int,
    keep_best: int = 0,
    best: str | None = None,
) -> set[int]:
    """Steps retention keeps: the newest `keep_last` and the `keep_best` best.

    `metrics` maps each step to its metric, or None; `best` is "min" or "max". Of equal
    metrics the newer step counts as better.
    """
    newest = sorted(metrics)[-keep_last:] if keep_last else []
    return {*newest, *ranked(metrics, best)[:keep_best]}


def ranked(metrics: Mapping[int, float | None], best: str | None) -> list[int]:
    """Steps that have a metric, best first; none without a direction."""
    if best is None:
        return []
    sign = 1 if best == "min" else -1
    rated: Iterable[tuple[float, int]] = (
        (sign * value, -step) for step, value in metrics.items() if value is not None
    )
    return [-step for _, step in sorted(rated)]
