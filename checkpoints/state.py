"""The arrays of a checkpoint, written and read by Orbax."""

import logging
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from afterimage.checkpoints import pytrees
from afterimage.checkpoints.errors import CheckpointError


def _without_traces() -> None:
    """Keep the traces of Orbax's threads off the terminal when a save fails.

    The error itself is raised to the caller that waits for the save. Orbax also logs it
    from each of its threads, and TensorStore calls back into closed event loops.
    """
    logging.getLogger("absl").addFilter(
        lambda record: "_SignalingThread.run() raised" not in record.getMessage()
    )
    shown = sys.unraisablehook

    def show(unraisable: Any) -> None:
        late = isinstance(unraisable.exc_value, RuntimeError)
        if not (late and str(unraisable.exc_value) == "Event loop is closed"):
            shown(unraisable)

    sys.unraisablehook = show


_without_traces()

_NO_LIMIT = 2**31 - 1
"""Seconds, 68 years. Orbax measures its limit by the wall clock, which a laptop that
sleeps, or a clock that is put right, moves by hours."""


def write(folder: pathlib.Path, arrays: Mapping[str, Any]) -> Any:
    """Start Orbax on {path: array}; None when there is nothing to write."""
    # Orbax refuses arrays without elements; the manifest has their shape and dtype.
    some = {path: array for path, array in arrays.items() if array.size}
    if not some:
        return None
    context = ocp.Context()
    context.async_options.create_directories_asynchronously = False
    if jax.process_count() == 1:  # others, and not this disk, may keep us waiting
        context.async_options.timeout_secs = _NO_LIMIT
    context.memory_options.deepcopy_host_arrays = False  # they are our own copies
    with context:
        return ocp.save_async(str(folder), some)


def require_written(folder: pathlib.Path) -> None:
    """Raise CheckpointError where what `write` began has left no arrays in a folder."""
    # Orbax only warns when it does not find its own files.
    if not any(folder.glob("*/manifest.ocdbt")):
        raise CheckpointError(f"Orbax left no arrays in {folder}")


def read(
    folder: pathlib.Path, leaves: Mapping[str, Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """{path: array} as the manifest lists them, each with its own dtype.

    Raises CheckpointError where Orbax gives others, and whatever Orbax raises.
    """
    flat = {
        path: np.empty(leaf["shape"], jnp.dtype(leaf["dtype"]))
        for path, leaf in leaves.items()
    }
    some = {path: array for path, array in flat.items() if array.size}
    if some:
        flat |= ocp.load(str(folder), some)
    wrong = pytrees.differences(flat, leaves)
    if wrong:
        raise CheckpointError("; ".join(wrong))
    return flat
