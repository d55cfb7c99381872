"""Arrows point one way: pretrain, finetune -> afterimage -> checkpoints."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ALLOWED = {
    "checkpoints": {"checkpoints"},
    "afterimage": {"afterimage", "checkpoints"},
    "pretrain": {"pretrain", "afterimage", "checkpoints"},
    "finetune": {"finetune", "afterimage", "checkpoints"},
}
# The front door names the stages, inside functions only.
LAZY = {"afterimage/__main__.py", "afterimage/__init__.py"}


def _imports(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names & set(ALLOWED)


def _top_level(tree: ast.Module) -> set[str]:
    body = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    return _imports(ast.Module(body=list(body), type_ignores=[]))


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_arrows_point_one_way(room):
    wrong = []
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"no Python files under {room}/"
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        tree = ast.parse(file.read_text())
        found = _top_level(tree) if name in LAZY else _imports(tree)
        wrong += [f"{name} imports {other}" for other in found - ALLOWED[room]]
    assert not wrong, wrong


def test_only_one_module_imports_orbax():
    users = [
        file.relative_to(ROOT).as_posix()
        for room in ALLOWED
        for file in (ROOT / room).rglob("*.py")
        if "orbax" in file.read_text().replace("orbax-checkpoint", "")
        and any(
            "orbax" in (getattr(n, "module", "") or "")
            or any("orbax" in a.name for a in n.names)
            for n in ast.walk(ast.parse(file.read_text()))
            if isinstance(n, ast.Import | ast.ImportFrom)
        )
    ]
    assert users == ["checkpoints/state.py"]
