"""How this project sets up JAX: compiler options, compile cache, this machine."""

import functools
import os
import platform
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jaxlib.version

from afterimage import hosts
from afterimage.cache import cache_dir as cache_dir

# XLA:CPU passes convolutions to a library that uses one thread for up to 64 output
# channels; this option prevents that (4 = "individual dot" only, which leaves
# convolutions to XLA). Measured 1.2-2.4x faster convolution gradients on two cores.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": 4}


@functools.cache
def compiler_options(platform: str | None = None) -> dict[str, Any] | None:
    """Options for `jax.jit` on a platform, or None if it does not support them.

    `platform` is cpu, gpu or tpu; by default that of this process. A jaxlib that does
    not know the option raises (an environment flag would abort).
    """
    if (platform or jax.default_backend()) != "cpu":
        return None
    try:
        jax.jit(lambda x: x + 1, compiler_options=_CPU_OPTIONS)(1.0)
    except Exception:  # jaxlib raises its own C++ error types here
        return None
    return _CPU_OPTIONS


def jit(
    function: Callable[..., Any], *, platform: str | None = None, **kwargs: Any
) -> Any:
    """`jax.jit` with this project's compiler options for `platform`: cpu, gpu or tpu;
    by default that of this process."""
    return jax.jit(function, compiler_options=compiler_options(platform), **kwargs)


def enable_compile_cache() -> None:
    """Keep compiled programs on disk, so that later starts are fast.

    If the cache cannot be written, JAX warns and continues.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def start() -> None:
    """The setup that every command runs first."""
    enable_compile_cache()
    # JAX warns about every program it compiles if the disk is full or read-only:
    # without the cache a command is slower, but otherwise the same.
    warnings.filterwarnings(
        "ignore", "Error (reading|writing) persistent compilation cache"
    )
    hosts.join()


def cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fingerprint() -> dict[str, Any]:
    """What bitwise repeatability depends on; recorded in every run and checkpoint."""
    device = jax.devices()[0]
    return {
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "hosts": jax.process_count(),
        "cores": cores(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "python": platform.python_version(),
        "conv_option": compiler_options() is not None,
    }
