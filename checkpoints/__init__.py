"""Checkpoints and artefacts: what a run saves, and what the next stage loads."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage.checkpoints.errors import CheckpointError as CheckpointError
    from afterimage.checkpoints.errors import RunLocked as RunLocked
    from afterimage.checkpoints.errors import SaveError as SaveError
    from afterimage.checkpoints.files import RunLock as RunLock
    from afterimage.checkpoints.inspect import list_steps as list_steps
    from afterimage.checkpoints.inspect import prune as prune
    from afterimage.checkpoints.inspect import show as show
    from afterimage.checkpoints.inspect import verify as verify
    from afterimage.checkpoints.manifest import Finding as Finding
    from afterimage.checkpoints.store import Store as Store
    from afterimage.checkpoints.trees import TransferReport as TransferReport
    from afterimage.checkpoints.trees import transfer as transfer
    from afterimage.checkpoints.weights import read_classifier as read_classifier
    from afterimage.checkpoints.weights import read_encoder as read_encoder
    from afterimage.checkpoints.weights import write_classifier as write_classifier
    from afterimage.checkpoints.weights import write_encoder as write_encoder


# Reading an encoder needs neither Orbax nor JAX.
__getattr__, __dir__ = exports(__name__, __file__)
