"""Implements `afterimage checkpoints list|show|verify|prune RUN`."""

import contextlib
import math
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afterimage.checkpoints import files, manifest, names, schemas, weights
from afterimage.checkpoints.errors import (
    CheckpointError,
    UsageError,
    disk_fault,
    readable_size,
)
from afterimage.checkpoints.manifest import STEP, Finding
from afterimage.storage.reading import Need, local
from afterimage.storage.urls import is_remote

_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class StepInfo:
    """One row of `list`: a step, its time and size, and its rank."""

    step: int
    created: str | None
    size: int
    metric: float | None
    last: bool
    best: bool
    status: str


@dataclass(frozen=True)
class Shown:
    """What `show` found: a manifest and its leaves as {path: {shape, dtype}}."""

    path: str
    manifest: dict[str, Any]
    leaves: dict[str, dict[str, Any]]

    @property
    def count(self) -> int:
        """Numbers in all leaves together."""
        return sum(math.prod(leaf["shape"]) for leaf in self.leaves.values())


@dataclass(frozen=True)
class Pruned:
    """Steps that `prune` kept, deleted, or left alone (damaged, or links elsewhere)."""

    kept: list[int]
    deleted: list[int]
    untouched: list[int]
    freed: int
    dry_run: bool


def verify(folder: _Path) -> list[Finding]:
    """All problems in a run, step, encoder, classifier or detector folder.

    Reads every byte. A run includes the detectors under `anomalies/`.

    The folder is good if no finding is `fatal`. Raises UsageError where there is
    nothing to verify.
    """
    place = _existing(folder, "whole")
    if (place / manifest.NAME).exists() or (place / weights.WEIGHTS).exists():
        return _all_findings(place, None)
    found = [(path, STEP) for _, path in manifest.numbered_steps(place)]
    for kind in schemas.kinds():
        if kind not in (STEP, weights.DETECTOR) and (place / kind).is_dir():
            found.append((place / kind, kind))
    found += [
        (path.parent, weights.DETECTOR)
        for path in sorted((place / "anomalies").glob(f"*/{manifest.NAME}"))
    ]
    if not found:
        raise _nothing(place)
    text = "left by an interrupted save; the next run removes it"
    return [
        *(finding for path, kind in found for finding in _all_findings(path, kind)),
        *(Finding(str(path), "extra", text) for *_, path in manifest.leftovers(place)),
    ]


def _all_findings(folder: pathlib.Path, kind: str | None) -> list[Finding]:
    """Problems in one folder with a manifest; kind None accepts any."""
    kinds = (kind,) if kind else schemas.kinds()
    if kind and files.leads_out(folder, folder.parent):
        return [Finding(str(folder), "foreign", "is a link to a place outside the run")]
    content, findings = manifest.check_folder(folder, kinds, checksums=False)
    if content is None:
        return findings
    if content["kind"] != STEP:
        return weights.examine(folder, content["kind"])[2]
    findings = manifest.check_folder(folder, kinds)[1]
    inner = folder / weights.ENCODER
    if inner.is_dir() and not any(finding.fatal for finding in findings):
        findings += weights.examine(inner, weights.ENCODER)[2]
    return findings


def format_verify(findings: Sequence[Finding]) -> str:
    """The findings, one per line, and a summary sentence."""
    fatal = sum(finding.fatal for finding in findings)
    end = (
        f"{fatal} damaged, missing or foreign."
        if fatal
        else "No problems: every byte is as it was written."
    )
    return "\n".join([*map(str, findings), end])


def list_steps(folder: _Path) -> list[StepInfo]:
    """Every numbered folder of a run, oldest first.

    `status` is "complete", or what is wrong judging by names and sizes; `verify` also
    reads the bytes.
    """
    place = _existing(folder)
    rows = []
    for step, path in manifest.numbered_steps(place):
        content, findings = manifest.check_folder(path, (STEP,), checksums=False)
        fatal = [finding for finding in findings if finding.fatal]
        rows.append((step, path, content or {}, fatal))
    if not rows:
        raise _nothing(place)
    whole = {step: c for step, _, c, fatal in rows if not fatal}
    best = manifest.ranked_steps(*_metrics(whole))[:1]
    return [
        StepInfo(
            step=step,
            created=content.get("created"),
            size=files.folder_size(path),
            metric=_metric(content),
            last=step == max(whole, default=None),
            best=step in best,
            status=f"{fatal[0].kind}: {fatal[0].text}" if fatal else "complete",
        )
        for step, path, content, fatal in rows
    ]


def format_list(rows: Sequence[StepInfo]) -> str:
    """A table of `list_steps`."""
    table = [
        (
            str(row.step),
            names.shortened(row.created or "?"),
            readable_size(row.size),
            "-" if row.metric is None else f"{row.metric:.6g}",
            " ".join(("last",) * row.last + ("best",) * row.best),
            row.status,
        )
        for row in rows
    ]
    return _table([("step", "written", "size", "metric", "", "status"), *table])


def show(folder: _Path, step: int | None = None) -> Shown:
    """The contents of an encoder or a step (in a run: `step`, or the newest complete).

    Raises CheckpointError where its manifest cannot be read.
    """
    place = _existing(folder)
    if not (place / manifest.NAME).exists():
        found = manifest.complete_steps(place)
        chosen = max(found, default=None) if step is None else step
        if chosen in found:
            place = manifest.steps_folder(place) / str(chosen)
        elif step is None and (place / weights.ENCODER / manifest.NAME).exists():
            place = place / weights.ENCODER
        else:
            raise UsageError(
                f"{place} has no complete step{'' if step is None else f' {step}'}; "
                f"it has {found or 'none'}."
            )
    content = manifest.read(place, schemas.kinds())
    leaves = content.pop("leaves", None)
    if leaves is None:
        path = place / weights.WEIGHTS
        try:
            data = files.read_bytes(path)
        except OSError as error:
            raise CheckpointError(f"{path} {files.reason(error)}.") from None
        arrays = weights.decode(data, str(path))
        leaves = {
            name: {"shape": list(array.shape), "dtype": str(array.dtype)}
            for name, array in arrays.items()
        }
    return Shown(str(place), content, leaves)


def format_show(shown: Shown) -> str:
    """The manifest, then a table of leaves with shape, dtype and count."""
    listed = shown.manifest["files"]
    size = sum(entry["size"] for entry in listed.values())
    lines = [
        f"{key}: {names.shortened(str(value), 2000)}"
        for key, value in shown.manifest.items()
        if key not in ("files", "checksum")
    ]
    rows = [
        (
            names.shortened(path),
            leaf["dtype"],
            str(leaf["shape"]),
            f"{math.prod(leaf['shape']):,}",
        )
        for path, leaf in shown.leaves.items()
    ]
    total = ("total", "", f"{len(rows)} leaves", f"{shown.count:,}")
    table = _table([("leaf", "dtype", "shape", "count"), *rows, total])
    files_line = f"files: {len(listed)}, {readable_size(size)}"
    return "\n".join([shown.path, *lines, files_line, "", table])


def prune(
    folder: _Path, keep_last: int = 1, keep_best: int = 1, *, dry_run: bool = False
) -> Pruned:
    """Delete all but the newest `keep_last` and the best `keep_best` good steps.

    Every byte is verified first. A damaged step, or a link to a step elsewhere, does
    not count as kept and is left alone. "Best" uses the metric and direction that the
    run recorded. With `dry_run` nothing is deleted. Raises RunLocked while a run writes
    to the folder.
    """
    if keep_last < 1 or keep_best < 0:
        raise UsageError(
            f"keep_last={keep_last}, keep_best={keep_best}: keep_last must be at "
            "least 1 and keep_best at least 0, so that a good checkpoint remains."
        )
    if dry_run or not is_remote(folder):
        return _prune(_existing(folder, "whole"), keep_last, keep_best, dry_run)
    from afterimage.storage.working import WorkingCopy

    url = os.fspath(folder).rstrip("/").removesuffix(f"/{manifest.STEPS}")
    copy = WorkingCopy(url)
    copy.open()
    try:
        return _prune(copy.path, keep_last, keep_best, dry_run)
    finally:
        copy.close()


def _prune(
    place: pathlib.Path, keep_last: int, keep_best: int, dry_run: bool
) -> Pruned:
    run = manifest.steps_folder(place).absolute().parent
    free = dry_run or files.holds_lock(run)
    with contextlib.nullcontext() if free else files.RunLock(run):
        good, untouched = {}, []
        for step, path in manifest.numbered_steps(place):
            content, findings = manifest.check_folder(path, (STEP,))
            elsewhere = files.leads_out(path, path.parent)
            if elsewhere or content is None or any(f.fatal for f in findings):
                untouched.append(step)
            else:
                good[step] = content
        if not good and not untouched:
            raise _nothing(place)
        metrics, best = _metrics(good)
        kept = manifest.kept_steps(
            metrics, keep_last=keep_last, keep_best=keep_best, best=best
        )
        deleted = sorted(set(good) - kept)
        paths = [manifest.steps_folder(place) / str(step) for step in deleted]
        freed = sum(files.folder_size(path) for path in paths if not path.is_symlink())
        for step in () if dry_run else deleted:
            try:
                manifest.delete_step(place, step)
            except OSError as error:
                fault = disk_fault(error) or str(error)
                raise UsageError(f"step {step} was not deleted: {fault}") from error
    return Pruned(sorted(kept), deleted, untouched, freed, dry_run)


def format_prune(result: Pruned) -> str:
    """What was, or would be, deleted."""
    verb = "would delete" if result.dry_run else "deleted"
    text = f"kept: {_numbers(result.kept)}\n{verb}: {_numbers(result.deleted)} "
    text += f"({readable_size(result.freed)})"
    if result.untouched:
        text += (
            f"\nunchanged, because not good or not here: {_numbers(result.untouched)} "
        )
        text += "(see `afterimage checkpoints verify`)"
    return text


def _metrics(
    contents: dict[int, dict[str, Any]],
) -> tuple[dict[int, float | None], str | None]:
    """Each step's metric, and the direction recorded by the newest one."""
    metrics = {step: _metric(content) for step, content in contents.items()}
    return metrics, contents[max(contents)]["best"] if contents else None


def _metric(content: dict[str, Any]) -> float | None:
    value = content.get("metric")  # JSON may write a float as an integer
    return None if value is None else float(value)


def _existing(folder: _Path, need: Need = "names") -> pathlib.Path:
    place = local(folder, need)
    if not place.is_dir():
        raise UsageError(f"{folder} is not a folder; expected a run folder.")
    return place


def _nothing(place: pathlib.Path) -> UsageError:
    return UsageError(
        f"{place} contains no checkpoint; expected a run folder with checkpoints/ or "
        "encoder/, or one of these."
    )


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values)) or "none"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in rows
    )
