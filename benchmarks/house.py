"""The size of the code base: files, names, imports, and longest execution paths.

`python -m benchmarks.house` prints a Markdown report on the sources within a second;
`--paths` also runs three small jobs under a profiler, about a minute.

A path is the part of the project that one job executes, from its first import to its
end, in all threads: the files in which a function ran (a lambda counts; the top level
of a module or a class does not), the distinct named functions and methods, the largest
number of project functions on one stack, and all lines of those files. At commit
af06e23 the result is 80, 92 and 22 files and 468, 550 and 101 functions; a separate
count by call traces found 80, 90, 24 and 459, 535, 102.
"""

import argparse
import ast
import collections
import inspect
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

ROOMS = ("afterimage", "pretrain", "finetune", "checkpoints")
"""The source folders; those that `afterimage/` links to are counted once."""

STAGES = ("pretrain", "finetune")
LONG_FILE, LONG_FUNCTION = 250, 40
TOP = 10


class File(NamedTuple):
    """A source file."""

    name: str
    """Real path below the root, e.g. pretrain/config.py."""
    tree: ast.Module
    lines: int

    @property
    def room(self) -> str:
        """The first folder of its path."""
        return self.name.partition("/")[0]

    @property
    def module(self) -> str:
        """The module name that its path gives, e.g. pretrain.config."""
        return self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def python_files(root: pathlib.Path, room: str) -> list[File]:
    """The .py files below a folder, sorted by name; links are not followed."""
    found = []
    for folder, _, names in os.walk(root / room):  # follows no links
        for name in names:
            path = pathlib.Path(folder) / name
            if path.suffix == ".py" and not path.is_symlink():
                text = path.read_text(encoding="utf-8")
                relative = path.relative_to(root).as_posix()
                found.append(File(relative, ast.parse(text), len(text.splitlines())))
    return sorted(found)


def sources(root: pathlib.Path) -> list[File]:
    """The files of every room."""
    return [file for room in ROOMS for file in python_files(root, room)]


def functions(files: Iterable[File]) -> list[tuple[int, str]]:
    """(lines, file:function) of every function and method, longest first."""
    found = [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{file.name}:{node.name}")
        for file in files
        for node in ast.walk(file.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return sorted(found, key=lambda one: (-one[0], one[1]))


def run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below this one, except those that only a type checker sees."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield from run_nodes(child)


def imports(files: Iterable[File]) -> dict[str, set[str]]:
    """{module: modules of the project that it imports, at the top or in a function}.

    `afterimage.pretrain` and `pretrain` are the same folder and count as one package.
    """
    files = list(files)
    known = {file.module for file in files}

    def resolve(name: str) -> str | None:
        names = (name, name.removeprefix("afterimage."))
        return next((one for one in names if one in known), None)

    graph = {}
    for file in files:
        package = file.module.split(".")
        if not file.name.endswith("/__init__.py"):
            package = package[:-1]
        graph[file.module] = set()
        for node in run_nodes(file.tree):
            named: list[str | None] = []
            if isinstance(node, ast.Import):
                named = [resolve(alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                start = package[: len(package) + 1 - node.level] if node.level else []
                base = ".".join([*start, *filter(None, [node.module])])
                named = [
                    resolve(f"{base}.{alias.name}") or resolve(base)
                    for alias in node.names
                ]
            graph[file.module] |= {one for one in named if one}
        graph[file.module].discard(file.module)
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module."""
    import numpy as np
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    names = sorted(graph)
    place = {name: i for i, name in enumerate(names)}
    pairs = [(place[a], place[b]) for a in names for b in graph[a]]
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    shape = (len(names), len(names))
    matrix = csr_array((np.ones(len(pairs)), (rows, columns)), shape=shape)
    _, labels = connected_components(matrix, directed=True, connection="strong")
    groups = collections.defaultdict(list)
    for name, label in zip(names, labels, strict=True):
        groups[label].append(name)
    return [group for group in groups.values() if len(group) > 1]


def stage_imports(files: Iterable[File], graph: Mapping[str, set[str]]) -> list[str]:
    """Imports of a stage from `afterimage/`, outside its commands and lazy exports."""
    free = "afterimage/commands/", "afterimage/__init__.py"
    return sorted(
        f"{file.name} imports {name}"
        for file in files
        if file.room == "afterimage" and not file.name.startswith(free)
        for name in graph[file.module]
        if name.partition(".")[0] in STAGES
    )


def repeated_classes(files: Iterable[File]) -> dict[str, list[str]]:
    """{class name: the files that define it}, of names defined more than once."""
    found = collections.defaultdict(list)
    for file in files:
        for node in ast.walk(file.tree):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(file.name)
    return {name: places for name, places in sorted(found.items()) if len(places) > 1}


def repeated_modules(files: Iterable[File]) -> dict[str, list[str]]:
    """{file name: its paths}, of module names used more than once."""
    found = collections.defaultdict(list)
    for file in files:
        name = file.name.rpartition("/")[2]
        if name not in ("__init__.py", "__main__.py"):
            found[name].append(file.name)
    return {name: places for name, places in sorted(found.items()) if len(places) > 1}


class Tracer:
    """A profile function that records what runs in the files below some folders."""

    def __init__(self, folders: Iterable[pathlib.Path]) -> None:
        self.folders = tuple(f"{folder.resolve()}{os.sep}" for folder in folders)
        self.known: dict[Any, str | None] = {}
        self.functions: set[tuple[str, int, str]] = set()
        self.deepest = 0

    def file(self, code: Any) -> str | None:
        """The real path of a function of the project; None for all other code."""
        if code not in self.known:
            path = os.path.realpath(code.co_filename)
            # Top levels of modules and classes are code without fast locals.
            mine = (
                path.startswith(self.folders) and code.co_flags & inspect.CO_OPTIMIZED
            )
            self.known[code] = path if mine else None
        return self.known[code]

    def __call__(self, frame: Any, event: str, arg: Any) -> None:
        """Called by `sys.setprofile`."""
        del arg
        code = frame.f_code
        if event != "call" or (file := self.file(code)) is None:
            return
        self.functions.add((file, code.co_firstlineno, code.co_name))
        depth = 0
        while frame is not None:
            depth += self.file(frame.f_code) is not None
            frame = frame.f_back
        self.deepest = max(self.deepest, depth)

    def report(self) -> dict[str, Any]:
        """{"files": paths, "functions": count, "deepest": frames, "lines": count}."""
        files = sorted({file for file, _, _ in self.functions})
        lines = sum(len(pathlib.Path(f).read_text().splitlines()) for f in files)
        return {
            "files": files,
            "functions": len([n for _, _, n in self.functions if n[0] != "<"]),
            "deepest": self.deepest,
            "lines": lines,
        }


def draw_images(folder: pathlib.Path, classes: Iterable[str]) -> None:
    """20 PNG files of 32 x 32 colour pixels in a folder for each class."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for shade, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 128, (32, 32, 3)) + 100 * shade
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:02}.png")


def job(name: str, home: pathlib.Path) -> None:
    """Runs one of the jobs whose path is measured, from its first import on."""
    if name == "features":
        import numpy as np

        from afterimage import load_encoder

        load_encoder(str(home / "run")).features(np.zeros((4, 32, 32, 3), np.uint8))
        return
    from afterimage.commands import main

    words = {
        "pretrain": f"pretrain --data folder:{home}/images --out {home}/run "
        "--objective plain",
        "probe": f"finetune --mode probe --from {home}/run --out {home}/classifier "
        f"--data folder:{home}/images",
    }[name]
    code = main([*words.split(), "--steps", "4", "--batch-size", "8"])
    if code:
        raise SystemExit(code)


JOBS = {
    "pretrain": "`pretrain --data folder:`, four steps",
    "probe": "`finetune --mode probe`, four steps",
    "features": "`load_encoder(...).features(images)`",
}


def trace(name: str, root: pathlib.Path, home: pathlib.Path) -> None:
    """Runs a job in this process and writes its path to NAME.json."""
    tracer = Tracer([root / room for room in ROOMS])
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    try:
        job(name, home)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # pyright: ignore[reportArgumentType]
    (home / f"{name}.json").write_text(json.dumps(tracer.report()))


def paths(root: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The path of each job, each in a fresh process."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="house-") as folder:
        home = pathlib.Path(folder)
        draw_images(home / "images", ("dark", "bright"))
        env = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
        env["AFTERIMAGE_CACHE"] = str(home / "cache")
        for name in JOBS:
            # -P: do not import from the folder of this file.
            command = [sys.executable, "-P", __file__, "--trace", name]
            command += ["--root", str(root), "--home", str(home)]
            done = subprocess.run(
                command, env=env, cwd=home, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"{name}: {done.stdout}\n{done.stderr}")
            found[name] = json.loads((home / f"{name}.json").read_text())
    return found


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Lines of a Markdown table: the first column text, the others numbers."""
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    lines += [[f"{c:,}" if isinstance(c, int) else c for c in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def listed(title: str, items: Iterable[str]) -> list[str]:
    """A title with the number of items, and a list."""
    items = list(items)
    return ["", f"## {title}: {len(items)}", "", *[f"- {item}" for item in items]]


def size(root: pathlib.Path, files: list[File]) -> list[str]:
    """The table of lines and files."""
    rows = []
    for room in ROOMS:
        mine = [file for file in files if file.room == room]
        rows.append((room, len(mine), sum(file.lines for file in mine)))
    rows.append(("**sum**", len(files), sum(file.lines for file in files)))
    for room in ("tests", "benchmarks"):
        mine = python_files(root, room)
        rows.append((room, len(mine), sum(file.lines for file in mine)))
    return table(("folder", "files", "lines"), rows)


def longest(files: list[File]) -> list[str]:
    """The tables of the longest files and functions."""
    lengths = sorted(((file.lines, file.name) for file in files), reverse=True)
    parts = functions(files)
    return [
        "",
        f"## Files over {LONG_FILE} lines: "
        f"{sum(lines > LONG_FILE for lines, _ in lengths)}",
        "",
        *table(("longest files", "lines"), [(n, lines) for lines, n in lengths[:TOP]]),
        "",
        f"## Functions over {LONG_FUNCTION} lines: "
        f"{sum(lines > LONG_FUNCTION for lines, _ in parts)}, of {len(parts):,}",
        "",
        *table(("longest functions", "lines"), [(n, k) for k, n in parts[:TOP]]),
    ]


def names(files: list[File]) -> list[str]:
    """Import cycles, imports in the wrong direction, names used more than once."""
    graph = imports(files)

    def said(repeated: Mapping[str, list[str]]) -> list[str]:
        return [f"{name}: {', '.join(places)}" for name, places in repeated.items()]

    return [
        *listed("Import circles", (", ".join(group) for group in circles(graph))),
        *listed("Imports of a stage from afterimage/", stage_imports(files, graph)),
        *listed("Class names in use twice", said(repeated_classes(files))),
        *listed("File names in use twice", said(repeated_modules(files))),
    ]


def path_table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The table of the paths."""
    head = ("path", "files", "functions", "deepest stack", "lines of those files")
    rows = [
        (JOBS[name], len(one["files"]), *(one[k] for k in keys))
        for keys in [("functions", "deepest", "lines")]
        for name, one in found.items()
    ]
    return ["", "## Paths", "", *table(head, rows)]


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(prog="benchmarks.house", description=__doc__)
    here = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--root", type=pathlib.Path, default=here)
    parser.add_argument("--paths", action="store_true")
    # `--paths` starts itself with this.
    parser.add_argument("--trace", choices=list(JOBS), help=argparse.SUPPRESS)
    parser.add_argument("--home", type=pathlib.Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    root = given.root.resolve()
    if given.trace:
        trace(given.trace, root, given.home)
        return
    files = sources(root)
    lines = ["# The house", "", *size(root, files), *longest(files), *names(files)]
    if given.paths:
        lines += path_table(paths(root))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
