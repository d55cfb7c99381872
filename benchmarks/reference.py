"""docs/reference/, one page per package, made from the docstrings in the source.

`python -m benchmarks.reference` writes the pages; a test compares them. Nothing is
imported: signatures and defaults are shown as written. Each dataclass field is
documented by the string below it.
"""

import ast
import inspect
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
TRAINING = (
    "loop:Callbacks",
    "stage:Term",
    "stage:Context",
    "stage:View",
    "stage:Phase",
    "stage:Stage",
    "optimiser:Group",
    "job:Job",
)
PAGES: dict[str, tuple[str, ...]] = {
    "afterimage": (),
    "afterimage.pretrain": (),
    "afterimage.finetune": (),
    "afterimage.checkpoints": (),
    "afterimage.report": (),
    "afterimage.plugins": (),
    "afterimage.settings": (),
    "afterimage.stages": (),
    "afterimage.finetune.own_network": (),
    "afterimage.finetune.own_options": (),
    "afterimage.finetune.own_classifier": (),
    "afterimage.training": TRAINING,
}
"""{package: names as `module:Name`, if not all of its public names}."""

Definition = ast.FunctionDef | ast.ClassDef


class Named(NamedTuple):
    """A public name: where it is defined, and its syntax tree (None: a constant)."""

    module: str
    name: str
    node: Definition | None


def path_of(module: str) -> pathlib.Path:
    """The file of a module of the project."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def tree_of(module: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def public_names(tree: ast.Module) -> list[str]:
    """`__all__`, or names imported as themselves; if there is neither, the functions
    and classes without a leading underscore."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value))
    exported = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]
    return sorted(exported) or [
        node.name
        for node in tree.body
        if isinstance(node, Definition) and not node.name.startswith("_")
    ]


def find(module: str, name: str) -> Named:
    """Where a module's name is defined: in it, or where it is imported from."""
    tree = tree_of(module)
    for node in ast.walk(tree):
        if isinstance(node, Definition) and node.name == name and node in tree.body:
            return Named(module, name, node)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name and node.module.startswith(
                    "afterimage"
                ):
                    return find(node.module, alias.name)
    return Named(module, name, None)


def signature(node: ast.FunctionDef) -> str:
    """`f(x: int, *, y: str = 'a') -> float`; if long, one argument per line."""
    arguments = ast.unparse(node.args)
    for own in ("self, ", "cls, ", "self", "cls"):
        if arguments.startswith(own):
            arguments = arguments.removeprefix(own)
            break
    end = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({arguments}){end}"
    if len(line) <= 88:
        return line

    copy = ast.parse(f"def f({arguments}): pass").body[0]
    assert isinstance(copy, ast.FunctionDef)
    parts = list(_arguments(copy.args))
    return f"{node.name}(\n" + "".join(f"    {p},\n" for p in parts) + f"){end}"


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    """Each argument as written, with the marks `*` and `/`."""
    first = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(first) - len(arguments.defaults)) + [*arguments.defaults]

    def text(argument: ast.arg, default: ast.expr | None) -> str:
        equals = " = " if argument.annotation else "="
        end = "" if default is None else equals + ast.unparse(default)
        return ast.unparse(argument) + end

    for number, (argument, default) in enumerate(zip(first, defaults), 1):
        yield text(argument, default)
        if number == len(arguments.posonlyargs):
            yield "/"
    if arguments.vararg:
        yield f"*{ast.unparse(arguments.vararg)}"
    elif arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults):
        yield text(argument, default)
    if arguments.kwarg:
        yield f"**{ast.unparse(arguments.kwarg)}"


def code(text: str) -> str:
    """A Markdown block of Python code."""
    return f"```python\n{text}\n```"


def fields(node: ast.ClassDef) -> list[str]:
    """A line for each public field and property, with its docstring."""
    lines = []
    for part, after in zip(node.body, [*node.body[1:], None]):
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            name, type_ = part.target.id, ast.unparse(part.annotation)
            default = f" = {ast.unparse(part.value)}" if part.value else ""
            said = after.value if isinstance(after, ast.Expr) else None
            doc = said.value if isinstance(said, ast.Constant) else ""
        elif isinstance(part, ast.FunctionDef) and any(
            ast.unparse(d) == "property" for d in part.decorator_list
        ):
            name, default = part.name, ""
            type_ = ast.unparse(part.returns) if part.returns else "Any"
            doc = ast.get_docstring(part) or ""
        else:
            continue
        if not name.startswith("_"):
            text = " ".join(str(doc).split())
            lines.append(
                f"- `{name}: {type_}{default}`" + (f": {text}" if text else "")
            )
    return lines


def bases(found: Named) -> list[Named]:
    """The classes of the project that a class inherits from, nearest first."""
    assert isinstance(found.node, ast.ClassDef)
    result = []
    for base in found.node.bases:
        name = ast.unparse(base).partition("[")[0]
        named = find(found.module, name)
        if isinstance(named.node, ast.ClassDef):
            result += [named, *bases(named)]
    return result


def describe(found: Named) -> list[str]:
    """The section of one public name."""
    node = found.node
    if node is None:
        return []
    parts = [f"## {found.name}", f"`{found.module}`"]
    doc = ast.get_docstring(node) or ""
    if isinstance(node, ast.FunctionDef):
        return [*parts, code(signature(node)), doc]
    init = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    made = next((n for n in init if n.name == "__init__"), None)
    if made is not None:
        text = signature(made).replace("__init__", found.name, 1)
        parts.append(code(text.removesuffix(" -> None")))
    parts += [doc, "\n".join(fields(node))]
    for base in bases(found):
        assert isinstance(base.node, ast.ClassDef)
        if lines := fields(base.node):
            parts += [f"From `{base.name}`:", "\n".join(lines)]
    for method in init:
        decorators = {ast.unparse(d) for d in method.decorator_list}
        if method.name.startswith("_") or "property" in decorators:
            continue
        parts += [f"### {found.name}.{method.name}", code(signature(method))]
        parts.append(ast.get_docstring(method) or "")
    return [part for part in parts if part]


def page(package: str) -> str:
    """The Markdown page of one package."""
    tree = tree_of(package)
    chosen = PAGES[package]
    if chosen:
        pairs = [(f"{package}.{m}", n) for m, n in (c.split(":") for c in chosen)]
    else:
        pairs = [(package, name) for name in public_names(tree)]
    parts = [f"# {package}", inspect.cleandoc(ast.get_docstring(tree) or "")]
    for module, name in pairs:
        parts += describe(find(module, name))
    return "\n\n".join(part for part in parts if part) + "\n"


def pages() -> dict[str, str]:
    """{file name: text} of every page, and of the index."""
    found = {f"{package}.md": page(package) for package in PAGES}
    lines = [f"- [{package}]({package}.md)" for package in PAGES]
    found["index.md"] = "\n".join(
        [
            "# Reference",
            "",
            "Made from the docstrings by `python -m benchmarks.reference`.",
            "",
            *lines,
            "",
        ]
    )
    return found


def main() -> None:
    """Writes the pages, and deletes those of removed packages."""
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
