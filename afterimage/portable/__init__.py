"""Encoders and classifiers as files for other programs: `afterimage export`."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from afterimage.checkpoints import files
from afterimage.checkpoints.errors import CheckpointError, UsageError
from afterimage.classifier import Classifier, load_classifier
from afterimage.encoder import Encoder, load_encoder
from afterimage.errors import UserError, disk_errors, require_writable
from afterimage.evaluation.text import probe_lines
from afterimage.fields import place_problems
from afterimage.outputs import outputs_of_report
from afterimage.portable.outputs import Portable
from afterimage.storage.outputs import here
from afterimage.storage.reading import local

Part = Literal["auto", "encoder", "classifier"]
SUFFIXES = {"onnx": ".onnx", "stablehlo": ".stablehlo", "safetensors": ""}
"""What the name of a format's file ends in; empty for a folder."""


def export_model(
    path: str | os.PathLike[str],
    to: str,
    out: str | os.PathLike[str],
    *,
    part: Part = "auto",
    licence: str = "unknown",
) -> str:
    """Write the encoder or classifier in `path` for other programs; what was written.

    `to` is one of SUFFIXES. Images are uint8 [n, H, W, C] of the trained size, any
    n ≥ 1; the file normalises them. Its outputs have names: `features`, `map_0` (the
    finest) to `map_k`, and for a classifier `logits` and `probabilities` (of a further
    task: TASK_logits …). `part="auto"` is the classifier if there is one. `licence` is
    the identifier in a safetensors folder's card.

    The file is loaded again and compared with this package, on images of every batch
    size from 1 to 3: outputs may differ by 1e-5 of their largest value. Otherwise it is
    removed, and UserError raised; also for an unknown format, a missing package, a name
    of the wrong form, and `path` without such a part.
    """
    with here(out) as place:
        _check(to, place)
        source = load_part(path, part)
        model = Portable.of(source, _figures(_local(path, part), source))
        failed = f"out={out} was not written"
        with disk_errors(failed), _complete_or_absent(place) as partial:
            checked = _writer(to)(model, partial, licence)
    return f"wrote {out}: {model}\n{checked}"


def load_part(
    path: str | os.PathLike[str], part: Part = "auto"
) -> Encoder | Classifier:
    """The classifier in `path`, or its encoder if there is none or `part` says so.

    Raises UserError if there is no such part.
    """
    path = _local(path, part)
    if part == "encoder" or (part == "auto" and _kind(path) == "encoder"):
        return load_encoder(path)
    try:
        return load_classifier(path)
    except (CheckpointError, UsageError) as error:
        if part == "classifier":
            raise UserError(
                f"part=classifier: {error}\nTo write the encoder: --part encoder"
            ) from error
        if not isinstance(error, UsageError):
            raise
    return load_encoder(path)


def _local(path: str | os.PathLike[str], part: Part) -> Path:
    return local(path, "encoder" if part == "encoder" else "classifier")


def _kind(folder: Path) -> str | None:
    """What a bare folder of weights says it is; None for anything else."""
    try:
        return json.loads((folder / "manifest.json").read_text())["kind"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _figures(path: Path, source: Encoder | Classifier) -> tuple[str, ...]:
    """What is known of its quality: from its manifest, and the run's results.json."""
    if isinstance(source, Encoder):
        return tuple(probe_lines(source.manifest.get("probes")))
    lines = []
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        results = json.loads((path / "results.json").read_text(encoding="utf-8"))
        for split in ("validation", "test"):
            if (found := results.get(split)) is not None:
                kind, images = outputs_of_report(found), found["examples"]
                name, value = next(iter(kind.figures(found).items()))
                lines.append(f"{split} {name} {value} on {images:,} images")
    return tuple(lines)


def _writer(to: str) -> Callable[[Portable, Path, str], str]:
    if to == "safetensors":
        from afterimage.portable.folder import write_folder

        return write_folder
    from afterimage.portable import programs

    return programs.write_onnx if to == "onnx" else programs.write_stablehlo


def _check(to: str, out: Path) -> None:
    """Everything that can be known before a network is loaded."""
    if to not in SUFFIXES:
        raise UserError(f"to={to!r} must be one of {', '.join(SUFFIXES)}")
    if problems := place_problems("out", out):
        raise UserError(problems[0])
    if out.suffix != SUFFIXES[to] and SUFFIXES[to]:
        raise UserError(
            f"out={out}: the name must end in {SUFFIXES[to]}, not "
            f"{out.suffix or 'without a suffix'}"
        )
    if to == "safetensors" and (out.is_file() or out.suffix == ".safetensors"):
        raise UserError(f"out={out}: give the name of a folder, which --to {to} writes")
    if out.is_dir() and (to != "safetensors" or any(out.iterdir())):
        raise UserError(f"out={out} is a folder that has files; give another name")
    missing = [name for name in ("jax2onnx", "onnxruntime") if not _installed(name)]
    if to == "onnx" and missing:
        raise UserError(
            f"--to onnx needs {' and '.join(missing)}: pip install 'afterimage[onnx]'"
        )
    require_writable(f"out={out}", out.parent)


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@contextmanager
def _complete_or_absent(out: Path) -> Iterator[Path]:
    """A place to write a file or folder; renamed to `out` only if nothing failed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        yield partial
        if out.is_dir():
            out.rmdir()  # it is empty
        partial.replace(out)
        files.sync_folder(out.parent)
    finally:
        with suppress(OSError):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
