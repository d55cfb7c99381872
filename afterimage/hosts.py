"""Several processes as one job: how they find each other.

JAX connects them; this file reads the environment and says what is wrong with it.
"""

import os
import sys

import jax

from afterimage.errors import UserError

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_LAUNCHERS = {"Slurm": "SLURM_STEP_NUM_TASKS", "Open MPI": "OMPI_COMM_WORLD_SIZE"}
"""{launcher: the variable in which it says how many processes it started}."""


def join() -> None:
    """Join several processes into one job, if the environment says so.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID name the job; with
    AFTERIMAGE_HOSTS=auto JAX finds them itself (TPU pods, Slurm, Open MPI, Kubernetes),
    and with AFTERIMAGE_HOSTS=none every process works alone. Call it before anything
    else touches a device.

    Raises:
      UserError: variables that are missing, contradict each other or name no job.
    """
    wish = os.environ.get("AFTERIMAGE_HOSTS", "")
    if wish not in ("", "auto", "none"):
        raise UserError(
            f"AFTERIMAGE_HOSTS={wish}: must be auto (one job of all processes that "
            "Slurm, Open MPI, Kubernetes or a TPU pod started) or none"
        )
    named = bool(os.environ.get(_VARIABLES[0]))
    if wish == "none" or jax.distributed.is_initialized():
        return
    if not named and wish != "auto":
        _warn_alone()
        return
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its handler would ignore SIGTERM until training begins.
    jax.config.update("jax_enable_preemption_service", False)
    if named:
        address, count, number = _named()
        if number == 0:
            print(
                f"Waiting for {count} processes at {address} (at most 5 minutes) ...",
                file=sys.stderr,
                flush=True,
            )
        jax.distributed.initialize(address, num_processes=count, process_id=number)
        return
    try:
        jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"AFTERIMAGE_HOSTS=auto: no job was found here ({error}). Start the "
            "command with srun or mpirun, on every host of a TPU pod, or in an indexed "
            f"Kubernetes job; or set {', '.join(_VARIABLES)}"
        ) from error


def _named() -> tuple[str, int, int]:
    """(address, number of processes, number of this one) of the three variables."""
    text = {name: os.environ.get(name, "") for name in _VARIABLES}
    address, count, number = text.values()
    problems = []
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        problems.append("the address must be HOST:PORT, the same in every process")
    if not (count.isdecimal() and number.isdecimal() and int(number) < int(count)):
        problems.append("the processes must be numbered 0, 1, …, up to their number")
    if problems:
        known = ", ".join(
            f"{name}={value or '(not set)'}" for name, value in text.items()
        )
        raise UserError(f"{known}: {'; '.join(problems)}")
    return address, int(count), int(number)


def _warn_alone() -> None:
    """Says so if a launcher started several processes that do not form a job."""
    for launcher, name in _LAUNCHERS.items():
        count = os.environ.get(name, "")
        if count.isdecimal() and int(count) > 1 and _first():
            print(
                f"{launcher} started {count} processes, and each works alone. To make "
                "them one job, set AFTERIMAGE_HOSTS=auto (or none, if that is meant)",
                file=sys.stderr,
                flush=True,
            )


def _first() -> bool:
    names = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    return next((os.environ[n] for n in names if n in os.environ), "0") == "0"
