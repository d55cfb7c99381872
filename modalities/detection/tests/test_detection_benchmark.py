"""benchmarks.detection: scenes are drawn by seed; boxes are those of what is seen."""

import json

import numpy as np
import pytest

from benchmarks.detection import (
    CLASSES,
    MOST,
    NAMES,
    OBJECTS,
    SIDE,
    Scenes,
    boxes_file,
    scene,
    write_scenes,
)


def content(folder):
    """{name: bytes} of every file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_same_seed_gives_the_same_bytes(tmp_path, split):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_scenes(tmp_path / name, split, 5, seed)
    first, again, other = (content(tmp_path / name) for name in "abc")
    assert len(first) == 5 + 1  # images and boxes.json
    assert first == again
    assert all(first[name] != other[name] for name in first)


@pytest.mark.parametrize("split", ["train", "test"])
def test_boxes_are_tight_around_what_is_seen(split):
    scenes, drawn = Scenes(split, SIDE, MOST, OBJECTS), []
    pasted = scenes.pasted
    scenes.pasted = lambda rng: drawn.append(pasted(rng)) or drawn[-1]
    hidden = 0
    for seed in range(40):
        image, boxes = scene(scenes, np.random.default_rng(seed))
        same, covers = drawn[-1]
        assert image is same
        owner = np.full(image.shape[:2], -1)
        for number, (_, cover) in enumerate(covers):  # the lowest first
            owner[cover] = number
        assert len(boxes) == len(covers)
        for number, found in enumerate(boxes[::-1]):
            kind, cover = covers[number]
            assert found["category_id"] == kind
            y, x = np.nonzero(owner == number)
            assert 2 * len(y) >= cover.sum()
            hidden += len(y) < cover.sum()
            left, top, width, height = found["bbox"]
            assert (left, top) == (x.min(), y.min())
            assert (left + width - 1, top + height - 1) == (x.max(), y.max())
    assert hidden  # some objects are partly covered
    assert len(drawn) > 40  # scenes that hide too much were drawn anew


def test_the_coco_file_has_the_boxes_of_its_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.detection.TEST", 2)
    monkeypatch.setattr("benchmarks.detection.SIZES", (2, 4))
    for part, count in (("train", 4), ("test", 2)):
        write_scenes(tmp_path / "scenes" / part, part, count, 0)
    coco = json.loads(boxes_file(tmp_path, 2, 0).read_text())
    names = [image["file_name"] for image in coco["images"]]
    assert [name.split("/")[0] for name in names] == ["train"] * 2 + ["test"] * 2
    for image in coco["images"]:
        part, file = image["file_name"].split("/")
        every = json.loads((tmp_path / "scenes" / part / "boxes.json").read_text())
        own = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        wanted = every[int(file.removesuffix(".png"))]
        assert [{k: a[k] for k in ("category_id", "bbox")} for a in own] == wanted
    kinds = {one["id"]: one["name"] for one in coco["categories"]}
    assert kinds == {NAMES.index(name): name for name in CLASSES}
