"""The control: the same labels and network, from random weights instead."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from afterimage.checkpoints import schemas
from afterimage.checkpoints.errors import CheckpointError
from afterimage.evaluation.text import percent
from afterimage.report import Table
from afterimage.settings import dotted, spelled

_SAME = (
    *("from_", "task", "labels", "labels_per_class", "seed", "hold_out"),
    "validation",
)
"""Settings that decide which labels train and test, and the network."""
_FOLDERS, _SHOWN = 200, 5
_SCRATCH = "scratch"


def control(folder: pathlib.Path, results: Mapping[str, Any]) -> Table | None:
    """This run beside runs from random weights (or the other way round), as a table.

    They are looked for beside its folder: complete, of the same encoder, images and
    labels. None if there are none or this run has no test.
    """
    mine, own = _read(folder / "config.json", schemas.ConfigFile), results["test"]
    if mine is None or own is None or "accuracy" not in own:
        return None
    rows = [_row("this run", mine, own, mine)]
    gain = None
    for place, stored, found in _beside(folder, mine):
        rows.append(_row(str(place), stored, found["test"], mine))
        gain = gain or (own, found["test"])
        if len(rows) > _SHOWN:
            break
    if gain is None:
        return None
    pretrained, scratch = gain[::-1] if _is_scratch(mine) else gain
    header = ["run", "starts from", "accuracy", "macro-F1", "other settings"]
    differ = any(row[-1] for row in rows)
    other = ", and so does what the last column names" if differ else ""
    return Table(
        header=header if differ else header[:-1],
        rows=rows if differ else [row[:-1] for row in rows],
        note=f"{_gain(pretrained['accuracy'], scratch['accuracy'])} The labels, the "
        "test images and the network are the same; the start differs"
        f"{other}. In brackets: 95 % intervals.",
        marked=["this run"],
    )


def _beside(
    folder: pathlib.Path, mine: Mapping[str, Any]
) -> Iterator[tuple[pathlib.Path, Any, Any]]:
    with contextlib.suppress(OSError):
        for place in sorted(folder.resolve().parent.iterdir())[:_FOLDERS]:
            if place == folder.resolve() or not (place / "results.json").is_file():
                continue
            stored = _read(place / "config.json", schemas.ConfigFile)
            if stored is None or not _comparable(stored, mine):
                continue
            found = _read(place / "results.json", schemas.ResultsFile)
            if found is not None and found["test"] is not None:
                yield folder.parent / place.name, stored, found


def _comparable(stored: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    one, other = stored["config"], mine["config"]
    return (
        stored["kind"] == mine["kind"]
        and stored.get("data") == mine.get("data") is not None
        and all(one.get(name) == other.get(name) for name in _SAME)
        and _is_scratch(stored) != _is_scratch(mine)
    )


def _is_scratch(stored: Mapping[str, Any]) -> bool:
    return dotted(stored["config"]).get("mode") == _SCRATCH


def _row(
    name: str, stored: Mapping[str, Any], test: Mapping[str, Any], mine: Any
) -> list[Any]:
    one, other = dotted(stored["config"]), dotted(mine["config"])
    differ = [
        f"{spelled(key)} {one[key]}"
        for key in one
        if one[key] != other.get(key) and key not in ("out", "mode") and "." not in key
    ]
    start = "random weights"
    if not _is_scratch(stored):
        start = f"the pretrained encoder, mode {one['mode']}"
    shares = [percent(test[key]) for key in ("accuracy", "macro_f1")]
    return [name, start, *shares, ", ".join(differ) or None]


def _gain(pretrained: Mapping[str, Any], scratch: Mapping[str, Any]) -> str:
    if None in (*pretrained.values(), *scratch.values()):
        return ""
    points = 100 * (pretrained["value"] - scratch["value"])
    if pretrained["low"] > scratch["high"]:
        return f"Pretraining helps: {points:+.1f} points of accuracy."
    if pretrained["high"] < scratch["low"]:
        return f"Pretraining hurts here: {points:+.1f} points of accuracy."
    return (
        f"Pretraining makes {points:+.1f} points of accuracy, which may be chance: the "
        "intervals overlap."
    )


def _read(path: pathlib.Path, kind: Any) -> Any:
    """The content of a JSON file; None if it is missing or damaged."""
    with contextlib.suppress(CheckpointError):
        return schemas.read(path, kind, "delete it")
    return None
