"""Joining a Ray cluster, and what runs in its workers."""

import logging
import os
from typing import Any

from afterimage.errors import UserError
from afterimage.runtime import cores


def require_ray() -> Any:
    """The module `ray`, which sends no usage statistics; UserError if it is missing."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError(
            "Ray is not installed: pip install 'afterimage[ray]', on every machine of "
            "the cluster"
        ) from error
    return ray


def connect(address: str | None, *, show: bool = False) -> Any:
    """Join the cluster at `address`, and return the module `ray`.

    `show` prints what the workers print.

    "local" starts one on this machine alone, with a slot per core; None and "auto" are
    Ray's own rules. A cluster that this process has joined already is kept.

    Raises:
      UserError: Ray is missing, or nothing answers at the address.
    """
    ray = require_ray()
    if ray.is_initialized():
        return ray
    own: dict[str, Any] = {}
    if address == "local":
        own = {"num_cpus": cores(), "include_dashboard": False}
    try:
        ray.init(
            address=address,
            log_to_driver=show,
            logging_level=logging.INFO if show else logging.ERROR,
            **own,
        )
    except Exception as error:  # Ray raises this type itself
        raise UserError(
            f"ray={address}: no Ray cluster was joined ({error}). Give HOST:PORT of "
            "its head node, auto on one of its machines, or local"
        ) from error
    return ray


def accelerators(ray: Any) -> tuple[str, int]:
    """(kind, number) of the cluster's devices: GPU, TPU, or CPU cores."""
    found = ray.cluster_resources()
    for kind in ("GPU", "TPU"):
        if count := int(found.get(kind, 0)):
            return kind, count
    return "CPU", max(1, int(found.get("CPU", 1)))


def on_cpu() -> dict[str, str]:
    """The environment of a worker without an accelerator: one core, sums by Gloo."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "NPROC": "1",  # threads of XLA
        "RAY_USAGE_STATS_ENABLED": "0",
    }
