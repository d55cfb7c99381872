"""Weights from one tree into another, by path, with a report of every leaf."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from afterimage.checkpoints import trees
from afterimage.checkpoints.errors import TransferError, UsageError
from afterimage.checkpoints.trees import flatten

STATUSES = ("loaded", "re-initialised", "ignored", "mismatched")


@dataclass(frozen=True)
class Row:
    """One leaf of a transfer.

    `status`: loaded from the source; re-initialised (only the target has it, its own
    value stays); ignored (only the source has it); mismatched (both have it, shape or
    kind of dtype differ, the target's value stays). `source` and `target` are
    {shape, dtype} or None; `origin` is the source's path before renaming. `expected`:
    loaded, or covered by `may_differ`.
    """

    path: str
    status: str
    source: dict[str, Any] | None
    target: dict[str, Any] | None
    origin: str | None
    expected: bool

    @property
    def count(self) -> int:
        """Numbers in the leaf: the target's, else the source's."""
        return math.prod((self.target or self.source or {"shape": []})["shape"])


@dataclass(frozen=True)
class Report:
    """Every leaf of a transfer, in the order of paths."""

    rows: tuple[Row, ...]

    def of(self, status: str) -> list[Row]:
        """The rows with one status."""
        return [row for row in self.rows if row.status == status]

    @property
    def unexpected(self) -> list[Row]:
        """Rows that are an error unless the user says that they may differ."""
        return [row for row in self.rows if not row.expected]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON: totals by status, and every row."""
        totals = {
            status: {
                "leaves": len(self.of(status)),
                "parameters": sum(row.count for row in self.of(status)),
            }
            for status in STATUSES
        }
        return {"totals": totals, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        lines = _lines(self.rows)
        for status in STATUSES:
            rows = self.of(status)
            total = sum(row.count for row in rows)
            lines.append(f"{status}: {len(rows)} leaves, {total:,} parameters")
        return "\n".join(lines)


def transfer(
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    *,
    rename: Iterable[tuple[str, str]] = (),
    may_differ: Iterable[str] = (),
) -> tuple[dict[str, Any], Report]:
    """(tree, Report): the target's nested dict with the source's weights, by path.

    `rename` are (regular expression, replacement) applied in order to the source's
    paths with `re.sub`; each must change something. A floating-point leaf takes the
    target's floating-point dtype, and its sharding. Leaves that are not loaded keep
    the target's value; each is an error unless a regular expression of `may_differ`
    is found in its path.

    Raises TransferError with all such leaves, before anything is loaded; UsageError for
    rules that match nothing or send two leaves to one path.
    """
    flat_target = flatten(target)
    origins = _renamed(flatten(source), tuple(rename))
    patterns = [re.compile(pattern) for pattern in may_differ]
    rows = []
    for path in sorted({*origins, *flat_target}):
        origin, leaf = origins.get(path, (None, None))
        status = _status(leaf, flat_target.get(path))
        covered = any(pattern.search(path) for pattern in patterns)
        expected = status == "loaded" or covered
        specs = (_spec(leaf), _spec(flat_target.get(path)))
        rows.append(Row(path, status, *specs, origin, expected))
    report = Report(tuple(rows))
    if report.unexpected:
        raise TransferError(
            f"{len(report.unexpected)} leaves do not fit; nothing was loaded:\n  "
            + "\n  ".join(_lines(report.unexpected))
            + "\nRename the source's paths, or say which paths may differ.",
            report,
        )
    values = {
        row.path: trees.place(
            flat_target[row.path],
            np.array(origins[row.path][1], flat_target[row.path].dtype),
        )
        for row in report.of("loaded")
    }
    return _filled(target, values, ""), report


def _renamed(
    flat: Mapping[str, Any], rename: Sequence[tuple[str, str]]
) -> dict[str, tuple[str, Any]]:
    """{new path: (old path, leaf)}; every rule is used and no two leaves meet."""
    used = [False] * len(rename)
    result: dict[str, tuple[str, Any]] = {}
    meet = []
    for origin, leaf in flat.items():
        path = origin
        for n, (pattern, replacement) in enumerate(rename):
            changed = re.sub(pattern, replacement, path)
            used[n] |= changed != path
            path = changed
        if path in result:
            meet.append(f"{result[path][0]} and {origin} both become {path}")
        result[path] = (origin, leaf)
    idle = [
        f"the rule {pattern!r} -> {replacement!r} changes no path"
        for (pattern, replacement), hit in zip(rename, used)
        if not hit
    ]
    if idle or meet:
        raise UsageError("Renaming fails: " + "; ".join([*idle, *meet]) + ".")
    return result


def _status(source: Any, target: Any) -> str:
    if target is None:
        return "ignored"
    if source is None:
        return "re-initialised"
    same_shape = tuple(source.shape) == tuple(target.shape)
    both_float = all(jnp.issubdtype(x.dtype, jnp.floating) for x in (source, target))
    return (
        "loaded"
        if same_shape and (both_float or source.dtype == target.dtype)
        else "mismatched"
    )


def _spec(leaf: Any) -> dict[str, Any] | None:
    return None if leaf is None else trees.spec(leaf)


def _filled(target: Mapping[Any, Any], values: Mapping[str, Any], prefix: str) -> dict:
    return {
        key: _filled(value, values, f"{prefix}{key}/")
        if isinstance(value, Mapping)
        else values.get(f"{prefix}{key}", value)
        for key, value in target.items()
    }


def _lines(rows: Sequence[Row]) -> list[str]:
    """One aligned line a leaf: status, path, shapes."""
    status = max((len(row.status) for row in rows), default=0)
    path = max((len(row.path) for row in rows), default=0)
    return [
        f"{row.status:<{status}}  {row.path:<{path}}  {_shapes(row)}" for row in rows
    ]


def _shapes(row: Row) -> str:
    renamed = f" (was {row.origin})" if row.origin not in (None, row.path) else ""
    sides = [trees.describe(side) for side in (row.source, row.target) if side]
    if row.status == "mismatched":
        return f"source {sides[0]}, target {sides[1]}{renamed}"
    same = len(set(sides)) == 1
    return (sides[0] if same else " -> ".join(sides)) + renamed
