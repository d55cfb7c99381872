"""The documentation names what exists: links, presets, settings of every command."""

import importlib
import pathlib
import re
import tomllib

import pytest

from afterimage.commands import COMMANDS, module_of
from afterimage.commands.flags import flags_for
from afterimage.finetune.presets import PRESETS as FINETUNE
from afterimage.pretrain.presets import PRESETS as PRETRAIN

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
OF_PACKAGES = {
    name
    for folder in ("modalities", "tests")
    for file in ROOT.glob(f"{folder}/*/pyproject.toml")
    for name in tomllib.loads(file.read_text())["project"]
    .get("entry-points", {})
    .get("afterimage.commands", {})
}
GENERAL = {"--preset", "--help", "--help-all", "--config", "--print-config"}


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [
        link
        for link in links
        if not link.startswith(("http:", "https:"))
        and not (page.parent / link).exists()
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_a_section_name_one(page):
    missing = []
    for link, section in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text()):
        other = page.parent / link if link else page
        headings = re.findall(r"^#+ (.+)$", other.read_text(), re.MULTILINE)
        # As GitHub makes them: lower case, punctuation gone, a hyphen a space.
        slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
        missing += [f"{link}#{section}"] * (section not in slugs)
    assert not missing


def command_of(words):
    """The command of these words, and the words that are its own."""
    module = importlib.import_module(module_of(words[0]))
    if hasattr(module, "COMMAND"):
        return module.COMMAND, words[1:]
    return module.COMMANDS.get(words[1]) if len(words) > 1 else None, words[2:]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_their_flags_exist(page):
    text = page.read_text().replace("\\\n", " ")
    unknown = []
    for line in re.findall(r"(?m)(?:^|`|\$ ) *afterimage ([a-z]+[^\n`|#]*)", text):
        words = line.split()
        if words[0] in OF_PACKAGES:  # their own tests parse these
            continue
        if words[0] not in COMMANDS:
            unknown.append(words[0])
            continue
        command, rest = command_of(words)
        given = {w.partition("=")[0] for w in rest if re.match(r"--[a-z]", w)}
        if command is not None:
            known = {flag.flag for flag in flags_for(command, rest)} | GENERAL
            known |= set(command.actions)
            # Those of the package that the guide writes as an example.
            given -= {flag for flag in given if flag.startswith("--same-place.")}
            unknown += [f"{words[0]} {flag}" for flag in sorted(given - known)]
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_switches_take_no_value(page):
    """They are --name or --no-name; a value would be taken for the data."""
    assert not re.findall(r"--[a-z-]+[ =](?:True|False)\b", page.read_text())


@pytest.mark.parametrize("presets", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_every_preset_is_in_the_guide(presets):
    text = (ROOT / "docs/guide/presets.md").read_text()
    first = " ".join(re.findall(r"^\|([^|]*)\|", text, re.MULTILINE))
    assert [n for n in presets if f"`{n}`" not in first] == []
