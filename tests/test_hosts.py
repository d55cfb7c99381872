"""What the environment says about other processes, and what is wrong with it."""

import os

import jax
import pytest

from afterimage import hosts
from afterimage.errors import UserError
from afterimage.training import batches

ADDRESS = {"JAX_COORDINATOR_ADDRESS": "host0:1234"}
GOOD = ADDRESS | {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


@pytest.fixture
def joined(monkeypatch):
    """The calls that JAX would get."""
    calls = []
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORD", "JAX_NUM", "JAX_PROC")):
            monkeypatch.delenv(name)
    monkeypatch.delenv("AFTERIMAGE_HOSTS", raising=False)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **more: calls.append((args, more))
    )
    return calls


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, []),
        (GOOD, [(("host0:1234",), {"num_processes": 4, "process_id": 3})]),
        (GOOD | {"AFTERIMAGE_HOSTS": "none"}, []),
        ({"AFTERIMAGE_HOSTS": "auto"}, [((), {})]),
        ({"SLURM_STEP_NUM_TASKS": "2"}, []),
    ],
)
def test_what_joins(monkeypatch, joined, given, expected):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    hosts.join()
    assert joined == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"AFTERIMAGE_HOSTS": "all"}, "AFTERIMAGE_HOSTS=all: must be auto"),
        (ADDRESS, r"JAX_NUM_PROCESSES=\(not set\)"),
        (GOOD | {"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4: the processes must be"),
        (GOOD | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two"),
        (GOOD | {"JAX_COORDINATOR_ADDRESS": "host0"}, "must be HOST:PORT"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch, joined, given, message):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        hosts.join()
    assert joined == []


def test_auto_without_a_job_says_how_to_start_one(monkeypatch, joined):
    def initialize():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setenv("AFTERIMAGE_HOSTS", "auto")
    with pytest.raises(UserError, match=r"no job was found here.*srun or mpirun"):
        hosts.join()


@pytest.mark.parametrize("number", ["0", "1"])
def test_one_process_of_several_that_work_alone_says_so(
    monkeypatch, joined, capsys, number
):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", number)
    hosts.join()
    said = capsys.readouterr().err
    assert ("AFTERIMAGE_HOSTS=auto" in said) == (number == "0")


def test_some_devices_of_one_process_of_several_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="2 processes form this job"):
        batches.make_mesh(1)
