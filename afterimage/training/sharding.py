"""Where the training state lies: in full on every device, or a part on each.

Sharded, each device keeps 1/n of the parameters, moments and running means, as ZeRO-3
(Rajbhandari et al. 2020) and FSDP do: a step gathers the parameters for its forward and
backward pass, and each device gets the sum of its part of the gradient.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from afterimage.training.batches import replicated

_LEAST = 2**10
"""Numbers in the smallest array that is split; biases and norms are kept whole."""


def part(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """The sharding of one array: split along the longest axis that the devices divide.

    Arrays of fewer than 1,024 numbers, or without such an axis, are kept in full.
    """
    fit = [axis for axis, size in enumerate(shape) if size % mesh.size == 0]
    if np.prod(shape, dtype=np.int64) < _LEAST or not fit:
        return replicated(mesh)
    # Among equals the last, which holds a kernel's output channels.
    longest = max(fit, key=lambda axis: (shape[axis], axis))
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))


def parts(tree: Any, mesh: Mesh) -> Any:
    """The sharding of each leaf (`part`), from arrays or their shapes."""
    return jax.tree.map(lambda leaf: part(leaf.shape, mesh), tree)


def spread(tree: Any, mesh: Mesh) -> Any:
    """Arrays, the same on every process, each split over the devices (`part`).

    Only what a device keeps is copied to it.
    """

    def put(leaf: Any) -> Any:
        sharding = part(np.shape(leaf), mesh)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(
            host.shape, sharding, lambda index: host[index]
        )

    return jax.tree.map(put, tree)


def whole(tree: Any) -> Any:
    """Host copies of arrays that are split over several processes; others unchanged.

    A collective: every process must call it.
    """

    def gather(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        sharding = NamedSharding(leaf.sharding.mesh, PartitionSpec())  # pyright: ignore[reportAttributeAccessIssue]
        full = jax.jit(lambda x: x, out_shardings=sharding)(leaf)
        return np.asarray(full.addressable_data(0))

    return jax.tree.map(gather, tree)


def initialising(sharded: bool) -> contextlib.AbstractContextManager[Any]:
    """Where a model is made: on the host if no device may have to hold all of it."""
    if not sharded:
        return contextlib.nullcontext()
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return contextlib.nullcontext()


def sharded_loss(loss: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """loss(params, stats, …) of split arrays: gathers them, computes as on one device.

    The gradient is split like the parameters. Reverse mode only.
    """

    def gathered(leaf: Any) -> Any:
        return _gather(leaf, replicated(mesh), part(leaf.shape, mesh))

    def run(params: Any, stats: Any, *rest: Any) -> Any:
        return loss(*jax.tree.map(gathered, (params, stats)), *rest)

    return run


def sharded_step(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A training step whose new state is split over the devices as the old one is."""

    def run(state: Any, batch: Any, data: Any) -> Any:
        after, report = step(state, batch, data)
        return jax.lax.with_sharding_constraint(after, parts(after, mesh)), report

    return run


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(leaf: Any, full: NamedSharding, split: NamedSharding) -> Any:
    del split
    return jax.lax.with_sharding_constraint(leaf, full)


def _forward(leaf: Any, full: NamedSharding, split: NamedSharding) -> Any:
    return _gather(leaf, full, split), None


def _backward(full: NamedSharding, split: NamedSharding, _: None, gradient: Any) -> Any:
    # The sum over the devices' batches, of which each device needs only its part.
    del full
    return (jax.lax.with_sharding_constraint(gradient, split),)


_gather.defvjp(_forward, _backward)
