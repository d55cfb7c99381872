"""The counts of `benchmarks.house`, on a toy tree of known size."""

import sys

import pytest

from benchmarks import house

FILES = {
    "afterimage/__init__.py": "def lazy():\n    import pretrain.run\n",
    "afterimage/loop.py": """\
from typing import TYPE_CHECKING

from afterimage import step

if TYPE_CHECKING:
    import afterimage.report


class Progress:
    def go(self):
        return step.advance(self)
""",
    "afterimage/step.py": """\
def advance(progress):
    from .loop import Progress

    return [one() for one in (lambda: progress,)]
""",
    "afterimage/report.py": "from afterimage.pretrain import run\n",
    "afterimage/commands/start.py": "from pretrain.run import main\n",
    "pretrain/__init__.py": "",
    "pretrain/run.py": """\
import afterimage.loop


def main():
    def inner():
        pass

    inner()


class Progress:
    pass
""",
    "pretrain/step.py": "import pretrain.run, numpy\n",
    "tests/test_step.py": "1\n2\n3\n",
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize("linked", [False, True])
def test_each_real_file_counts_once(root, linked):
    if linked:
        (root / "afterimage" / "pretrain").symlink_to("../pretrain")
    files = house.sources(root)
    assert [file.name for file in files] == sorted(FILES)[:-1]
    assert {file.name: file.lines for file in files} == {
        name: text.count("\n") for name, text in FILES.items() if "tests" not in name
    }
    assert [f.lines for f in house.python_files(root, "tests")] == [3]


def test_functions_are_counted_with_those_inside_them(root):
    found = {name: lines for lines, name in house.functions(house.sources(root))}
    assert found["pretrain/run.py:main"] == 5
    assert found["pretrain/run.py:inner"] == 2
    assert found["afterimage/loop.py:go"] == 2
    assert len(found) == 5


def test_imports_of_both_spellings_and_of_functions(root):
    files = house.sources(root)
    graph = house.imports(files)
    assert graph == {
        "afterimage": {"pretrain.run"},
        "afterimage.loop": {"afterimage.step"},
        "afterimage.step": {"afterimage.loop"},
        "afterimage.report": {"pretrain.run"},
        "afterimage.commands.start": {"pretrain.run"},
        "pretrain": set(),
        "pretrain.run": {"afterimage.loop"},
        "pretrain.step": {"pretrain.run"},
    }
    assert house.circles(graph) == [["afterimage.loop", "afterimage.step"]]
    found = house.stage_imports(files, graph)
    assert found == ["afterimage/report.py imports pretrain.run"]


def test_names_in_use_twice(root):
    files = house.sources(root)
    places = ["afterimage/loop.py", "pretrain/run.py"]
    assert house.repeated_classes(files) == {"Progress": places}
    places = ["afterimage/step.py", "pretrain/step.py"]
    assert house.repeated_modules(files) == {"step.py": places}


def test_a_path_is_what_ran_below_the_folders(root):
    """A function and the lambda in it, not the top levels that define them."""
    (root / "link").symlink_to("afterimage")
    text = "class A:\n    pass\ndef f():\n    return (lambda: 1)()\n"
    code = compile(text, root / "link" / "step.py", "exec")
    tracer, names, before = house.Tracer([root / "afterimage"]), {}, sys.getprofile()
    empty = tracer.report()
    sys.setprofile(tracer)
    try:
        exec(code, names)
        sys.setprofile(before)
        defined = tracer.report()
        sys.setprofile(tracer)
        names["f"]()
    finally:
        sys.setprofile(before)
    assert defined == empty == {"files": [], "functions": 0, "deepest": 0, "lines": 0}
    assert tracer.report() == {
        "files": [str((root / "afterimage" / "step.py").resolve())],
        "functions": 1,
        "deepest": 2,
        "lines": 4,
    }
