"""Images listed in a table: labels, splits, tasks, and what a broken table says."""

import numpy as np
import pytest

from afterimage.data import check_classes, open_data
from afterimage.errors import DataError, UserError
from afterimage.evaluate_command import EvaluateConfig
from finetune.evaluate import evaluate
from finetune.program import finetune
from tests.test_data_sources import write
from tests.test_finetune_program import config, make_encoder

NAMES = ["a.png", "scans/b.png", "scans/c.png", "d.png"]


def table(root, text, name="labels.csv"):
    (root / name).write_text(text, encoding="utf-8")
    return f"csv:{root / name}"


def named(images):
    names = [
        images.class_names[label] if label >= 0 else None for label in images.labels
    ]
    return dict(zip(images.ids, names))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_labels_splits_and_tasks(tmp_path, delimiter):
    write(tmp_path, [*NAMES, "not-listed.png"])
    text = (
        "\ufeffsplit,image,label,stain\n"
        'train,a.png,"good, very",red\n'
        "train,scans/b.png,bad,\n"
        "\n"
        "Test,scans/c.png,bad,blue\n"
        "train, d.png ,,red\n"
    )
    if delimiter != ",":
        text = text.replace('"good, very"', "good").replace(",", delimiter)
    splits = open_data(table(tmp_path, text), tasks=("stain", "organ"))
    good = "good, very" if delimiter == "," else "good"
    assert named(splits.train) == {"a.png": good, "scans/b.png": "bad", "d.png": None}
    assert named(splits.test) == {"scans/c.png": "bad"}
    assert set(splits.train.tasks) == {"stain"}
    assert named(splits.train.of_task("stain")) == {
        "a.png": "red",
        "scans/b.png": None,
        "d.png": "red",
    }
    assert named(splits.test.of_task("stain")) == {"scans/c.png": "blue"}
    assert splits.validation is None


def test_pixels_are_those_of_the_folder_and_stand_in_the_tables_order(tmp_path):
    folder = open_data(write(tmp_path, NAMES)).train
    listed = open_data(table(tmp_path, "image\nd.png\na.png\n")).train
    assert listed.ids == ["d.png", "a.png"]
    assert listed.labels is None
    rows = [folder.ids.index(name) for name in listed.ids]
    np.testing.assert_array_equal(listed.gather([0, 1]), folder.gather(rows))


def test_the_fingerprint_tells_a_changed_label_of_a_task(tmp_path):
    write(tmp_path, NAMES)
    prints = set()
    for colour in ("red", "blue"):
        spec = table(
            tmp_path,
            f"image,label,c\na.png,x,red\nd.png,y,blue\nscans/b.png,y,{colour}",
        )
        prints.add(open_data(spec, tasks=("c",)).train.fingerprint)
        plain = open_data(spec).train.fingerprint
    assert len(prints) == 2
    assert plain not in prints


def test_files_that_are_missing_are_bad_images(tmp_path):
    write(tmp_path, NAMES)
    spec = table(tmp_path, "image,label,c\nlost.png,x,1\na.png,x,2\nd.png,y,3\n")
    with pytest.raises(DataError, match=r"1 of 3 files(.|\n)*lost.png: cannot be read"):
        open_data(spec)
    splits = open_data(spec, on_bad_image="skip", tasks=("c",))
    assert [bad.path for bad in splits.skipped] == ["lost.png"]
    assert named(splits.train.of_task("c")) == {"a.png": "2", "d.png": "3"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line is ''; expected names of columns"),
        ("file,label\na.png,x\n", "'file,label'; expected .*`image`"),
        ("image,x,x\na.png,1,2\n", "each once"),
        ("image\n", "no image is listed"),
        ("image,label\na.png\n", "line 2 has 1 cells, the first line 2"),
        ("image,label\n,x\n", "line 2 names no image"),
        ("image\na.png\na.png\n", "a.png stands in 2 lines"),
        ("image,split\na.png,trian\n", "split holds 'trian'; expected train"),
        ("image,split\na.png,test\n", "has test but no train"),
    ],
)
def test_tables_that_are_none(tmp_path, text, message):
    write(tmp_path, NAMES)
    with pytest.raises(DataError, match=message):
        open_data(table(tmp_path, text))


def test_a_table_without_a_label_is_told_which_column_to_add(tmp_path):
    write(tmp_path, NAMES)
    splits = open_data(table(tmp_path, "image,digit\na.png,1\nd.png,2\n"))
    with pytest.raises(DataError, match=r"has no labels.*a column `label` in a csv"):
        check_classes(splits)


def test_what_is_not_a_text(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"image\n\xff\xfe\x00.png\n")
    with pytest.raises(DataError, match="not a UTF-8 text"):
        open_data(f"csv:{tmp_path}/labels.csv")
    with pytest.raises(DataError, match="no such file"):
        open_data(f"csv:{tmp_path}/other.csv")
    with pytest.raises(UserError, match="csv:PATH"):
        open_data(f"folder:{tmp_path}", tasks=("colour",))


def test_two_tasks_of_image_files_are_learned_and_scored(tmp_path):
    """Shade (dark or light) is the label; the task `side` has half its cells empty."""
    from PIL import Image

    rng, lines = np.random.default_rng(0), ["image,split,label,side"]
    for i in range(48):
        light, left = i % 2, i // 2 % 2
        pixels = rng.integers(0, 40, (8, 8), np.uint8) + 150 * light
        pixels[:, slice(0, 3) if left else slice(5, 8)] += 60
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.png")
        split = "test" if i >= 40 else "train"
        side = ("left" if left else "right") if i % 3 else ""
        lines.append(f"{i}.png,{split},{'light' if light else 'dark'},{side}")
    spec = table(tmp_path, "\n".join(lines))
    make_encoder(tmp_path / "encoder")
    out = tmp_path / "run"
    done = finetune(
        config(
            tmp_path, out, data=spec, tasks=("side",), mode="full", steps=40, lr=3e-3
        )
    )
    found = done.results["tasks"]["side"]["test"]
    assert found["accuracy"]["value"] >= 0.75
    again = evaluate(EvaluateConfig(from_=str(out), data=spec))
    assert again["tasks"]["side"]["accuracy"] == found["accuracy"]
    plain = table(tmp_path, "image,label\n1.png,light\n0.png,dark\n", "plain.csv")
    only = evaluate(EvaluateConfig(from_=str(out), data=plain))
    assert "side" not in only.get("tasks", {})
