"""Arrows point one way: pretrain, finetune -> afterimage -> checkpoints."""

import ast
import pathlib

import pytest

from tests.helpers import run_python

ROOT = pathlib.Path(__file__).parent.parent
ALLOWED = {
    "checkpoints": {"checkpoints"},
    "afterimage": {"afterimage", "checkpoints"},
    "pretrain": {"pretrain", "afterimage", "checkpoints"},
    "finetune": {"finetune", "afterimage", "checkpoints"},
}
# The package's own exports name the stages, inside functions only.
LAZY = {"afterimage/__init__.py"}


def _room(module: str) -> str | None:
    """The room of a module: `afterimage.finetune.modes` is in `finetune`."""
    names = module.split(".")
    if names[0] != "afterimage":
        return None
    stage = names[1] if len(names) > 1 else ""
    # Shared by all: how a package exports names lazily, and how a URL becomes a folder.
    if module == "afterimage.lazy" or module.startswith("afterimage.storage"):
        return None
    return stage if stage in ALLOWED else "afterimage"


def _imports(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {_room(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "afterimage":
                names |= {_room(f"afterimage.{alias.name}") for alias in node.names}
            else:
                names.add(_room(node.module))
    return {name for name in names if name}


def _top_level(tree: ast.Module) -> set[str]:
    body = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    return _imports(ast.Module(body=list(body), type_ignores=[]))


def _files(room: str) -> list[pathlib.Path]:
    """The room's own files; afterimage/ has links to the others."""
    linked = {ROOT / "afterimage" / name for name in ALLOWED}
    files = sorted((ROOT / room).rglob("*.py"))
    return [file for file in files if not linked & set(file.parents)]


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_arrows_point_one_way(room):
    wrong = []
    files = _files(room)
    assert files, f"no Python files under {room}/"
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        if name.startswith(("afterimage/commands/", "afterimage/ray/")):
            continue  # above everything: what runs a stage
        tree = ast.parse(file.read_text())
        found = _top_level(tree) if name in LAZY else _imports(tree)
        wrong += [f"{name} imports {other}" for other in found - ALLOWED[room]]
    assert not wrong, wrong


def test_only_one_module_imports_orbax():
    users = [
        file.relative_to(ROOT).as_posix()
        for room in ALLOWED
        for file in _files(room)
        if "orbax" in file.read_text().replace("orbax-checkpoint", "")
        and any(
            "orbax" in (getattr(n, "module", "") or "")
            or any("orbax" in a.name for a in n.names)
            for n in ast.walk(ast.parse(file.read_text()))
            if isinstance(n, ast.Import | ast.ImportFrom)
        )
    ]
    assert users == ["checkpoints/store.py"]


def test_no_room_is_imported_by_its_folders_name():
    """Only `afterimage` is installed: `import pretrain` is somebody else's module."""
    rooms = set(ALLOWED) - {"afterimage"}
    wrong = []
    for folder in (*ALLOWED, "tests", "benchmarks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    modules = [node.module or ""]
                else:
                    continue
                found = [m for m in modules if m.split(".")[0] in rooms]
                wrong += [f"{file.relative_to(ROOT)} imports {m}" for m in found]
    assert not wrong, wrong


EVERYTHING = """
import importlib, pkgutil
import afterimage
from jax._src.xla_bridge import backends_are_initialized
for module in pkgutil.walk_packages(afterimage.__path__, "afterimage."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            assert "afterimage" not in str(error.name), error
    assert not backends_are_initialized(), module.name
print("none")
"""


def test_no_import_starts_the_devices():
    """Afterwards a job could not join its hosts, nor `plan` use compilers of devices
    that are not there."""
    assert run_python(EVERYTHING).split()[-1] == "none"
