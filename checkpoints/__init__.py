"""What passes between stages and outlives a run."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage.checkpoints.errors import CheckpointError, RunLocked, SaveError
    from afterimage.checkpoints.files import RunLock
    from afterimage.checkpoints.inspect import list_steps, prune, show, verify
    from afterimage.checkpoints.manifest import Finding
    from afterimage.checkpoints.store import Store
    from afterimage.checkpoints.transfer import Report, transfer
    from afterimage.checkpoints.weights import (
        read_classifier,
        read_encoder,
        write_classifier,
        write_encoder,
    )

__all__ = [
    "CheckpointError",
    "Finding",
    "Report",
    "RunLock",
    "RunLocked",
    "SaveError",
    "Store",
    "list_steps",
    "prune",
    "read_classifier",
    "read_encoder",
    "show",
    "transfer",
    "verify",
    "write_classifier",
    "write_encoder",
]

# Reading an encoder needs neither Orbax nor JAX.
__getattr__, __dir__ = exports(
    __name__,
    {
        "CheckpointError": "afterimage.checkpoints.errors",
        "RunLocked": "afterimage.checkpoints.errors",
        "SaveError": "afterimage.checkpoints.errors",
        "Store": "afterimage.checkpoints.store",
        "RunLock": "afterimage.checkpoints.files",
        "read_encoder": "afterimage.checkpoints.weights",
        "write_encoder": "afterimage.checkpoints.weights",
        "read_classifier": "afterimage.checkpoints.weights",
        "write_classifier": "afterimage.checkpoints.weights",
        "Finding": "afterimage.checkpoints.manifest",
        "list_steps": "afterimage.checkpoints.inspect",
        "prune": "afterimage.checkpoints.inspect",
        "show": "afterimage.checkpoints.inspect",
        "verify": "afterimage.checkpoints.inspect",
        "Report": "afterimage.checkpoints.transfer",
        "transfer": "afterimage.checkpoints.transfer",
    },
)
