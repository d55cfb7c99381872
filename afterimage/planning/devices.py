"""Accelerators to plan for: peak figures, their source, how to compile for them.

The figures are the vendors': peaks without sparsity, one chip or card.
"""

import contextlib
import dataclasses
import glob
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import AxisType, Mesh

from afterimage.errors import UserError, did_you_mean

_GB, _GIB = 1e9, 2**30
_V5E = "https://docs.cloud.google.com/tpu/docs/v5e"
_V6E = "https://docs.cloud.google.com/tpu/docs/v6e"
_H100 = "https://www.nvidia.com/en-us/data-center/h100/ (SXM)"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/ (SXM)"
_L4 = "https://www.nvidia.com/en-us/data-center/l4/ (half of the rates with sparsity)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of accelerator."""

    title: str
    platform: str
    """tpu or gpu."""
    memory: int
    """Bytes a program may use, by default, of each device."""
    of_memory: str
    """Where that number is from."""
    bandwidth: float
    """Bytes/s to and from the device's memory."""
    flops: Mapping[str, float]
    """FLOPs/s of matrix products by precision, as JAX computes them by default: float32
    is TF32 on a GPU, and one bfloat16 pass on a TPU."""
    link: float
    """Bytes/s from and to other devices, both directions together."""
    source: str
    slices: Mapping[int, str] = dataclasses.field(default_factory=dict)
    """{chips: topology} of a TPU; empty for a GPU."""
    target: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the compiler must know of a GPU; empty for a TPU."""

    def counts(self) -> str:
        """The possible numbers of devices, in words."""
        if self.slices:
            *few, last = map(str, self.slices)
            return f"{', '.join(few)} or {last}"
        return f"1 to {_PER_HOST}, or a multiple of {_PER_HOST}"


_PER_HOST = 8
"""GPUs of one machine."""
_LAYOUTS = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SLICES = {math.prod(map(int, layout.split("x"))): layout for layout in _LAYOUTS}
_XLA = "what XLA leaves to programs"
_THREE_QUARTERS = "JAX's share, XLA_PYTHON_CLIENT_MEM_FRACTION=0.75"


def _gpu(major: int, minor: int, cores: int, **more: Any) -> dict[str, Any]:
    """A GPU of a compute capability with this number of multiprocessors."""
    return {"major": major, "minor": minor, "cores": cores, **more}


KINDS: Mapping[str, Kind] = {
    "tpu-v5e": Kind(
        title="TPU v5e",
        platform="tpu",
        memory=int(15.75 * _GIB),
        of_memory=f"of 16 GiB, {_XLA}",
        bandwidth=819 * _GB,
        flops={"bfloat16": 197e12, "float32": 197e12},
        link=400 * _GB,
        source=_V5E,
        slices=_SLICES,
    ),
    "tpu-v6e": Kind(
        title="TPU v6e",
        platform="tpu",
        memory=int(31.25 * _GIB),
        of_memory=f"of 32 GiB, {_XLA}",
        bandwidth=1638 * _GB,
        flops={"bfloat16": 918e12, "float32": 918e12},
        link=800 * _GB,
        source=_V6E,
        slices=_SLICES,
    ),
    "h100": Kind(
        title="NVIDIA H100 80GB HBM3",
        platform="gpu",
        memory=int(0.75 * 79.1 * _GIB),
        of_memory=f"of 79.1 GiB, {_THREE_QUARTERS}",
        bandwidth=3350 * _GB,
        flops={"bfloat16": 989e12, "float32": 494e12},
        link=900 * _GB,
        source=_H100,
        target=_gpu(9, 0, 132, clock=1.98, cache=50, shared=228, memory=79.1),
    ),
    "h200": Kind(
        title="NVIDIA H200",
        platform="gpu",
        memory=int(0.75 * 139.8 * _GIB),
        of_memory=f"of 139.8 GiB, {_THREE_QUARTERS}",
        bandwidth=4800 * _GB,
        flops={"bfloat16": 989e12, "float32": 494e12},
        link=900 * _GB,
        source=_H200,
        target=_gpu(9, 0, 132, clock=1.98, cache=50, shared=228, memory=139.8),
    ),
    "l4": Kind(
        title="NVIDIA L4",
        platform="gpu",
        memory=int(0.75 * 22.5 * _GIB),
        of_memory=f"of 22.5 GiB, {_THREE_QUARTERS}",
        bandwidth=300 * _GB,
        flops={"bfloat16": 121e12, "float32": 60e12},
        link=64 * _GB,
        source=_L4,
        target=_gpu(8, 9, 58, clock=2.04, cache=48, shared=100, memory=22.5),
    ),
}


@dataclasses.dataclass(frozen=True)
class Devices:
    """A number of devices of one kind, present or not."""

    name: str
    """As typed: h100:8."""
    mesh: Mesh
    kind: Kind | None
    """None for what has no peak figures, such as a CPU."""

    @property
    def title(self) -> str:
        """Number and kind, in words."""
        known = self.kind.title if self.kind else self.mesh.devices.flat[0].device_kind
        return f"{self.mesh.size} x {known}"


def find(name: str) -> Devices:
    """The devices that `h100:8` or `tpu-v5e:16` means; without a number, one.

    `cpu:N` are N devices of this machine's CPU.

    Raises:
      UserError: an unknown kind, a number no topology has, a missing package.
    """
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9_-]*)(?::([0-9]{1,7}))?", name.strip())
    word = match[1].lower().replace("_", "-") if match else name
    known = [*KINDS, "cpu"]
    if match is None or word not in known:
        hint = did_you_mean(word.partition(":")[0], known)
        raise UserError(
            f"devices={name!r}: expected KIND:NUMBER, with a kind of "
            f"{', '.join(known)}{hint}"
        )
    count = int(match[2] or 1)
    _leave_out_absent()
    if word == "cpu":
        return Devices(f"cpu:{count}", _mesh(_cpus(count)), None)
    kind = KINDS[word]
    whole = not kind.slices and (count <= _PER_HOST or count % _PER_HOST == 0)
    if not count or not (count in kind.slices or whole):
        raise UserError(
            f"devices={name!r}: there is no group of {count} {kind.title}; the number "
            f"must be {kind.counts()}"
        )
    absent = _tpu(word, kind, count) if kind.slices else _cuda(word, kind, count)
    return Devices(f"{word}:{count}", _mesh(absent), kind)


def here() -> Devices:
    """All devices of this process."""
    import jax

    _leave_out_absent()
    devices = jax.devices()
    kind = next((k for k in KINDS.values() if _is(devices[0].device_kind, k)), None)
    return Devices(devices[0].device_kind, _mesh(devices), kind)


def _is(device_kind: str, kind: Kind) -> bool:
    """Whether a device's own name is that of a kind: JAX calls a v5e "TPU v5 lite"."""
    return device_kind.lower().replace(" lite", "e") == kind.title.lower()


_CHIPS = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
_CARDS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")


def _any(patterns: Sequence[str]) -> bool:
    return any(glob.glob(pattern) for pattern in patterns)


def _leave_out_absent() -> None:
    """Without an accelerator, keep JAX from starting the plugins that compile for one.

    They would fail for want of a device or a driver. Has no effect once JAX has
    started, or if the user chose the platforms. Their compilers need neither, and look
    at the environment only once: for TPUs and GPUs in one process, it is set for both.
    """
    import jax

    if not _any(_CHIPS):
        # Without a chip, libtpu need not ask the cloud what machine this is, nor be
        # the only one of its kind, and its warnings are about the missing chip.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
        os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    if not _any(_CARDS):
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    if not _any(_CHIPS + _CARDS) and not jax.config.jax_platforms:
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_platforms", "cpu")


def _mesh(devices: Sequence[Any]) -> Mesh:
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def _cpus(count: int) -> list[Any]:
    import jax

    available = jax.devices("cpu")
    if not 1 <= count <= len(available):
        raise UserError(
            f"devices='cpu:{count}': this process has {len(available)}; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return available[:count]


def _require(module: str, extra: str, name: str) -> None:
    """Raise UserError unless a package that compiles for these devices is there."""
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"devices={name!r}: compiling for it needs the package {module}; install "
            f"it with: pip install 'afterimage[{extra}]'"
        )


def _topology(name: str, **settings: Any) -> list[Any]:
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(**settings).devices)
    except Exception as error:  # jaxlib and the plugins raise types of their own
        first = str(error).strip().splitlines()[0][:300]
        raise UserError(
            f"devices={name!r}: the compiler for it did not start: {first}"
        ) from error


def _tpu(word: str, kind: Kind, count: int) -> list[Any]:
    _require("libtpu", "plan-tpu", f"{word}:{count}")
    topology = f"{word.removeprefix('tpu-')}:{kind.slices[count]}"
    # By default a slice has hosts of several chips, which do not divide one chip.
    return _topology(f"{word}:{count}", platform="tpu", topology_name=topology)


def _cuda(word: str, kind: Kind, count: int) -> list[Any]:
    _require("jax_cuda13_plugin", "plan-cuda", f"{word}:{count}")
    hosts = max(1, count // _PER_HOST)
    return _topology(
        f"{word}:{count}",
        platform="cuda",
        topology_name=word,
        target_config=_target(kind),
        topology=f"1x{hosts}x{count // hosts}",
    )


def _target(kind: Kind) -> str:
    """A GPU as XLA describes it: stream_executor.GpuTargetConfigProto, as text.

    Limits that every card since 2017 shares are constants (CUDA C++ Programming Guide,
    "Compute Capabilities").
    """
    gpu = kind.target
    version = "major: 9 minor: 10 patch: 0"
    newest = "ACCELERATED_FEATURES" if gpu["major"] >= 9 else "NONE"
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_core": gpu["shared"] * 1024,
        "shared_memory_per_block_optin": (gpu["shared"] - 1) * 1024,
        "threads_per_core_limit": 2048 if gpu["minor"] == 0 else 1536,
        "core_count": gpu["cores"],
        "fpus_per_core": 128,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "memory_bandwidth": int(kind.bandwidth),
        "l2_cache_size": gpu["cache"] * 2**20,
        "clock_rate_ghz": gpu["clock"],
        "device_memory_size": int(gpu["memory"] * _GIB),
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "device_vendor": '"NVIDIA Corporation"',
        "name": f'"{kind.title}"',
        "driver_version": '"13.0.0"',
        "runtime_version": '"13.0.0"',
        "compile_time_toolkit_version": '"13.0.0"',
        "dnn_version": '"9.10.0"',
    }
    lines = [f"  {name}: {value}" for name, value in device.items()]
    lines += [
        f"  cuda_compute_capability {{ major: {gpu['major']} minor: {gpu['minor']} "
        f"feature_extension: {newest} }}"
    ]
    return "\n".join(
        [
            "gpu_device_info {",
            *lines,
            "}",
            'platform_name: "CUDA"',
            f"dnn_version_info {{ {version} }}",
            f'device_description_str: "{kind.title}"',
        ]
    )
