"""Pairs of files: what is read, and what is refused before anything is trained."""

import numpy as np
import pytest
import scenes
from afterimage_segmentation.config import SegmentConfig
from afterimage_segmentation.data import IGNORED, nearest, open_pairs
from PIL import Image

from afterimage.data.pixels import cover_and_crop
from afterimage.errors import UserError


@pytest.fixture
def folder(tmp_path):
    scenes.write(tmp_path, 10)
    return tmp_path


def opened(folder, side=16, images="images", masks="masks", **settings):
    config = SegmentConfig(
        images=str(folder / images) if isinstance(images, str) else images[0],
        masks=None if masks is None else str(folder / masks),
        from_="unused",
        out="unused",
        **settings,
    )
    return open_pairs(config, side, 3, None)


def refused(folder, *words, **settings):
    with pytest.raises(UserError) as error:
        opened(folder, **settings)
    for word in words:
        assert word in str(error.value)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def mask_of(folder, number):
    return pixels(folder / "masks" / f"{number:02}.png")


def test_a_mask_stays_with_its_image(folder):
    data = opened(folder)
    assert (
        len(data.sets["train"]),
        len(data.sets["validation"]),
        len(data.sets["test"]),
    ) == (7, 1, 2)
    for part in (data.sets["train"], data.sets["validation"], data.sets["test"]):
        for row, name in enumerate(part.ids):
            assert (part.truth[row] == mask_of(folder, int(name[:2]))).all()
            image = pixels(folder / "images" / name)
            assert (part.inputs(np.array([row]))["image"][0] == image).all()
    assert data.classes.names == ("0", "1", "2")


def test_masks_are_cropped_as_images_are():
    values = np.arange(40)[None, :] // 10 + np.zeros((30, 1), int)
    image = (60 * values[..., None]).astype(np.uint8)
    small = cover_and_crop(image, (12, 12))[..., 0] / 60
    known = small == np.round(small)
    assert known.mean() > 0.5
    assert (nearest(values, (12, 12))[known] == small[known]).all()


def test_colours_are_classes_by_their_order(folder):
    table = np.array([(0, 0, 0), (9, 200, 0), (0, 0, 250)], np.uint8)
    for file in (folder / "masks").iterdir():
        scenes.save(file, table[mask_of(folder, int(file.stem))])
    data = opened(folder, classes=("nothing", "dark", "bright"))
    assert data.classes.values == (0, 250, (9 << 16) + (200 << 8))
    assert data.classes.coloured
    assert (
        data.sets["train"].truth[0] == np.array([0, 2, 1])[mask_of_train(folder, data)]
    ).all()


def mask_of_train(folder, data):
    file = folder / "masks" / data.sets["train"].ids[0]
    pixels = np.asarray(Image.open(file)).astype(int)
    return np.where(pixels[..., 1] > 0, 1, np.where(pixels[..., 2] > 0, 2, 0))


def test_a_palette_gives_the_colours(folder):
    palette = [0, 0, 0, 255, 0, 0, 0, 255, 0]
    for file in (folder / "masks").iterdir():
        image = Image.fromarray(mask_of(folder, int(file.stem)))
        image.putpalette(palette)
        image.save(file)
    assert opened(folder).classes.colours == ((0, 0, 0), (255, 0, 0), (0, 255, 0))


def test_what_is_ignored_is_no_class(folder):
    data = opened(folder, ignore="0")
    assert data.classes.names == ("1", "2")
    assert set(np.unique(data.sets["train"].truth)) == {0, 1, IGNORED}


def test_black_and_white_masks(folder):
    for file in (folder / "masks").iterdir():
        ground = mask_of(folder, int(file.stem)) == 0
        scenes.save(file, np.where(ground, 0, 255).astype(np.uint8))
    refused(folder, "only one class, 0", "--ignore none")
    data = opened(folder, ignore="none", classes=("ground", "cell"))
    assert data.classes.values == (0, 255)
    assert set(np.unique(data.sets["train"].truth)) == {0, 1}


def test_a_table_names_images_masks_and_splits(folder):
    lines = ["image,mask,split"]
    for n in range(10):
        split = "test" if n > 6 else "val" if n == 6 else "train"
        lines.append(f"images/{n:02}.png,masks/{n:02}.png,{split}")
    (folder / "table.csv").write_text("\n".join(lines))
    data = opened(folder, images="table.csv", masks=None)
    assert list(data.sets["test"].ids) == [f"images/{n:02}.png" for n in (7, 8, 9)]
    assert (data.sets["test"].truth[1] == mask_of(folder, 8)).all()
    assert (len(data.sets["train"]), len(data.sets["validation"])) == (6, 1)


def test_folders_set_a_test_apart(folder, tmp_path):
    for part in ("images", "masks"):
        for split, some in (("train", range(8)), ("test", range(8, 10))):
            (folder / part / split).mkdir()
            for n in some:
                name = f"{n:02}.png"
                (folder / part / name).rename(folder / part / split / name)
    data = opened(folder)
    assert list(data.sets["test"].ids) == ["test/08.png", "test/09.png"]
    scenes.save(folder / "masks" / "test" / "09.png", np.full((16, 16), 7, np.uint8))
    refused(folder, "test/09.png", "value 7", "0, 1, 2", "--classes")
    eight = tuple("abcdefgh")
    assert opened(folder, classes=eight).sets["test"].truth[1].max() == 7


@pytest.mark.parametrize(
    ("spoil", "words", "settings"),
    [
        (lambda f: (f / "masks/03.png").unlink(), ["03.png has no mask"], {}),
        (lambda f: (f / "images/03.png").unlink(), ["03.png has no image"], {}),
        (
            lambda f: scenes.save(f / "masks/03.png", np.zeros((16, 9), np.uint8)),
            ["03.png", "9x16", "16x16"],
            {},
        ),
        (lambda f: (f / "masks/03.png").write_bytes(b"no"), ["03.png", "PNG"], {}),
        (
            lambda f: (f / "masks/03.png").write_bytes(
                (f / "masks/03.png").read_bytes()[:50]
            ),
            ["03.png", "damaged"],
            {},
        ),
        (
            lambda f: scenes.save(f / "masks/03.png", np.zeros((16, 16, 3), np.uint8)),
            ["numbers and others colours"],
            {},
        ),
        (lambda f: None, ["2 names", "0, 1, 2"], {"classes": ("a", "b")}),
        (
            lambda f: [
                p.unlink()
                for d in ("images", "masks")
                for p in [*(f / d).iterdir()]
                if p.name > "01.png"
            ],
            ["1 images are too few", "for validation"],
            {},
        ),
        (lambda f: None, ["masks: give the folder"], {"masks": None}),
        (
            lambda f: (f / "images/03.jpg").write_bytes(
                (f / "images/03.png").read_bytes()
            ),
            ["03.jpg", "03.png", "rename"],
            {},
        ),
    ],
)
def test_bad_input_is_named(folder, spoil, words, settings):
    spoil(folder)
    refused(folder, *words, **settings)


def test_a_table_with_mistakes(folder):
    table = folder / "table.csv"
    table.write_text("image,label\nimages/00.png,a\n")
    refused(folder, "no column mask", images="table.csv", masks=None)
    table.write_text("image,mask\nimages/00.png,\nimages/01.png,../x.png\n")
    words = ["images/00.png has no mask", "../x.png is outside"]
    refused(folder, *words, images="table.csv", masks=None)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"ignore": "#12"}, "ignore"),
        ({"classes": ("a", "a")}, "classes"),
        ({"dice": -1.0}, "dice"),
        ({"hold_out": 1.0}, "hold_out"),
        ({"mode": "froze"}, "frozen"),
        ({"image_size": 4}, "image_size"),
    ],
)
def test_settings_that_cannot_work(tmp_path, settings, word):
    refused(tmp_path, word, **settings)
