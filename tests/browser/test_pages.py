"""The pages of real runs, opened in Chromium; `make test-browser` runs these.

Skipped without the extra [browser], or without Debian's chromium (or another one that
$CHROMIUM names).
"""

import os
import pathlib
import shutil

import numpy as np
import pytest

from afterimage.commands import main

api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)

pytestmark = pytest.mark.timeout(1800)  # for the runs, on a slow machine
CLASSES = ("<b>bars</b>", '"dots" & more', "rings of a name that is very long " * 3)
PAGES = ("pretrain", "unlabelled", "finetune", "compare")


def images(seed, count):
    """uint8 [n, 16, 16, 3] of three patterns in noise, and their classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    patterns = np.zeros((3, 16, 16))
    patterns[0, :, ::2] = patterns[1, ::3, ::3] = 1
    patterns[2, 3:13, 3:13] = 1
    found = 120 * patterns[labels] + rng.uniform(0, 130, (count, 16, 16))
    return np.repeat(found[..., None], 3, -1).astype(np.uint8), labels


def command(*words):
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{name: page} of runs made by the commands."""
    root = tmp_path_factory.mktemp("runs")
    (x, y), (x_test, y_test) = images(0, 240), images(1, 90)
    names = np.array(CLASSES)
    np.savez(
        root / "labelled.npz",
        x_train=x,
        y_train=names[y],
        x_test=x_test,
        y_test=names[y_test],
    )
    np.savez(root / "images.npz", images=x)
    labelled, plain = f"npz:{root}/labelled.npz", f"npz:{root}/images.npz"
    small = ["--width", 0.25, "--steps", 40, "--batch-size", 32, "--objective", "plain"]
    command("pretrain", labelled, "--out", root / "a", *small)
    command("pretrain", plain, "--out", root / "b", *small, "--lr", 0.01)
    few = ["--labels", 30, "--steps", 130, "--batch-size", 32, "--from", root / "a"]
    command("finetune", labelled, *few, "--out", root / "c", "--mode", "scratch")
    command("finetune", labelled, *few, "--out", root / "d", "--mode", "probe")
    command("compare", root / "a", root / "b", "--out", root / "compare.html")
    files = [root / f"{run}/report.html" for run in "abd"]
    return dict(zip(PAGES, [*files, root / "compare.html"]))


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as player:
        # Without a sandbox, as root in a container has none; the pages are our own.
        opened = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, pages):
    """opened(name, width, scheme): a page, and what it said and asked for."""
    contexts = []

    def open_page(name, width=1200, scheme="light"):
        size = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
        page, said, asked = contexts[-1].new_page(), [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(pathlib.Path(pages[name]).as_uri(), wait_until="load")
        return page, said, asked

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [400, 1200])
def test_a_page_fits_says_nothing_and_asks_for_nothing(opened, name, width):
    page, said, asked = opened(name, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not said
    own, *others = asked
    assert own.startswith("file:")
    assert all(url.startswith("data:") for url in others)


@pytest.mark.parametrize("name", PAGES)
def test_every_image_is_decoded(opened, name):
    page, _, _ = opened(name)
    wide = "[...document.images].map(i => i.complete ? i.naturalWidth : 0)"
    found = page.evaluate(wide)
    assert len(found) > 1
    assert min(found) > 0


@pytest.mark.parametrize("name", PAGES)
def test_the_dark_mode_is_dark_and_readable(opened, name):
    levels = {}
    for scheme in ("light", "dark"):
        page, _, _ = opened(name, scheme=scheme)
        for what, of in (("backgroundColor", "section"), ("color", "h1")):
            colour = page.evaluate(
                f"getComputedStyle(document.querySelector('{of}')).{what}"
            )
            numbers = colour[colour.index("(") + 1 :].rstrip(")").split(",")
            levels[scheme, of] = np.mean([float(n) for n in numbers[:3]])
    assert levels["light", "section"] > 200 > 100 > levels["light", "h1"]
    assert levels["dark", "section"] < 60 < 200 < levels["dark", "h1"]


def test_names_are_text_and_nothing_else(opened):
    page, _, _ = opened("finetune")
    text = page.inner_text("main")
    for name in CLASSES[:2]:
        assert name in text
    assert page.locator("main td b, main th b").count() == 0


def test_lines_are_drawn_in_the_colours_of_the_mode(opened):
    strokes = [
        opened("compare", scheme=scheme)[0].evaluate(
            "getComputedStyle(document.querySelector('polyline')).stroke"
        )
        for scheme in ("light", "dark")
    ]
    assert len(set(strokes)) == 2


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_one_small_file(pages, name):
    assert pages[name].stat().st_size < 2_000_000
