"""Pictures of a pretraining page show the images, features and weights they name."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from afterimage.data.sets import ImageSet
from afterimage.pretrain import gallery
from afterimage.pretrain.figures import figures, standard_error


def pixels_of(tile):
    data = base64.b64decode(tile.uri.partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def album(levels, labels=None):
    """An image of one grey level each, with classes."""
    images = np.broadcast_to(
        np.array(levels, np.uint8)[:, None, None, None], (len(levels), 8, 8, 1)
    )
    return ImageSet(
        name="grey",
        images=images,
        ids=[str(i) for i in range(len(levels))],
        labels=None if labels is None else np.array(labels, np.int32),
        class_names=("a", "b"),
        fingerprint="0",
    )


def level(tile):
    return int(pixels_of(tile)[0, 0, 0])


def shown(part):
    return [[level(tile) for tile in tiles] for _, tiles in part.rows]


def test_neighbours_are_the_nearest_by_cosine_and_marked_by_class():
    train = album([10, 20, 30], [0, 1, -1])
    held = album([200, 210], [0, 1])
    vectors = np.array([[1, 0], [1, 1], [0, 1]], np.float32)
    asked = np.array([[3, 0.1], [0, 2]], np.float32)
    part = gallery.neighbours(held, asked, train, vectors)
    assert shown(part) == [[200, 10, 20, 30], [210, 30, 20, 10]]
    marks = [[tile.mark for tile in tiles] for _, tiles in part.rows]
    assert marks == [["", "good", "bad", ""], ["", "", "good", "bad"]]
    assert [tile.caption for tile in part.rows[0][1]] == ["a", "a", "b", ""]


def test_without_labels_an_image_is_not_its_own_neighbour():
    images = album([10, 20, 30])
    vectors = np.array([[1, 0], [1, 0.1], [0, 1]], np.float32)
    part = gallery.neighbours(images, vectors, images, vectors)
    assert shown(part) == [[10, 20, 30], [20, 10, 30], [30, 20, 10]]
    assert gallery.neighbours(images, vectors * np.nan, images, vectors) is None
    one = album([10])
    assert gallery.neighbours(one, vectors[:1], one, vectors[:1]) is None


def rows(value):
    steps = np.full((3, 8, 6, 1), value / 255, np.float32)
    return {"input": np.zeros((3, 8, 6, 1)), "seen": steps * 0, "drawn": steps}


def test_reconstructions_go_from_the_first_to_the_last(tmp_path):
    for step in range(1, 12):
        gallery.write_rows(rows(10 * step), tmp_path / f"step-{step:07d}.png")
    (tmp_path / "step-0000002.png").write_bytes(b"damaged")
    (tmp_path / "step-odd.png").write_bytes(b"")
    Image.new("L", (4, 4)).save(tmp_path / "step-0000003.png")  # without its text
    part = gallery.reconstructions(tmp_path, "drawn", 10, beside=False)
    labels = [label for label, _ in part.rows]
    assert labels[:3] == ["input", "seen", "after step 1"]
    assert labels[-1] == "after step 10"  # step 11 belongs to no run any more
    assert shown(part)[-1] == [100] * 3
    assert shown(part)[2] == [10] * 3
    assert pixels_of(part.rows[0][1][0]).shape == (8, 6, 3)
    assert gallery.reconstructions(tmp_path / "no", "drawn", 9, beside=False) is None


@pytest.mark.parametrize(("channels", "name"), [(1, "a/kernel"), (3, "b/0/kernel")])
def test_filters_are_those_of_the_layer_that_reads_the_image(channels, name):
    rng = np.random.default_rng(0)
    first = rng.normal(size=(5, 4, channels, 7)).astype(np.float32)
    params = {"z": {"kernel": rng.normal(size=(3, 3, 7, 8))}, "bias": np.zeros(3)}
    place = params
    *folders, leaf = name.split("/")
    for folder in folders:
        place = place.setdefault(folder, {})
    place[leaf] = first
    part = gallery.filters(params, channels)
    ((_, tiles),) = part.rows
    assert len(tiles) == 7
    found = np.stack([pixels_of(tile) for tile in tiles], -1).astype(float)
    assert found.shape == (5, 4, 3, 7)
    # Brighter where the weight is larger, up to the darkest and brightest.
    ends = np.abs(first) < np.quantile(np.abs(first), 0.98)
    weights = np.broadcast_to(first, found.shape)[np.broadcast_to(ends, found.shape)]
    grey = found[np.broadcast_to(ends, found.shape)]
    assert np.corrcoef(weights, grey)[0, 1] > 0.99
    assert gallery.filters({"bias": np.zeros(3)}, channels) is None


LABELS = {"ridge_10": "ten", "ridge": "all", "knn": "kNN"}


def report_of(ours, raw):
    each = {"this encoder": ours, "raw pixels": raw}
    return {n: {key: {"value": v} for key in LABELS} for n, v in each.items()}


@pytest.mark.parametrize(
    ("ours", "raw", "mark"), [(0.9, 0.5, "good"), (0.5, 0.9, "bad"), (0.7, 0.69, "")]
)
def test_a_figure_is_good_or_bad_beside_what_needs_no_training(ours, raw, mark):
    found = figures({}, [], report_of(ours, raw), LABELS, 200, beside=False)
    assert {name: one.mark for name, one in found.items()} == dict.fromkeys(
        LABELS.values(), mark
    )
    assert found["ten"].value == f"{100 * ours:.1f} %"
    assert standard_error(0.5, 0.5, 200) == pytest.approx(0.05)


def test_a_loss_that_has_risen_is_a_bad_sign():
    curve = [{"step": s, "eval/loss": v} for s, v in [(1, 0.9), (2, 0.5), (3, 0.7)]]
    found = figures({"loss": 0.7}, curve, {}, LABELS, 9, beside=False)
    assert found["validation loss"].mark == "bad"
    assert "0.5, at step 2" in found["validation loss"].hint
    marks = {
        value: figures({"relative_loss": value}, [], {}, LABELS, 9, beside=False)
        for value in (0.3, 0.8, 0.99)
    }
    assert [next(iter(f.values())).mark for f in marks.values()] == ["good", "", "bad"]
