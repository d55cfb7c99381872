"""Strictness for every test: own caches, no shared state, no silent broadcasting."""

import os
import tempfile

# Before jax is imported anywhere. Programs compiled by one test serve the next, in all
# worker and child processes of this session; nothing else is shared.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Child processes import our modules as compiled by the first of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if "AFTERIMAGE_TEST_XLA" not in os.environ:
    _folder = tempfile.TemporaryDirectory(prefix="afterimage-xla-")
    os.environ["AFTERIMAGE_TEST_XLA"] = _folder.name
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _folder.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# No test cuts the power: waiting for the disk would only take time. Child processes do
# wait, among them those that are killed.
os.fsync = lambda _: None

_FLAGS = "AFTERIMAGE_TEST_XLA_FLAGS"


def pytest_configure(config):
    """Most of the quick tests' time is compiling: without most optimisations.

    Not where tests that take long, or are measured, are among them: a run is compared
    with a fixture's bit for bit, so all of a session compile alike.
    """
    chosen = config.option.markexpr
    if not all(f"not {mark}" in chosen for mark in ("slow", "speed")):
        return
    jax.config.update("jax_disable_most_optimizations", True)
    # Of processes that tests start; they are compared with each other alone.
    os.environ["AFTERIMAGE_TEST_XLA_CHILDREN"] = "--xla_backend_optimization_level=0"
    if not hasattr(config, "workerinput"):
        _offer_workers_the_plain_emitters()
    elif _FLAGS in os.environ and "XLA_FLAGS" not in os.environ:
        os.environ["XLA_FLAGS"] = os.environ[_FLAGS]
        jax.devices()  # XLA reads its flags here, and never again
        del os.environ["XLA_FLAGS"]


def _offer_workers_the_plain_emitters():
    """Without optimisations, fusions compile in half the time by XLA's older emitters.

    A process whose flags name an option that its XLA does not know is aborted, so the
    one that starts the workers asks first.
    """
    option = "xla_cpu_use_fusion_emitters"
    try:
        jax.jit(lambda x: x + 1, compiler_options={option: False})(1.0)
    except jax.errors.JaxRuntimeError:
        return
    os.environ[_FLAGS] = f"--{option}=false"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Each test has its own Afterimage cache folder."""
    monkeypatch.setenv(
        "AFTERIMAGE_CACHE", str(tmp_path_factory.mktemp("afterimage-cache"))
    )


@pytest.fixture
def tiny(monkeypatch):
    """Two stages of at most one block in every model, compiled without optimisation.

    For tests whose time is compiling.
    """
    shrink(monkeypatch)


@pytest.fixture(scope="module")
def tiny_module():
    """`tiny` for a whole module, whose fixtures share what they ran."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        yield


def shrink(monkeypatch):
    """What `tiny` does, for a process of its own."""
    # Here, not above: what is imported before the tests is not type checked.
    from afterimage import runtime
    from afterimage.plugins import ENCODERS

    options = {"xla_backend_optimization_level": 0}
    monkeypatch.setattr(runtime, "compiler_options", lambda *_: options)
    encoders = {name: ENCODERS.get(name) for name in ENCODERS.names()}
    sizes = {n: (e.widths[:2], e.depths[:2]) for n, e in encoders.items()}
    for name, (widths, depths) in sizes.items():
        shallow = tuple(min(depth, 1) for depth in depths)
        monkeypatch.setattr(encoders[name], "widths", widths)
        monkeypatch.setattr(encoders[name], "depths", shallow)
        if hasattr(encoders[name], "groups"):
            single = tuple(((*one[:3], 1),) for one, *_ in encoders[name].groups[:2])
            monkeypatch.setattr(encoders[name], "groups", single)
