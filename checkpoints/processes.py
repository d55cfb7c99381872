"""Several processes of one job: the first does what concerns files, the others hear."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_main_process() -> bool:
    """Whether this is process 0, the only one to read and write a run folder."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process gets here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_main_process(value: int) -> int:
    """Process 0's 32-bit integer, on every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def array_from_main(array: np.ndarray) -> np.ndarray:
    """Process 0's array, bit for bit; the others give one of its shape and dtype."""
    if jax.process_count() == 1 or not array.size:
        return array
    bits = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    found = np.asarray(multihost_utils.broadcast_one_to_all(bits))
    return found.view(array.dtype).reshape(array.shape)


def json_from_main(value: Any) -> Any:
    """Process 0's JSON value, on every process."""
    if jax.process_count() == 1:
        return value
    data = json.dumps(value).encode() if is_main_process() else b""
    size = from_main_process(len(data))
    bits = np.frombuffer(data.ljust(size, b" "), np.uint8)
    return json.loads(array_from_main(bits).tobytes())


def in_main(action: Callable[[], Any], refusal: Exception) -> Any:
    """The JSON value that `action` returns in process 0, on every process.

    What it raises there is raised there, and `refusal` in the others, so that none
    waits for a process that has ended. Every process must call this.
    """
    if jax.process_count() == 1:
        return action()
    value = error = None
    if is_main_process():
        try:
            value = action()
        except BaseException as raised:
            error = raised
    if from_main_process(int(error is not None)):
        raise refusal if error is None else error
    return json_from_main(value)
