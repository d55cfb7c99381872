"""Makes afterimage/data/sources/characters.npz from handwriting and display fonts.

`python -m benchmarks.characters --packages FOLDER`. FOLDER has node_modules with the
npm packages `@fontsource/NAME` of FONTS; all are under the SIL Open Font License, and
another licence is refused. Each letter and digit is drawn white on black and scaled to
fit 22 of 28 pixels, and its brightest pixel is 255. The classes are those of EMNIST's
balanced set: the small letters that look like their capitals are left out, and so are
fonts in which all do. 60 % of the fonts, drawn with seed 0, are the training split. The
list of fonts, versions and copyrights is written beside it.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import string
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from afterimage.commands import exit_code
from afterimage.data.sources import characters
from afterimage.errors import DataError

FONTS = """\
alex-brush allura annie-use-your-telescope architects-daughter bad-script
balsamiq-sans berkshire-swash bubblegum-sans cabin-sketch calistoga carter-one caveat
caveat-brush cedarville-cursive chilanka coiny comic-neue comic-relief cookie corinthia
courgette covered-by-your-grace damion dancing-script delicious-handrawn delius ephesis
finger-paint fredericka-the-great freehand gaegu gloria-hallelujah gochi-hand
grand-hotel grandstander great-vibes handlee happy-monkey herr-von-muellerhoff
indie-flower italianno itim kalam kaushan-script knewave lemonada licorice
liu-jian-mao-cao lobster lobster-two londrina-solid long-cang ma-shan-zheng mansalva
marck-script medievalsharp monsieur-la-doulaise montecarlo mouse-memoirs mr-de-haviland
ms-madi nanum-brush-script nanum-pen-script neucha oooh-baby pacifico parisienne
patrick-hand pinyon-script playpen-sans poor-story rammetto-one reenie-beanie rowdies
sacramento shadows-into-light shantell-sans short-stack shrikhand smooch sniglet
spicy-rice sriracha sue-ellen-francisco swanky-and-moo-moo tangerine the-girl-next-door
twinkle-star unifrakturmaguntia vibur whisper yomogi
yusei-magic zen-kurenaido zhi-mang-xing"""
SMALL = "abdefghnqrt"
CLASSES = string.digits + string.ascii_uppercase + SMALL
_OFL, _TITLE = "OFL-1.1", "SIL OPEN FONT LICENSE Version 1.1"
_FIT, _SIZE, _TRAIN = 22, 200, 0.6


@dataclasses.dataclass(frozen=True)
class Font:
    """One package: its version, its copyright and its drawings, uint8 [47, 28, 28]."""

    name: str
    version: str
    copyright: str
    images: np.ndarray


def _copyright(folder: pathlib.Path) -> str:
    """The copyright line of a package's licence; an error unless that is the OFL."""
    said = json.loads((folder / "package.json").read_text())["license"]
    file = folder / "LICENSE"
    text = " ".join(file.read_text().split()) if file.is_file() else ""
    before, title, _ = text.partition(_TITLE)
    if said != _OFL or not title:
        raise DataError(f"{folder.name}: licence {said}; expected {_OFL} with its text")
    holder = before.split(" This Font Software ")[0].strip(" -")
    return re.split(r" \S+\.ttf: ", holder)[0]  # the same again for each style


def _written(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """A character on a canvas that the longest strokes do not leave."""
    canvas = Image.new("L", (5 * _SIZE, 5 * _SIZE))
    ImageDraw.Draw(canvas).text((2 * _SIZE, _SIZE), character, fill=255, font=font)
    return canvas


def drawing(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    """uint8 [28, 28]; None for a character that the font lacks."""
    glyph, missing = (_written(font, one) for one in (character, "\uffff"))
    box = glyph.getbbox()
    if box is None or glyph == missing:
        return None
    cut = glyph.crop(box)
    scale = _FIT / max(cut.size)
    size = [max(1, round(side * scale)) for side in cut.size]
    small = np.asarray(cut.resize((size[0], size[1]), Image.Resampling.BOX))
    image = np.zeros((characters.SIDE, characters.SIDE), np.uint8)
    top, left = ((characters.SIDE - side) // 2 for side in small.shape)
    level = small.astype(np.float32) * (255 / small.max())
    image[top : top + small.shape[0], left : left + small.shape[1]] = level.round()
    return image


def read(folder: pathlib.Path) -> Font:
    """A package's font."""
    name = folder.name
    if not folder.is_dir():
        raise DataError(f"there is no {folder}: npm install @fontsource/{name}")
    holder = _copyright(folder)
    file = folder / "files" / f"{name}-latin-400-normal.woff"
    found = [drawing(ImageFont.truetype(str(file), _SIZE), c) for c in CLASSES]
    images = [image for image in found if image is not None]
    if len(images) < len(CLASSES):
        raise DataError(f"{file}: lacks {len(CLASSES) - len(images)} characters")
    version = json.loads((folder / "package.json").read_text())["version"]
    return Font(name, version, holder, np.stack(images))


def arrays(fonts: list[Font], seed: int = 0) -> dict[str, np.ndarray]:
    """x_train, y_train, fonts_train, the same for test, and classes; class by class."""
    order = np.random.default_rng(seed).permutation(len(fonts))
    count = round(_TRAIN * len(fonts))
    made: dict[str, np.ndarray] = {"classes": np.array([*CLASSES])}
    for split, rows in (("train", order[:count]), ("test", order[count:])):
        chosen = [fonts[row] for row in sorted(rows)]
        images = np.stack([font.images for font in chosen], axis=1)
        made[f"x_{split}"] = images.reshape(-1, *images.shape[2:])
        labels = np.arange(len(CLASSES), dtype=np.int32)
        made[f"y_{split}"] = np.repeat(labels, len(rows))
        made[f"fonts_{split}"] = np.array([font.name for font in chosen])
    return made


def notice(fonts: list[Font], licence: str) -> str:
    """The text beside the images: what they are drawn with, and the fonts' licence."""
    head = (
        "characters.npz holds images of letters and digits, drawn by\n"
        "`python -m benchmarks.characters` with these fonts from npm. The fonts are\n"
        "not in this package. Each is under the SIL Open Font License, Version 1.1,\n"
        "which follows the list.\n"
    )
    lines = [f"@fontsource/{f.name} {f.version}: {f.copyright}" for f in fonts]
    return "\n".join([head, *lines, "", licence])


def main() -> None:
    """Writes the files that the package ships."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.characters")
    parser.add_argument("--packages", type=pathlib.Path, required=True)
    place = parser.parse_args().packages / "node_modules" / "@fontsource"
    fonts = [read(place / name) for name in FONTS.split()]
    made = arrays(fonts)
    np.savez_compressed(characters.FILE, **made)  # pyright: ignore[reportArgumentType]
    text = (place / fonts[0].name / "LICENSE").read_text()
    licence = text[text.index(_TITLE) :].replace("\r", "")
    characters.NOTICE.write_text(notice(fonts, licence), encoding="utf-8")
    sizes = {split: len(made[f"fonts_{split}"]) for split in ("train", "test")}
    print(
        f"{characters.FILE}: {characters.FILE.stat().st_size:,} bytes; fonts: {sizes}"
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
