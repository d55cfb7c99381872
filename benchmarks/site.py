"""What the documentation site has beside docs/: navigation, and pages of the project.

A hook of MkDocs (mkdocs.yml, `make docs`). The navigation is that of docs/guide/
index.md, so a page is listed once. README.md is the first page; links from docs/ to
CHANGELOG.md, CONTRIBUTING.md, LICENSE and benchmarks/results/ lead to copies.
"""

import os
import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
_DOCS = ROOT / "docs"
_RESULTS = ROOT / "benchmarks" / "results"
_LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)


def published() -> dict[pathlib.Path, str]:
    """{file outside docs/: its place on the site}."""
    found = {
        ROOT / "README.md": "index.md",
        ROOT / "CHANGELOG.md": "changelog.md",
        ROOT / "CONTRIBUTING.md": "contributing.md",
        ROOT / "LICENSE": "LICENSE.txt",
        _RESULTS: "results/index.md",
    }
    for path in sorted(_RESULTS.glob("*.*")):
        if path.suffix in (".md", ".json"):
            found[path] = f"results/{path.name}"
    return found


def source_of(page: str) -> pathlib.Path:
    """The file that a page of the site was made from."""
    back = {place: path for path, place in published().items()}
    return back.get(page, _DOCS / page)


def relinked(markdown: str, page: str) -> str:
    """The page's text with each relative link as it is on the site.

    Links in code are left alone, and so are links that lead nowhere: MkDocs reports
    them.
    """
    here, places = source_of(page), published()
    folder = here if here.is_dir() else here.parent

    def moved(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        place = places.get(target)
        if place is None and target.is_relative_to(_DOCS):
            place = target.relative_to(_DOCS).as_posix()
        if place is None:
            return link[0]
        path = os.path.relpath(place, os.path.dirname(page) or ".")
        return f"{link[1]}{pathlib.Path(path).as_posix()}{link[3] or ''}{link[4]}"

    parts = _CODE.split(markdown)
    parts[::2] = [_LINK.sub(moved, part) for part in parts[::2]]
    return "".join(parts)


def _results_page() -> str:
    names = sorted(path.stem for path in _RESULTS.glob("*.md"))
    lines = [f"- [{name}]({name}.md) ([JSON]({name}.json))" for name in names]
    return "\n".join(["# Results", "", *lines, ""])


def _section(file: pathlib.Path, text: str) -> list[str]:
    """The pages beside `file` that a text links to: places on the site, once each."""
    links = dict.fromkeys(re.findall(r"\]\(([^)#\s:/]+)\)", text))
    paths = [(file.parent / link).resolve() for link in links]
    return [path.relative_to(_DOCS).as_posix() for path in paths]


def _listed(index: pathlib.Path) -> list[str]:
    return _section(index, index.read_text())


def navigation() -> list[Any]:
    """The site's navigation: tabs, and sections of the guide by its bold lines."""
    index = _DOCS / "guide" / "index.md"
    guide, developers = index.read_text().split("\nFor developers:")
    parts = re.split(r"^\*\*(.+)\*\*$", guide, flags=re.MULTILINE)
    sections = [
        {title: _section(index, text)} for title, text in zip(parts[1::2], parts[2::2])
    ]
    reference = _DOCS / "reference" / "index.md"
    design = re.findall(r"\]\(\.\./(design/[^)#\s]+)\)", developers)
    tutorials = _DOCS / "tutorials" / "index.md"
    results = [p for p in published().values() if re.match(r"results/(?!index).*md", p)]
    return [
        {"Home": "index.md"},
        {"Tutorials": ["tutorials/index.md", *_listed(tutorials)]},
        {"Guide": ["guide/index.md", *sections]},
        {"Reference": ["reference/index.md", *_listed(reference)]},
        {"Design": design},
        {
            "Project": [
                *("changelog.md", "contributing.md", "results/index.md"),
                *results,
            ]
        },
    ]


def on_config(config: Any) -> Any:
    """MkDocs's event: sets the navigation, and how tutorials are run."""
    config.nav = navigation()
    _merge_outputs()
    return config


def _merge_outputs() -> None:
    """What a cell prints is one text, not one for each piece that arrives."""
    try:
        from nbconvert.preprocessors import (  # pyright: ignore[reportMissingImports]
            ExecutePreprocessor,
        )
    except ImportError:  # the [docs] extra is not installed
        return
    init = ExecutePreprocessor.__init__

    def merged(self: Any, **settings: Any) -> None:
        init(self, **{"coalesce_streams": True, **settings})

    ExecutePreprocessor.__init__ = merged


def on_files(files: Any, config: Any) -> Any:
    """MkDocs's event: adds the files outside docs/."""
    from mkdocs.structure.files import File

    for path, place in published().items():
        if path.is_dir():
            files.append(File.generated(config, place, content=_results_page()))
        else:
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs's event: the links of a page."""
    return relinked(markdown, page.file.src_uri)
