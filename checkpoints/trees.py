"""Trees of arrays and their paths: `encoder/stages/1/conv/kernel` names a leaf.

Optimiser rules, transfer reports, checkpoints and logs all use this name. Nested dicts
need no JAX; functions of any pytree import it.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from afterimage.checkpoints.errors import CheckpointError


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {path: leaf}, keys joined by `/`, in sorted order of keys.

    Integer keys (Flax names list items by number) are written as digits. Only mappings
    are descended into: arrays, lists and tuples are leaves.
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

    The paths of nested dicts are those of `flatten`. Raises
    ValueError where two leaves would have one path, or one path would lead through
    another leaf.
    """
    import jax

    flat: dict[str, Any] = {}
    twice = []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = "/".join(_name(key) for key in keys)
        if path in flat:
            twice.append(path)
        flat[path] = leaf
    through = [path for path in flat if any(up in flat for up in _parents(path))]
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
        raise TypeError("A checkpoint holds arrays only:\n  " + "\n  ".join(wrong))


def spec(leaf: Any) -> dict[str, Any]:
    """Shape and dtype of an array, as JSON."""
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def differences(
    wanted: Mapping[str, Any], saved: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Every way in which a target's leaves differ from the saved ones, by path."""
    lines = [f"{p}: in the target, not saved" for p in sorted(set(wanted) - set(saved))]
    lines += [
        f"{p}: saved, not in the target" for p in sorted(set(saved) - set(wanted))
    ]
    for path in sorted(set(wanted) & set(saved)):
        want, have = spec(wanted[path]), dict(saved[path])
        if want["shape"] != have["shape"] or want["dtype"] != have["dtype"]:
            lines.append(f"{path}: saved {describe(have)}, target {describe(want)}")
    return lines


def require_fit(target: Any, leaves: Mapping[str, Any], path: pathlib.Path) -> None:
    """Raise CheckpointError, listing all, where a target is not of the saved leaves."""
    wrong = differences(paths(target), leaves)
    if wrong:
        raise CheckpointError(
            f"{path} does not fit what it is to be restored into; nothing was loaded. "
            f"{len(wrong)} differences:\n  " + "\n  ".join(wrong)
        )


def describe(leaf: Mapping[str, Any]) -> str:
    """`float32 [3, 3, 64]` of a JSON spec."""
    return f"{leaf['dtype']} {list(leaf['shape'])}"


def rebuild(target: Any, flat: Mapping[str, np.ndarray]) -> Any:
    """The target's tree with the arrays of `flat`, each where the target's leaf is."""
    import jax

    leaves = [place(leaf, flat[path]) for path, leaf in paths(target).items()]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def place(target: Any, array: np.ndarray) -> Any:
    """An array as the kind of array `target` is, with its sharding."""
    import jax
    import jax.numpy as jnp

    if isinstance(target, np.ndarray | np.generic):
        return array
    sharding = getattr(target, "sharding", None)
    # An uncommitted array may meet arrays on other devices; a committed one may not.
    if sharding is None or not getattr(target, "committed", True):
        return jnp.asarray(array)
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: np.asarray(array[index])
    )


def to_host(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Own copies of all leaves: the originals may be donated right afterwards.

    Leaves come back as NumPy arrays, except those spread over several processes, which
    no host has whole: they are copied on their devices.
    """
    import jax

    for leaf in flat.values():
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            leaf.copy_to_host_async()  # all transfers run while the first is awaited
    return {path: _copied(leaf) for path, leaf in flat.items()}


def _copied(leaf: Any) -> Any:
    import jax
    import jax.numpy as jnp

    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if not leaf.is_fully_replicated:
            return jnp.copy(leaf)
        leaf = leaf.addressable_data(0)
    # On CPU np.asarray would be a view of the very buffer that is donated.
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


def _name(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise CheckpointError(f"unknown kind of pytree key: {key!r}")


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]
