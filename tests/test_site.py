"""The documentation site: navigation, and links as they are on the site."""

import pathlib
import re

import pytest

from benchmarks import site

DOCS = pathlib.Path(__file__).parent.parent / "docs"


def placed(entry):
    """The pages below an entry of the navigation."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in placed(part)]


def test_every_page_is_in_the_navigation_once():
    there = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")}
    there |= {p.relative_to(DOCS).as_posix() for p in DOCS.glob("tutorials/*.py")}
    there |= {place for place in site.published().values() if place.endswith(".md")}
    found = placed(site.navigation())
    assert sorted(found) == sorted(there)


@pytest.mark.parametrize("page", placed(site.navigation()))
def test_links_lead_to_pages_of_the_site(page):
    source = site.source_of(page)
    text = site._results_page() if source.is_dir() else source.read_text()
    places = set(site.published().values())
    places |= {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.*")}
    for link in re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", site.relinked(text, page)):
        target = (DOCS / page).parent.joinpath(link).resolve()
        assert target.relative_to(DOCS).as_posix() in places


def test_links_in_code_stay():
    text = "[a](CHANGELOG.md)\n```\n[a](CHANGELOG.md)\n```\n`[a](CHANGELOG.md)`"
    first, *rest = site.relinked(text, "index.md").split("\n", 1)
    assert first == "[a](changelog.md)"
    assert rest == text.split("\n", 1)[1:]
