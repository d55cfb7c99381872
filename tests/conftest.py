"""Strictness for every test: own caches, no shared state, no silent broadcasting."""

import dataclasses
import os
import tempfile

# Before jax is imported anywhere. Programs compiled by one test serve the next, in all
# worker and child processes of this session; nothing else is shared.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "AFTERIMAGE_TEST_XLA" not in os.environ:
    _folder = tempfile.TemporaryDirectory(prefix="afterimage-xla-")
    os.environ["AFTERIMAGE_TEST_XLA"] = _folder.name
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _folder.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Each test has its own Afterimage cache folder."""
    monkeypatch.setenv(
        "AFTERIMAGE_CACHE", str(tmp_path_factory.mktemp("afterimage-cache"))
    )


@pytest.fixture(scope="session", autouse=True)
def _compile_quickly(request):
    """Most of the quick tests' time is compiling: without most optimisations.

    Not where tests that take long, or are measured, are among them: a run is compared
    with a fixture's bit for bit, so all of a session compile alike. Child processes
    compile as users' do.
    """
    chosen = request.config.option.markexpr
    if all(f"not {mark}" in chosen for mark in ("slow", "speed")):
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def tiny(monkeypatch):
    """Two stages of at most one block in every model, compiled without optimisation.

    For tests whose time is compiling.
    """
    _shrink(monkeypatch)


@pytest.fixture(scope="module")
def tiny_module():
    """`tiny` for a whole module, whose fixtures share what they ran."""
    with pytest.MonkeyPatch.context() as patch:
        _shrink(patch)
        yield


def _shrink(monkeypatch):
    # Here, not above: what is imported before the tests is not type checked.
    from afterimage import runtime
    from afterimage.models.config import PRESETS

    options = {"xla_backend_optimization_level": 0}
    monkeypatch.setattr(runtime, "compiler_options", lambda: options)
    for name, preset in PRESETS.items():
        depths = tuple(min(depth, 1) for depth in preset.depths[:2])
        two = dataclasses.replace(preset, widths=preset.widths[:2], depths=depths)
        monkeypatch.setitem(PRESETS, name, two)
