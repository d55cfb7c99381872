"""Manifests that describe and verify a checkpoint; the layout of step folders.

A manifest is one JSON object. `files` holds size and SHA-256 of every other file in the
folder; `checksum` is the SHA-256 of the manifest's own canonical JSON without that key,
so a flipped bit in the manifest is detected too.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from afterimage.checkpoints import files, names, schemas
from afterimage.checkpoints.errors import CheckpointError, UsageError

SCHEMA = 1
NAME = "manifest.json"
STEPS = "checkpoints"
STEP = "step"
_NUMBER = re.compile(r"0|[1-9]\d{0,17}")
_OURS = re.compile(r"\.(\d{1,18})\.(partial|replaced)-\d+")


@dataclass(frozen=True)
class Finding:
    """One problem in a checkpoint: its place, kind and description.

    `kind` is damaged, missing, foreign, half-written, newer or extra. An extra file is
    reported but harmless; every other kind makes the checkpoint unusable.
    """

    path: str
    kind: str
    text: str

    @property
    def fatal(self) -> bool:
        return self.kind != "extra"

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}: {self.text}"


class _Unusable(Exception):
    """`args[0]` is the finding that makes a manifest unusable."""


def seal(content: Mapping[str, Any], folder: pathlib.Path) -> bytes:
    """The manifest's bytes: `content` with schema, files of `folder` and checksum."""
    listed = {}
    for name in files.files_under(folder):
        if name != NAME:
            path = folder / name
            files.sync_file(path)
            digest = files.sha256(path)
            listed[name] = {"size": path.stat().st_size, "sha256": digest}
    return encode({"schema": SCHEMA, **content, "files": listed})


def encode(content: Mapping[str, Any]) -> bytes:
    """A manifest with its own checksum, as indented JSON."""
    body = dict(content)
    body["checksum"] = _own_checksum(body)
    return (json.dumps(body, indent=1, allow_nan=False) + "\n").encode()


def require_json(content: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A copy of `content` after a JSON round trip; TypeError if it is not JSON."""
    try:
        return json.loads(files.canonical_json(content))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{what} must be JSON (dicts, lists, strings, finite numbers): {error}. "
            "Convert NumPy values with .tolist() and NaN to None."
        ) from error


def require_valid(content: Mapping[str, Any], kind: str) -> None:
    """Raise UsageError, listing all problems, if `read` would refuse this manifest."""
    if wrong := schemas.mistakes(content, schemas.schema_of(kind)):
        raise UsageError(
            f"This is not a valid manifest of a {kind}: {schemas.listed(wrong)}."
        )


def read(folder: pathlib.Path, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The manifest of a folder; CheckpointError names what is wrong with it."""
    try:
        return _read(folder, kinds)
    except _Unusable as unusable:
        raise CheckpointError(str(unusable.args[0])) from None


def check_folder(
    folder: pathlib.Path,
    kinds: tuple[str, ...],
    *,
    checksums: bool = True,
    keep: Mapping[str, list[bytes]] | None = None,
) -> tuple[dict[str, Any] | None, list[Finding]]:
    """(manifest or None, findings) of one checkpoint or encoder folder.

    Every file is read and compared with the manifest's size and SHA-256; missing and
    extra files are reported. If no finding is `fatal`, every byte is as it was written.
    Without `checksums` only names and sizes are compared. For each good file named in
    `keep`, the bytes that were checked are appended to its list.
    """
    try:
        manifest = _read(folder, kinds)
    except _Unusable as unusable:
        return None, [unusable.args[0]]
    listed = manifest["files"]
    present = set(files.files_under(folder)) - {NAME}
    wrong: list[tuple[str, str, str]] = []
    for name in sorted(listed):
        if name not in present:
            wrong.append((name, "missing", "listed in the manifest, not on disk"))
            continue
        kept = (keep or {}).get(name)
        if problem := _wrong_file(folder / name, listed[name], checksums, kept):
            wrong.append((name, *problem))
    text = "is a link to a place outside the folder"
    wrong += [(name, "foreign", text) for name in files.links_out(folder)]
    extra = sorted(present - set(listed))
    wrong += [(name, "extra", "not in the manifest; ignored") for name in extra]
    # A name may contain anything.
    return manifest, [
        Finding(f"{folder}/{names.shortened(name)}", kind, text)
        for name, kind, text in wrong
    ]


def _wrong_file(
    path: pathlib.Path,
    entry: Mapping[str, Any],
    checksums: bool,
    keep: list[bytes] | None,
) -> tuple[str, str] | None:
    """(kind, text) of what is wrong with a file that the manifest lists, or None."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "foreign", "is not a regular file"
        if status.st_size != entry["size"]:
            text = f"has {status.st_size} bytes, but {entry['size']} were written"
            return "damaged", text
        if checksums and _digest_of(path, keep) != entry["sha256"]:
            return "damaged", "its bytes have changed since it was written (SHA-256)"
    except OSError as error:
        return "damaged", files.reason(error)
    return None


def _digest_of(path: pathlib.Path, keep: list[bytes] | None) -> str:
    if keep is None:
        return files.sha256(path)
    # Read once, so that the bytes checked are the bytes used, whoever writes meanwhile.
    keep.append(files.read_bytes(path))
    return hashlib.sha256(keep[-1]).hexdigest()


def _read(folder: pathlib.Path, kinds: tuple[str, ...]) -> dict[str, Any]:
    path = folder / NAME

    def unusable(kind: str, text: str) -> _Unusable:
        where = folder if kind in ("foreign", "half-written") else path
        return _Unusable(Finding(str(where), kind, text))

    try:
        if not path.exists():
            raise _nothing_there(folder, unusable)
        content = schemas.parse(files.read_bytes(path, schemas.MOST))
    except OSError as error:
        raise unusable("damaged", files.reason(error)) from None
    except ValueError as error:
        text = f"is not the JSON that was written: it {error}"
        raise unusable("damaged", text) from None
    if not isinstance(content, dict) or type(content.get("schema")) is not int:
        raise unusable("damaged", "has no schema version")
    if content["schema"] > SCHEMA:
        raise unusable(
            "newer",
            f"was written with schema {content['schema']}, but this version reads at "
            f"most schema {SCHEMA}; update with `pip install -U afterimage`",
        )
    if content.get("checksum") != _own_checksum(content):
        raise unusable("damaged", "does not match its own checksum")
    kind = content.get("kind")
    if kind not in kinds:
        known = " or ".join(f"{_article(one)} {one}" for one in kinds)
        text = f"is {_article(kind)} {names.shown(kind)}, not {known}"
        raise unusable("foreign", text)
    _require_files(content.get("files"), unusable)
    if wrong := schemas.mistakes(content, schemas.schema_of(kind)):
        raise unusable("damaged", schemas.listed(wrong))
    return content


def _nothing_there(folder: pathlib.Path, unusable: Any) -> _Unusable:
    """What a folder without a manifest is: absent, empty, half-written or foreign."""
    if not folder.is_dir():
        return unusable("foreign", "is not a folder")
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return unusable("foreign", "is empty")
    if names & {"state", "encoder"} or any(n.startswith("state.") for n in names):
        return unusable("half-written", f"has no {NAME}: it is incomplete")
    return unusable("foreign", f"has no {NAME}: Afterimage did not write it")


def _require_files(listed: Any, unusable: Any) -> None:
    """A list of files that stay inside the folder, each with size and SHA-256."""
    if not isinstance(listed, dict):
        raise unusable("damaged", "lists no files")
    for name in listed:
        pure = pathlib.PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            text = f"lists {names.shown(name)}, which is outside the folder"
            raise unusable("foreign", text)
    if wrong := schemas.mistakes(listed, dict[str, schemas.File], "files"):
        raise unusable("damaged", schemas.listed(wrong))


def _own_checksum(content: Mapping[str, Any]) -> str:
    body = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(files.canonical_json(body).encode()).hexdigest()


def steps_folder(folder: str | os.PathLike[str]) -> pathlib.Path:
    """The `checkpoints/` of a run folder; given that folder itself, it is returned."""
    path = pathlib.Path(folder)
    return path if path.name == STEPS else path / STEPS


def numbered_steps(folder: str | os.PathLike[str]) -> list[tuple[int, pathlib.Path]]:
    """(step, folder) of everything whose name is a number, oldest step first."""
    place = steps_folder(folder)
    if not place.is_dir():
        return []
    found = [
        (int(entry.name), entry)
        for entry in place.iterdir()
        if _NUMBER.fullmatch(entry.name) and entry.is_dir()
    ]
    return sorted(found)


def complete_steps(folder: str | os.PathLike[str]) -> list[int]:
    """Completely written steps, oldest first; bytes are not verified."""
    return [step for step, path in numbered_steps(folder) if (path / NAME).is_file()]


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
    """Finish or remove what dead processes left; the caller must hold the lock.

    `writing` are folders this process is still writing. A complete folder whose process
    was killed before the last rename gets its final name; the rest are deleted.
    """
    for step, _, path in leftovers(folder):
        if path in writing:
            continue
        final = path.with_name(str(step))
        _, findings = check_folder(path, (STEP,))
        if not final.exists() and not any(finding.fatal for finding in findings):
            path.rename(final)
        else:
            files.remove(path, ignore_errors=True)


def set_aside(final: pathlib.Path) -> pathlib.Path | None:
    """Move an incomplete step out of the way; the new path unless it was empty.

    It may be a user's data, so only an empty folder is deleted.
    """
    if final.is_symlink() and not final.exists():
        final.unlink()  # a dangling link
    if not final.exists() or (final / NAME).is_file():
        return None
    with contextlib.suppress(OSError):
        final.rmdir()
        return None
    names = (f"{final.name}.set-aside-{n}" for n in itertools.count(1))
    aside = next(p for n in names if not (p := final.with_name(n)).exists())
    return final.rename(aside)


def delete_step(folder: str | os.PathLike[str], step: int) -> None:
    """Delete a step; if killed halfway, leaves no step that looks damaged."""
    path = steps_folder(folder) / str(step)
    gone = path.with_name(f".{path.name}.replaced-{os.getpid()}")
    path.rename(gone)
    files.remove(gone)


def kept_steps(
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
    ranked = ranked_steps(metrics, best)[:keep_best]
    return {*(sorted(metrics)[-keep_last:] if keep_last else ()), *ranked}


def ranked_steps(metrics: Mapping[int, float | None], best: str | None) -> list[int]:
    """Steps that have a metric, best first; none without a direction."""
    if best is None:
        return []
    sign = 1 if best == "min" else -1
    rated = [(sign * v, -step) for step, v in metrics.items() if v is not None]
    return [-step for _, step in sorted(rated)]


def _article(kind: Any) -> str:
    return "an" if str(kind).startswith(("a", "e", "i", "o", "u")) else "a"
