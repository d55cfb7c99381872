"""Sets of volumes: a folder or a table, their splits, and their place in memory."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8
from threadpoolctl import threadpool_limits

from afterimage.checkpoints import files
from afterimage.checkpoints.errors import readable_size
from afterimage.checkpoints.names import printable
from afterimage.console import say_doing
from afterimage.data.sets import Columns, stratified
from afterimage.data.table import listed, read_table
from afterimage.data.workers import allowance, or_reason, windows
from afterimage.errors import DataError, did_you_mean, nearest_path
from afterimage_volumes.files import NIFTI, Geometry, is_dicom, read_volume

SPLITS = ("train", "validation", "test")
_EACH = 2**30
"""Bytes that a volume takes while it is read, about: at most this many at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """Places of volumes; `ids` are their paths relative to the folder or table."""

    name: str
    ids: list[str]
    paths: list[pathlib.Path]
    labels: list[str] | None = None
    splits: list[str] | None = None
    patients: list[str] | None = None

    def pixels(self, to: Geometry) -> UInt8[np.ndarray, "n s s s"]:
        """The volumes in one geometry, uint8 [n, s, s, s].

        Raises DataError that lists every damaged one, and before anything is read if
        they do not fit in memory.
        """
        paths = self.paths
        need, free = len(paths) * to.size**3, allowance()
        if need > free:
            raise DataError(
                f"{self.name}: {len(paths):,} volumes of {to} need "
                f"{readable_size(need)}, more than half of the free memory "
                f"({readable_size(free)}); give a smaller --size"
            )
        say_doing(
            f"Reading {self.name}: {len(paths):,} volumes of {to}, "
            f"{readable_size(need)} in memory"
        )
        volumes = np.zeros((len(paths), *[to.size] * 3), np.uint8)
        one, wrong = or_reason(lambda row: read_volume(paths[row], to)), []
        with threadpool_limits(1, "blas"):  # volumes are read in threads of their own
            every = range(len(paths))
            for row, found in windows(one, every, "volumes", _EACH, unit="volumes"):
                if isinstance(found, str):
                    wrong.append(f"{self.ids[row]} {found}")
                else:
                    volumes[row] = found
        if wrong:
            raise DataError(listed(wrong, self.name))
        return volumes

    def fingerprint(self, volumes: np.ndarray) -> str:
        """SHA-256 of everything that a run depends on."""
        parts = [self.ids, self.labels, self.splits, self.patients, volumes.shape]
        digest = hashlib.sha256(json.dumps(parts).encode())
        digest.update(volumes.data)
        return digest.hexdigest()

    def columns(self, rows: np.ndarray, **arrays: np.ndarray) -> Columns:
        """These rows of arrays over all volumes, as a set for the trainer."""
        chosen = {name: array[rows] for name, array in arrays.items()}
        return Columns(self.name, chosen, [self.ids[row] for row in rows])


def find(data: str, *, labels: bool = False) -> Found:
    """The volumes that `data` names, in sorted order or that of the table.

    A folder is searched for .nii and .nii.gz files and for folders of DICOM slices, one
    series each; a .csv file has the column `volume` and, with `labels`, `label`, and
    perhaps `split` and `patient`. Raises DataError if there are none.
    """
    place = data.removeprefix("csv:").removeprefix("folder:")
    path = pathlib.Path(place)
    if not path.exists():
        raise DataError(f"{place} does not exist{nearest_path(place)}")
    if path.suffix.lower() == ".csv":
        return _table(path, place, labels)
    if labels:
        raise DataError(
            f"{place} is not a table; labels need a .csv file with the columns volume "
            "and label"
        )
    found = [path] if path.is_file() else list(_walk(path))
    if not found:
        raise DataError(
            f"{place} has no volumes; expected .nii or .nii.gz files, or folders of "
            "DICOM slices, one series each"
        )
    ids = [p.name if p == path else p.relative_to(path).as_posix() for p in found]
    return Found(place, ids, found)


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here, shown = pathlib.Path(where), [n for n in names if not n.startswith(".")]
        own = sorted(name for name in shown if name.lower().endswith(NIFTI))
        yield from (here / name for name in own)
        if any(is_dicom(here / name) for name in sorted(set(shown) - set(own))):
            yield here


def _table(path: pathlib.Path, place: str, labels: bool) -> Found:
    try:
        content = files.read_bytes(path, 2**30)
    except OSError as error:
        raise DataError(f"{printable(place)} {files.reason(error)}") from error
    table = read_table(content, place, json_lines=False)
    for name in ("volume", "label") if labels else ("volume",):
        if name not in table.columns:
            hint = did_you_mean(name, table.columns)
            known = printable(", ".join(table.columns)[:200])
            raise DataError(f"{place} has no column {name!r}{hint} It has: {known}")
    names = table.columns["volume"]
    if not names:
        raise DataError(f"{place} has no volumes below its first line")
    more = {
        key: table.columns.get(key) if labels else None
        for key in ("label", "split", "patient")
    }
    if more["split"]:
        more["split"] = [name.casefold() for name in more["split"]]
    wrong = [f"line {n}: no volume" for n, v in zip(table.lines, names) if not v]
    for key, column in more.items():
        for line, value in zip(table.lines, column or ()):
            if not value:
                wrong.append(f"line {line}: no {key}")
            elif key == "split" and value not in SPLITS:
                wrong.append(f"line {line}: the split {value!r}; expected {SPLITS}")
    wrong += [f"{name}: twice" for name in sorted(set(names)) if names.count(name) > 1]
    if wrong:
        raise DataError(listed(wrong, place))
    paths = [path.parent / name for name in names]
    return Found(place, names, paths, more["label"], more["split"], more["patient"])


def split_rows(
    found: Found, classes: Sequence[str], test: float, validation: float, seed: int
) -> tuple[dict[str, np.ndarray], str]:
    """({train, validation, test: rows}, what is tested on).

    By the column `split`; without one, a share `test` of each class is drawn by seed.
    Without validation rows, a share `validation` of the rest is. With a column
    `patient`, patients are drawn, and none is in two splits.
    """
    every = np.arange(len(found.ids))
    how = f"{test:.0%} of each class of {found.name}, drawn with seed {seed}"
    if found.splits is not None:
        named = np.array(found.splits)
        rows = {split: np.flatnonzero(named == split) for split in SPLITS}
        how = f"the rows of {found.name} whose split is test"
    else:
        train, held = _drawn(found, classes, every, test, seed)
        rows = {"train": train, "validation": every[:0], "test": held}
    if not len(rows["validation"]) and validation:
        rows["train"], rows["validation"] = _drawn(
            found, classes, rows["train"], validation, seed + 1
        )
    if found.patients is not None:
        of = [{found.patients[row] for row in rows[split]} for split in SPLITS]
        if both := sorted((of[0] & of[1]) | (of[0] & of[2]) | (of[1] & of[2])):
            raise DataError(
                f"{found.name}: the patient {both[0]!r} is in several splits "
                f"({len(both)} patients are); keep each in one"
            )
    return rows, how


def _drawn(
    found: Found, classes: Sequence[str], rows: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held) of these rows: whole patients, stratified by their first label."""
    groups = [(found.patients or found.ids)[row] for row in rows]
    first = {name: rows[n] for n, name in reversed(list(enumerate(groups)))}
    names = sorted(first, key=lambda name: first[name])
    labels = [classes.index((found.labels or ())[first[name]]) for name in names]
    _, held = stratified(np.array(labels, np.int64), len(names), share, seed)
    chosen = np.isin(groups, [names[n] for n in held])
    return rows[~chosen], rows[chosen]
