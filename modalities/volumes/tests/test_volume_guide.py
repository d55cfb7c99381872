"""The guide, the README and the help name flags that exist."""

import re

import pytest
from afterimage_volumes import commands

from afterimage.commands import main
from afterimage.commands.flags import PackageCommand, flags_for
from tests.helpers import ROOT

ENTRIES = {
    entry.COMMAND.name: entry.COMMAND
    for entry in vars(commands).values()
    if isinstance(entry, PackageCommand)
}
PAGES = [ROOT / "docs/guide/volumes.md", ROOT / "modalities/volumes/README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_flags_exist(page):
    lines = re.findall(r"(?m)^afterimage (volume-.+)$", page.read_text())
    assert lines
    for line in lines:
        name, *rest = line.split()
        known = {flag.flag for flag in flags_for(ENTRIES[name], rest)} | {"--preset"}
        assert {word for word in rest if word.startswith("--")} <= known


def test_settings_in_the_text_exist():
    every = [flag.flag for c in ENTRIES.values() for flag in flags_for(c, [])]
    found = set(re.findall(r"`(--[a-z0-9-]+)", PAGES[0].read_text()))
    assert found - {"--preset"} <= {f.replace("--no-", "--") for f in every} | {
        f"--no-{flag[2:]}" for flag in every
    }


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_help_fits_on_two_screens(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) <= 90
