"""A module split once: its structure is static, its arrays are plain nested dicts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from afterimage.checkpoints.trees import flatten, unflatten

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """A module as pure functions of (params, stats); hashable, jit may close over it.

    `dtype` is what floating inputs, and with them all arithmetic, are cast to;
    parameters and norm statistics stay float32, and so do outputs.
    """

    graph: nnx.GraphDef
    dtype: str = "float32"

    @classmethod
    def create(
        cls, module: nnx.Module, *, dtype: str = "float32"
    ) -> tuple["Network", Tree, Tree]:
        """(network, params, stats) of a module; the module itself is not kept."""
        graph, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
        return cls(graph, dtype), _plain(params), _plain(stats)

    def apply(
        self,
        params: Mapping[str, Any],
        stats: Mapping[str, Any],
        *args: Any,
        train: bool = False,
        method: str | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Tree]:
        """(output, stats) of the module's `__call__`, or of the method named.

        `stats` comes back as it was unless `train`.
        """
        module = nnx.merge(self.graph, _numbered(params), _numbered(stats))
        call = module if method is None else getattr(module, method)
        args = jax.tree.map(lambda x: _cast(x, self.dtype), args)
        out = call(*args, train=train, **kwargs)
        out = jax.tree.map(lambda x: _cast(x, "float32"), out)
        if not train:
            return out, dict(stats)
        return out, _plain(nnx.state(module, nnx.BatchStat))


def _cast(x: Any, dtype: str) -> Any:
    floating = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.asarray(x, dtype) if floating else x


def _plain(state: Any) -> Tree:
    """NNX state -> nested dicts with string keys (NNX numbers list items)."""
    return unflatten(flatten(nnx.to_pure_dict(state)))


def _numbered(tree: Mapping[str, Any]) -> dict[Any, Any]:
    """The inverse of `_plain`: digits become the numbers NNX expects."""
    return {
        int(key) if key.isdigit() else key: _numbered(value)
        if isinstance(value, Mapping)
        else value
        for key, value in tree.items()
    }
