"""benchmarks.segmentation: scenes are drawn by seed, and masks say what is on top."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.segmentation import NAMES, SIDE, Scenes, table, write_scenes


def content(folder):
    """{path in the folder: bytes} of every file."""
    every = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in every}


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_same_seed_gives_the_same_bytes(tmp_path, split):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_scenes(tmp_path / name, split, 5, seed)
    first, again, other = (content(tmp_path / name) for name in "abc")
    assert len(first) == 10
    assert first == again
    assert all(first[name] != other[name] for name in first)


def test_scenes_that_are_there_are_kept(tmp_path):
    write_scenes(tmp_path, "test", 2, 0)
    before = content(tmp_path)
    write_scenes(tmp_path, "test", 2, 1)
    assert content(tmp_path) == before


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_mask_has_the_class_of_the_object_on_top(split):
    scenes = Scenes(split)
    for seed in range(20):
        image, mask = scenes(np.random.default_rng(seed))
        same, covers = scenes.pasted(np.random.default_rng(seed))
        np.testing.assert_array_equal(image, same)
        assert (image.shape, image.dtype) == ((SIDE, SIDE, 3), np.uint8)
        assert 1 <= len(covers) <= scenes.most
        for y, x in np.ndindex(mask.shape):
            here = [kind for kind, cover in covers if cover[y, x]]
            assert mask[y, x] == (here[-1] if here else NAMES.index("background"))


def test_files_are_the_scenes(tmp_path):
    write_scenes(tmp_path, "train", 2, 7)
    scenes, rng = Scenes("train"), np.random.default_rng(7)
    for number in range(2):
        for part, pixels in zip(("images", "masks"), scenes(rng)):
            stored = Image.open(tmp_path / part / f"{number:05}.png")
            np.testing.assert_array_equal(np.asarray(stored), pixels)


def test_the_largest_number_of_labels_is_all_of_them(tmp_path):
    few, every = (
        [table(tmp_path, images, seed).read_text() for seed in range(2)]
        for images in (20, 1000)
    )
    assert few[0] != few[1]
    assert every[0] == every[1]
