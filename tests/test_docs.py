"""The documentation names what exists: links, presets, settings of every command."""

import dataclasses
import pathlib
import re

import pytest

from afterimage.evaluate_command import EvaluateConfig
from afterimage.features_command import FeaturesConfig
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.presets import PRESETS as FINETUNE
from afterimage.finetune.select_config import SelectConfig
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.presets import PRESETS as PRETRAIN

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
CONFIGS = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "features": FeaturesConfig,
    "select": SelectConfig,
}


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


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_have_settings_that_exist(page):
    text = page.read_text().replace("\\\n", " ")
    unknown = []
    for command, rest in re.findall(r"afterimage (\w+)([^\n`|#]*)", text):
        if command not in CONFIGS:
            continue
        fields = {f.name.rstrip("_") for f in dataclasses.fields(CONFIGS[command])}
        flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z0-9-]+)", rest)}
        unknown += [(command, flag) for flag in flags - fields - {"preset", "help"}]
    assert not unknown


@pytest.mark.parametrize("presets", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_every_preset_is_in_the_guide(presets):
    text = (ROOT / "docs/guide/presets.md").read_text()
    first = " ".join(re.findall(r"^\|([^|]*)\|", text, re.MULTILINE))
    assert [n for n in presets if f"`{n}`" not in first] == []
