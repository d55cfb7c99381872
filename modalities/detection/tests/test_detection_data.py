"""COCO files and YOLO labels: the same boxes; what is wrong is named."""

import json

import detection_scenes as scenes
import numpy as np
import pytest
from afterimage_detection.config import DetectConfig
from afterimage_detection.data import Letterbox, letterboxed, open_boxes, restored
from PIL import Image

from afterimage.errors import DataError, UserError

SQUARE = Letterbox((16, 16, 3), (16, 16), None, (1, 2, 3))


def opened(folder, boxes="boxes.json", decoder=SQUARE, **more):
    return open_boxes(
        DetectConfig(
            data=str(folder / "images"),
            boxes=str(folder / boxes),
            from_="unused",
            out="unused",
            **more,
        ),
        decoder,
    )


@pytest.fixture
def place(tmp_path):
    scenes.write(tmp_path, 12)
    return tmp_path


def changed(place, change):
    """Rewrites boxes.json."""
    content = json.loads((place / "boxes.json").read_text())
    change(content)
    (place / "boxes.json").write_text(json.dumps(content))


def test_both_formats_give_the_same_boxes(place):
    one, two = opened(place), opened(place, "labels")
    assert one.classes == two.classes == scenes.NAMES
    assert (one.numbers, two.numbers) == ((10, 11), (0, 1))
    for part in ("train", "validation", "test"):
        first, second = one.sets[part], two.sets[part]
        assert first.ids == second.ids
        for name, array in first.arrays.items():
            np.testing.assert_allclose(array, second.arrays[name], atol=1e-4)
    sizes = {name: len(part) for name, part in one.sets.items()}
    assert sizes == {"train": 9, "validation": 1, "test": 2}
    assert len({name for part in one.sets.values() for name in part.ids}) == 12
    # The pixels in a bright box are bright.
    image, boxes = (
        one.sets["train"].arrays["image"][0],
        one.sets["train"].arrays["boxes"][0],
    )
    x1, y1, x2, y2 = boxes[0].astype(int)
    assert (image[y1:y2, x1:x2] > 200).mean() > 0.5


def test_boxes_of_other_sizes_go_there_and_back(place):
    for n, (h, w) in enumerate([(37, 91), (200, 64)]):
        pixels = np.full((h, w, 3), 200, np.uint8)
        Image.fromarray(pixels).save(place / "images" / f"{n:02}.png")

    def change(content):
        content["images"][0] |= {"height": 37, "width": 91}
        content["images"][1] |= {"height": 200, "width": 64}
        content["annotations"] = [
            {"image_id": 0, "category_id": 10, "bbox": [70.5, 3, 20.5, 30]},
            {"image_id": 1, "category_id": 11, "bbox": [1, 150, 80, 50], "iscrowd": 1},
            {"image_id": 1, "category_id": 11, "bbox": [5, 5, 0, 9]},
        ]

    changed(place, change)
    data = opened(place, hold_out=0.0, validation=0.0)
    arrays = data.sets["train"].arrays
    assert (arrays["classes"][:2] == [[0], [-3]]).all()
    assert (arrays["classes"][2:] == -1).all()
    rows = np.concatenate([arrays["boxes"], np.zeros((12, 1, 2))], -1)
    back = restored(rows[0], (37, 91), 16)[0]
    np.testing.assert_allclose(back[:4], [70.5, 3, 20.5, 30], atol=1e-4)
    back = restored(rows[1], (200, 64), 16)[0]
    np.testing.assert_allclose(back[:4], [1, 150, 63, 50], atol=1e-4)
    # The rest of the square has one colour.
    assert (arrays["image"][0, 7:] == [1, 2, 3]).all()
    assert (arrays["image"][0, :6] == 200).all()
    many = letterboxed(np.zeros((4, 8, 6), np.uint8), 8, range(6))
    assert (many[:4] == 0).all()
    assert (many[4:] == np.arange(6)).all()


def test_folders_set_images_apart(place):
    for n in range(12):
        part = place / "images" / ("train" if n < 8 else "test")
        part.mkdir(exist_ok=True)
        (place / "images" / f"{n:02}.png").rename(part / f"{n:02}.png")

    def change(content):
        for n, image in enumerate(content["images"]):
            image["file_name"] = f"{'train' if n < 8 else 'test'}/{n:02}.png"

    changed(place, change)
    data = opened(place)
    assert list(data.sets["test"].ids) == [f"test/{n:02}.png" for n in range(8, 12)]
    assert len(data.sets["train"]) + len(data.sets["validation"]) == 8


def no_categories(content):
    content["categories"] = []


def two_corners(content):
    for one in content["annotations"]:
        one["bbox"] = [9, 9, 15, 15]


CASES = {
    "an image that is missing": (
        lambda c: c["images"][3].update(file_name="lost.png"),
        "lost.png: is missing",
    ),
    "an image of another size": (
        lambda c: c["images"][3].update(width=99),
        "16x16 pixels, but the annotations say 99x16",
    ),
    "a size of zero": (lambda c: c["images"][3].update(width=0), "0x16 pixels"),
    "an id without an image": (
        lambda c: c["annotations"][4].update(image_id=77),
        "annotation 4: no image has the id 77",
    ),
    "an unknown category": (
        lambda c: c["annotations"][4].update(category_id=5),
        "no category has the id 5",
    ),
    "no category": (no_categories, "id of categories: there is none"),
    "an image twice": (
        lambda c: c["images"].append({**c["images"][0], "id": 99}),
        "file_name: 00.png twice",
    ),
    "a box without a number": (
        lambda c: c["annotations"][0].update(bbox=[1, 2, "x", 4]),
        r"annotations\[0\].bbox\[2\]",
    ),
    "a box that is not one": (
        lambda c: c["annotations"][0].pop("bbox"),
        "missing required field `bbox`",
    ),
    "NaN": (
        lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]),
        "no COCO file",
    ),
    "two corners": (two_corners, "24 of 24 boxes end outside .* two corners"),
    "no box at all": (lambda c: c["annotations"].clear(), "no image has a box"),
    "a path outside": (
        lambda c: c["images"][0].update(file_name="../boxes.json"),
        "--outside-images",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_in_a_coco_file(place, case):
    change, message = CASES[case]
    changed(place, change)
    with pytest.raises(DataError, match=message):
        opened(place)


LABELS = {
    "a class too many": ("2 .5 .5 .1 .1", "class from 0 to 1"),
    "pixels": ("0 8 8 4 4", "shares of the image's sides"),
    "a polygon": ("0 .1 .1 .2 .2 .3 .3", "00.txt: 0 .1"),
    "words": ("cat .5 .5 .1 .1", "00.txt: cat"),
    "NaN": ("0 nan .5 .1 .1", "00.txt: 0 nan"),
    "no width": ("0 .5 .5 0 .1", "00.txt"),
}


@pytest.mark.parametrize("case", LABELS)
def test_what_is_wrong_in_labels(place, case):
    text, message = LABELS[case]
    (place / "labels/00.txt").write_text(f"0 .5 .5 .1 .1\n{text}\n")
    with pytest.raises(DataError, match=message):
        opened(place, "labels")


def test_what_is_wrong_elsewhere(place, capsys):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        opened(place, "lost.json")
    with pytest.raises(UserError, match="leave this out"):
        opened(place, classes=("a", "b"))
    with pytest.raises(DataError, match="1 images are too few to hold out 10% for val"):
        opened(place, hold_out=0.99)
    (place / "labels/00.txt").unlink()
    opened(place, "labels")
    assert "1 of 12 images have no file of labels" in capsys.readouterr().err
    (place / "labels/lost.txt").write_text("")
    with pytest.raises(DataError, match=r"lost\.txt has no image"):
        opened(place, "labels")
    (place / "labels/classes.txt").unlink()
    with pytest.raises(UserError, match=r"classes\.txt"):
        opened(place, "labels")
    (place / "images/03.png").write_bytes(b"broken")
    (place / "labels/lost.txt").unlink()
    with pytest.raises(DataError, match=r"03.png: .*\n.*Repair"):
        opened(place, "labels", classes=scenes.NAMES)


def test_a_test_set_of_its_own_has_the_classes_of_the_training(place, tmp_path):
    (tmp_path / "other").mkdir()
    scenes.write(tmp_path / "other", 5, seed=1)
    notes = json.loads((tmp_path / "other" / "boxes.json").read_text())
    # The same classes, in another order and with other numbers.
    notes["categories"] = [{"id": n, "name": scenes.NAMES[1 - n]} for n in (0, 1)]
    for one in notes["annotations"]:
        one["category_id"] = 11 - one["category_id"]
    notes["annotations"][0]["iscrowd"] = 1
    (tmp_path / "other" / "boxes.json").write_text(json.dumps(notes))
    both = {"test_data": str(tmp_path / "other" / "images")}
    both["test_boxes"] = str(tmp_path / "other" / "boxes.json")
    plain = scenes.write(tmp_path / "same", 5, seed=1)["annotations"]
    data = opened(place, **both)
    assert {name: len(part) for name, part in data.sets.items()} == {
        "train": 11,
        "validation": 1,
        "test": 5,
    }
    assert (data.classes, data.numbers) == (scenes.NAMES, (10, 11))
    found = data.sets["test"].arrays["classes"]
    first = plain[0]["category_id"] - 10
    assert found[0, 0] == -2 - first
    kinds = [one["category_id"] - 10 for one in plain if one["image_id"] == 1]
    assert found[1, : len(kinds)].tolist() == kinds
    labels = {**both, "test_boxes": str(tmp_path / "same" / "labels")}
    again = opened(place, "labels", **labels)
    assert again.sets["test"].arrays["classes"][1, : len(kinds)].tolist() == kinds
    assert again.fingerprint != data.fingerprint
    notes["categories"][0]["name"] = "moon"
    (tmp_path / "other" / "boxes.json").write_text(json.dumps(notes))
    with pytest.raises(DataError, match="no training image has the class 'moon'"):
        opened(place, **both)
    with pytest.raises(UserError, match="give both, or neither"):
        opened(place, test_data=both["test_data"])
    with pytest.raises(DataError, match=r"test_data=.*there is no such folder"):
        opened(place, **both | {"test_data": str(tmp_path / "none")})
