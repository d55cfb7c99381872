"""The encoder alone: weights and a manifest, enough to load it with nothing else.

`encoder/weights.safetensors` holds `params/PATH` and `stats/PATH`; `manifest.json` what
they are. Loading reads bytes and JSON: no code of the file is executed, and neither JAX
nor Orbax is needed.
"""

import glob
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from afterimage.checkpoints import (
    files,
    jsons,
    lock,
    manifest,
    names,
    schemas,
    steps,
    tensors,
)
from afterimage.checkpoints.errors import CheckpointError, UsageError
from afterimage.checkpoints.manifest import Finding
from afterimage.checkpoints.trees import flatten, unflatten

FOLDER = "encoder"
WEIGHTS = "weights.safetensors"
KIND = "encoder"
_NAMES = {"params", "stats"}


def write_encoder(
    folder: str | os.PathLike[str],
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    manifest: Mapping[str, Any],
    *,
    kind: str = KIND,
) -> None:
    """Write an encoder folder, atomically; one that stood there is replaced at the end.

    `params` and `stats` are nested dicts of arrays; `manifest` says what they are
    (model, preprocessing, feature_info, data, trained: `schemas.Encoder`). `schema`,
    `kind`, `files` and `checksum` are added. Raises SaveError, leaving the old one, and
    UsageError for a manifest that could not be read again.
    """
    final = pathlib.Path(folder)
    artefact = collect(params, stats, manifest, kind)
    partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        files.require_space(final.parent, artefact.nbytes, f"The encoder {final}")
        _remove_leftovers(final)
        artefact.write(partial)
        files.put_in_place(partial, final)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise files.explain(error, f"The encoder {final}", final.parent) from error


def _remove_leftovers(final: pathlib.Path) -> None:
    """Delete what a writer of this folder left when it was killed."""
    for kind in ("partial", "replaced"):
        for path in final.parent.glob(f".{glob.escape(final.name)}.{kind}-*"):
            pid = path.name.rpartition("-")[2]
            if re.fullmatch("[0-9]{1,18}", pid) and (
                int(pid) == os.getpid() or not lock.alive(int(pid))
            ):
                shutil.rmtree(path, ignore_errors=True)


class Artefact:
    """An encoder on the host, ready to be written by another thread."""

    def __init__(
        self, arrays: dict[str, np.ndarray], content: dict[str, Any], kind: str
    ):
        self._arrays, self._content, self._kind = arrays, content, kind
        self.nbytes = sum(a.nbytes for a in arrays.values()) + 4096 + 200 * len(arrays)

    def write(self, folder: pathlib.Path) -> None:
        """Write weights and manifest into a new folder, each forced to the disk."""
        folder.mkdir(parents=True)
        files.write_bytes(folder / WEIGHTS, tensors.encode(self._arrays))
        content = {**self._content, "kind": self._kind}
        files.write_bytes(folder / manifest.NAME, manifest.seal(content, folder))
        files.sync_folder(folder)


def collect(
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    content: Mapping[str, Any],
    kind: str = KIND,
) -> Artefact:
    """Copy an encoder to the host; the arrays may be donated afterwards."""
    arrays = {
        path: np.array(leaf, order="C")
        for path, leaf in flatten({"params": params, "stats": stats}).items()
    }
    content = manifest.require_json(content, f"The manifest of the {kind}")
    manifest.require_valid(content, kind)
    return Artefact(arrays, content, kind)


def read_encoder(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(params, stats, manifest) of an encoder, as nested dicts of NumPy arrays.

    `path` is a run folder, a `checkpoints/STEP` folder, or an `encoder/` folder. A run
    folder's own `encoder/` counts where it is good, else the newest step whose
    encoder is good. Every byte is compared with its checksum before it is used.

    Raises CheckpointError, naming everything that was tried and why it was refused.
    """
    place = pathlib.Path(path)
    if not place.is_dir():
        raise UsageError(
            f"{place} is not a folder; expected a run folder, a checkpoints/STEP "
            "folder, or an encoder/ folder."
        )
    refused: list[str] = []
    candidates, tried = _candidates(place), None
    # A run that is still being written deletes old steps while they are read, and by
    # then has new ones.
    while candidates != tried:
        refused = []
        for candidate in candidates:
            try:
                if candidate != place:
                    require_inside(candidate)
                return read_folder(candidate, KIND)
            except (CheckpointError, OSError) as error:
                refused.append(str(error))
        candidates, tried = _candidates(place), candidates
    if not refused:
        raise UsageError(
            f"{place} holds no encoder; expected a run folder with encoder/ or "
            "checkpoints/, a checkpoints/STEP folder, or an encoder/ folder."
        )
    raise CheckpointError(f"No good encoder in {place}:\n  " + "\n  ".join(refused))


def _candidates(place: pathlib.Path) -> list[pathlib.Path]:
    if (place / WEIGHTS).exists():
        return [place]
    found = [place / FOLDER] if (place / FOLDER).is_dir() else []
    found += [folder / FOLDER for _, folder in reversed(steps.numbered(place))]
    if not found and (place / manifest.NAME).exists():
        return [place]
    return found


def require_inside(folder: pathlib.Path) -> None:
    """Raise CheckpointError if an artefact's folder links out of the one it is in.

    The folder that a user names may itself be a link.
    """
    if files.leads_out(folder, folder.parent):
        raise CheckpointError(
            f"{folder} is a link that leads out of {folder.parent}; if that "
            f"is intended, name its target, {os.path.realpath(folder)}."
        )


def read_folder(folder: pathlib.Path, kind: str) -> tuple[dict, dict, dict]:
    """(params, stats, manifest) of one artefact folder of this kind, verified."""
    content, tree, findings = examine(folder, kind)
    fatal = [str(finding) for finding in findings if finding.fatal]
    if content is None or fatal:
        raise CheckpointError("; ".join(fatal))
    return tree.get("params", {}), tree.get("stats", {}), content


def examine(
    folder: pathlib.Path, kind: str
) -> tuple[dict[str, Any] | None, dict[str, Any], list[Finding]]:
    """(manifest, {"params", "stats"}, findings) of one artefact folder of this kind.

    Every byte is compared with its checksum, every name, shape and number is looked at.
    """
    kept: dict[str, list[bytes]] = {WEIGHTS: []}
    content, findings = manifest.check_folder(folder, (kind,), keep=kept)
    if content is None or any(finding.fatal for finding in findings):
        return content, {}, findings
    place = folder / WEIGHTS
    if WEIGHTS not in content["files"]:
        text = f"lists no {WEIGHTS}"
        return content, {}, [*findings, Finding(str(folder), "damaged", text)]
    try:
        flat = tensors.decode(kept[WEIGHTS][0], str(place))
        _require_names(flat, place)
        tensors.require_finite(flat, str(place))
    except CheckpointError as error:
        text = str(error).removeprefix(f"{place} ").removesuffix(".")
        return content, {}, [*findings, Finding(str(place), "damaged", text)]
    tree = unflatten({name: array.copy() for name, array in flat.items()})
    return content, tree, findings


def _require_names(flat: Mapping[str, Any], place: pathlib.Path) -> None:
    """Raise CheckpointError unless all are `params/PATH` or `stats/PATH`."""
    wrong = schemas.wrong_paths(flat) + [
        f"{names.shown(name)} is under neither of {sorted(_NAMES)}"
        for name in flat
        if name.partition("/")[0] not in _NAMES or "/" not in name
    ]
    if wrong:
        raise CheckpointError(f"{place} holds wrong names: {jsons.listed(wrong)}.")
