"""Lazy exports: a package imports its names only when they are used."""

import ast
import importlib
import pathlib
from collections.abc import Callable
from typing import Any


def exports(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], Any]]:
    """`__getattr__` and `__dir__` of a package, from its own `if TYPE_CHECKING:` block.

    `import afterimage` and `--help` must not wait for JAX to start. In the block,
    `X as X` marks X as exported for type checkers.
    """
    homes = {
        alias.name: node.module
        for block in ast.parse(pathlib.Path(file).read_text(encoding="utf-8")).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }

    def get(name: str) -> Any:
        if name == "__all__":
            return sorted(homes)
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return get, lambda: sorted(homes)
