"""The guide and the help name flags that exist."""

import re

import pytest
from afterimage_text import commands

from afterimage.commands import main
from afterimage.commands.flags import PackageCommand, flags_for
from tests.helpers import ROOT

ENTRIES = {
    entry.COMMAND.name: entry.COMMAND
    for entry in vars(commands).values()
    if isinstance(entry, PackageCommand)
}
PAGES = [ROOT / "docs/guide/text.md", ROOT / "modalities/text/README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_flags_exist(page):
    lines = re.findall(r"(?m)^afterimage (text-.+)$", page.read_text())
    assert lines
    for line in lines:
        name, *rest = line.split()
        known = {flag.flag for flag in flags_for(ENTRIES[name], rest)}
        assert {word for word in rest if word.startswith("--")} <= known


def test_settings_in_the_text_exist():
    text = PAGES[0].read_text()
    every = [flag.flag for c in ENTRIES.values() for flag in flags_for(c, [])]
    assert set(re.findall(r"`(--[a-z0-9-]+)", text)) <= set(every)


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_help_fits_on_two_screens(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 120
    assert len(re.findall(r"(?m)^  --", said)) <= 40
    assert not re.search(r"\bimages?\b", said)
