"""Trees of arrays by path, `encoder/stages/1/conv/kernel`; weight transfer.

Optimiser rules, transfer reports, checkpoints and logs all use these paths. Nested
dicts need no JAX; only functions on arbitrary pytrees import it.
"""

import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from afterimage.checkpoints.errors import CheckpointError, TransferError, UsageError


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {path: leaf}, keys joined by `/`, in sorted order of keys.

    Integer keys (Flax names list items by number) are written as digits. Only mappings
    are flattened: arrays, lists and tuples are leaves.
    """
    flat: dict[str, Any] = {}
    for key in sorted(tree, key=str):
        value, path = tree[key], f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, path + "/")
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{path: leaf} -> nested dict with string keys; the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def paths(tree: Any) -> dict[str, Any]:
    """{path: leaf} of any pytree; dict keys, attributes and positions joined by `/`.

    The paths of nested dicts are those of `flatten`. Raises ValueError if two leaves
    would have the same path, or one path would lead through another leaf.
    """
    import jax

    flat: dict[str, Any] = {}
    twice = []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path in flat:
            twice.append(path)
        flat[path] = leaf
    through = []
    for path in flat:
        *parents, _ = path.split("/")
        ups = ("/".join(parents[: n + 1]) for n in range(len(parents)))
        through += [path] if any(up in flat for up in ups) else []
    if twice or through:
        raise ValueError(
            f"These leaves share a path: {sorted({*twice, *through})}. Rename the keys "
            "that contain `/` or differ only in type."
        )
    return flat


def require_arrays(flat: Mapping[str, Any]) -> None:
    """Raise TypeError, listing all, unless every leaf is a plain array."""
    wrong = [f"{path}: {why}" for path, leaf in flat.items() if (why := _unfit(leaf))]
    if wrong:
        raise TypeError(
            "A checkpoint can contain only arrays:\n  " + "\n  ".join(wrong)
        )


def spec(leaf: Any) -> dict[str, Any]:
    """Shape and dtype of an array, as JSON."""
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def differences(
    wanted: Mapping[str, Any], saved: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """All differences between a target's leaves and the saved ones, by path."""
    lines = [
        f"{p}: in the target, but not saved" for p in sorted(set(wanted) - set(saved))
    ]
    lines += [
        f"{p}: saved, but not in the target" for p in sorted(set(saved) - set(wanted))
    ]
    for path in sorted(set(wanted) & set(saved)):
        want, have = spec(wanted[path]), dict(saved[path])
        if want["shape"] != have["shape"] or want["dtype"] != have["dtype"]:
            lines.append(f"{path}: saved {describe(have)}, target {describe(want)}")
    return lines


def require_fit(target: Any, leaves: Mapping[str, Any], path: pathlib.Path) -> None:
    """Raise CheckpointError, listing all differences, if a target does not fit."""
    wrong = differences(paths(target), leaves)
    if wrong:
        raise CheckpointError(
            f"{path} does not match the target; nothing was loaded. {len(wrong)} "
            "differences:\n  " + "\n  ".join(wrong)
        )


def describe(leaf: Mapping[str, Any]) -> str:
    """`float32 [3, 3, 64]` of a JSON spec."""
    return f"{leaf['dtype']} {list(leaf['shape'])}"


def rebuild(target: Any, flat: Mapping[str, np.ndarray]) -> Any:
    """The target's tree with the arrays of `flat`, placed like the target's leaves."""
    import jax

    leaves = [place(leaf, flat[path]) for path, leaf in paths(target).items()]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def place(target: Any, array: np.ndarray) -> Any:
    """An array converted to the type of `target`, with its sharding."""
    import jax
    import jax.numpy as jnp

    if isinstance(target, np.ndarray | np.generic):
        return array
    sharding = getattr(target, "sharding", None)
    # An uncommitted array may be combined with arrays on other devices.
    if sharding is None or not getattr(target, "committed", True):
        return jnp.asarray(array)
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: np.asarray(array[index])
    )


def to_host(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of all leaves; the originals may be donated right afterwards.

    Leaves come back as NumPy arrays, except those sharded over several processes, which
    no host holds in full; these are copied on their devices.
    """
    import jax

    for leaf in flat.values():
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            leaf.copy_to_host_async()  # all transfers run in parallel
    return {path: _copied(leaf) for path, leaf in flat.items()}


def _copied(leaf: Any) -> Any:
    import jax
    import jax.numpy as jnp

    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if not leaf.is_fully_replicated:
            return jnp.copy(leaf)
        leaf = leaf.addressable_data(0)
    # On CPU np.asarray would be a view of the buffer that is donated.
    return np.array(leaf, order="C", copy=True)


def _unfit(leaf: Any) -> str | None:
    import jax
    import jax.numpy as jnp

    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return f"{type(leaf).__name__}; make it an array, e.g. jnp.int32(...)"
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "a typed key; save jax.random.key_data(key)"
    if leaf.dtype.kind in "OUSMm":
        return f"dtype {leaf.dtype}; only numbers and booleans"
    return None


STATUSES = ("loaded", "re-initialised", "ignored", "mismatched")


@dataclass(frozen=True)
class Row:
    """One leaf of a transfer.

    `status`: loaded from the source; re-initialised (only the target has it and keeps
    its value); ignored (only the source has it); mismatched (both have it, but shape or
    kind of dtype differ; the target keeps its value). `source` and `target` are {shape,
    dtype} or None; `origin` is the source's path before renaming. `expected`: loaded,
    or covered by `may_differ`.
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

    @property
    def shapes(self) -> str:
        """Both shapes, or one where they agree, and the source's original path."""
        renamed = (
            f" (was {self.origin})" if self.origin not in (None, self.path) else ""
        )
        sides = [describe(side) for side in (self.source, self.target) if side]
        if self.status == "mismatched":
            return f"source {sides[0]}, target {sides[1]}{renamed}"
        return (" -> ".join(dict.fromkeys(sides))) + renamed


@dataclass(frozen=True)
class TransferReport:
    """Every leaf of a transfer, ordered by path."""

    rows: tuple[Row, ...]

    def of(self, status: str) -> list[Row]:
        """The rows with one status."""
        return [row for row in self.rows if row.status == status]

    @property
    def unexpected(self) -> list[Row]:
        """Rows that are errors, because the user did not allow them to differ."""
        return [row for row in self.rows if not row.expected]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON: totals by status, and every row."""
        totals = {
            status: {"leaves": len(rows), "parameters": sum(row.count for row in rows)}
            for status in STATUSES
            for rows in [self.of(status)]
        }
        return {"totals": totals, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        totals = [
            f"{status}: {total['leaves']} leaves, {total['parameters']:,} parameters"
            for status, total in self.to_dict()["totals"].items()
        ]
        return "\n".join([*_lines(self.rows), *totals])


def transfer(
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    *,
    rename: Sequence[tuple[str, str]] = (),
    may_differ: Iterable[str] = (),
) -> tuple[dict[str, Any], TransferReport]:
    """(tree, report): the target's nested dict with the source's weights, by path.

    `rename` are (regular expression, replacement) applied in order to the source's
    paths with `re.sub`; each must change something. A floating-point leaf is cast to
    the target's floating-point dtype; loaded leaves take its sharding. Leaves that are
    not loaded keep the target's value; each is an error unless a regular expression in
    `may_differ` matches its path.

    Raises TransferError with all such leaves, before anything is loaded; UsageError for
    rules that match nothing or map two leaves to one path.
    """
    wanted, origins = flatten(target), _renamed(flatten(source), rename)
    rows = []
    for path in sorted({*origins, *wanted}):
        origin, leaf = origins.get(path, (None, None))
        status = _status(leaf, wanted.get(path))
        given, own = (None if x is None else spec(x) for x in (leaf, wanted.get(path)))
        covered = any(re.search(pattern, path) for pattern in may_differ)
        expected = status == "loaded" or covered
        rows.append(Row(path, status, given, own, origin, expected))
    report = TransferReport(tuple(rows))
    if report.unexpected:
        raise TransferError(
            f"{len(report.unexpected)} leaves do not match; nothing was loaded:\n  "
            + "\n  ".join(_lines(report.unexpected))
            + "\nRename the source's paths, or allow these paths to differ.",
            report,
        )
    for row in report.of("loaded"):
        leaf = wanted[row.path]
        wanted[row.path] = place(leaf, np.array(origins[row.path][1], leaf.dtype))
    return _filled(target, wanted, ""), report


def _renamed(
    flat: Mapping[str, Any], rename: Sequence[tuple[str, str]]
) -> dict[str, tuple[str, Any]]:
    """{new path: (old path, leaf)}; checks that rules match and paths stay distinct."""
    idle = dict.fromkeys(rename)
    result: dict[str, tuple[str, Any]] = {}
    wrong = []
    for origin, leaf in flat.items():
        path = origin
        for rule in rename:
            changed = re.sub(*rule, path)
            if changed != path:
                idle.pop(rule, None)
            path = changed
        if path in result:
            wrong.append(f"{result[path][0]} and {origin} both become {path}")
        result[path] = (origin, leaf)
    wrong += [f"the rule {old!r} -> {new!r} matches no path" for old, new in idle]
    if wrong:
        raise UsageError(f"Cannot rename: {'; '.join(wrong)}.")
    return result


def _status(source: Any, target: Any) -> str:
    import jax.numpy as jnp

    if target is None:
        return "ignored"
    if source is None:
        return "re-initialised"
    both_float = all(jnp.issubdtype(x.dtype, jnp.floating) for x in (source, target))
    same_kind = both_float or source.dtype == target.dtype
    fits = tuple(source.shape) == tuple(target.shape) and same_kind
    return "loaded" if fits else "mismatched"


def _filled(target: Mapping[Any, Any], values: Mapping[str, Any], prefix: str) -> dict:
    """The target's tree, with its original keys, filled with the values by path."""
    return {
        key: _filled(value, values, f"{prefix}{key}/")
        if isinstance(value, Mapping)
        else values[f"{prefix}{key}"]
        for key, value in target.items()
    }


def _lines(rows: Sequence[Row]) -> list[str]:
    """One aligned line per leaf: status, path, shapes."""
    status = max((len(row.status) for row in rows), default=0)
    path = max((len(row.path) for row in rows), default=0)
    return [f"{r.status:<{status}}  {r.path:<{path}}  {r.shapes}" for r in rows]
