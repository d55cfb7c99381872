"""docs/reference/ is what the docstrings say."""

import ast

import pytest

from benchmarks import reference

MADE = reference.pages()


def test_the_pages_are_those_of_the_packages():
    there = {path.name for path in reference.FOLDER.glob("*.md")}
    assert there == set(MADE), "run: python -m benchmarks.reference"


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_page_is_what_the_docstrings_say(name):
    written = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert written == MADE[name], "run: python -m benchmarks.reference"


@pytest.mark.parametrize("package", reference.PAGES)
def test_every_public_name_has_a_section(package):
    names = reference.public_names(reference.tree_of(package))
    page = MADE[f"{package}.md"]
    for name in names:
        found = reference.find(package, name)
        if found.node is not None:
            assert f"## {name}\n" in page
            assert ast.get_docstring(found.node), f"{name} has no docstring"
    assert "## " in page


def test_long_signatures_take_a_line_for_each_argument():
    text = (
        "def f(self, a, /, before: int = 1, *rest: str, c: tuple[int, ...] = (1, 2), "
        "d=None, **more: float) -> dict: pass"
    )
    (node,) = ast.parse(text).body
    assert reference.signature(node) == (
        "f(\n    a,\n    /,\n    before: int = 1,\n    *rest: str,\n"
        "    c: tuple[int, ...] = (1, 2),\n    d=None,\n    **more: float,\n) -> dict"
    )
