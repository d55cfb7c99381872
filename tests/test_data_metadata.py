"""Hugging Face's metadata files in a folder, JSON lines, MedMNIST's arrays."""

import json
import os
import shutil
import unicodedata
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afterimage.data import open_data
from afterimage.data.table import Table, read_table
from afterimage.errors import DataError
from afterimage.evaluation.configs import EvaluateConfig
from afterimage.finetune.evaluate import evaluate
from afterimage.finetune.run import finetune
from afterimage.reading import ReadingOptions
from tests.test_data_layout import splits
from tests.test_data_sources import write
from tests.test_finetune_program import config, draw, make_encoder


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


CSV = "file_name,label,text\n1.png,cat,x\nsub/2.png,dog,y\n"
JSON = lines(
    {"file_name": "1.png", "label": "cat"}, {"file_name": "sub/2.png", "label": "dog"}
)


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(
    ("name", "text"), [("metadata.csv", CSV), ("metadata.jsonl", JSON)]
)
def test_labels_of_a_metadata_file(tmp_path, name, text, packed, capsys):
    spec = write(tmp_path / "d", ["1.png", "sub/2.png", "3.png"])
    (tmp_path / "d" / name).write_text(text)
    if packed:
        shutil.make_archive(str(tmp_path / "d"), "zip", tmp_path / "d")
        spec = f"zip:{tmp_path}/d.zip"
    assert splits(open_data(spec)) == {
        "train": {"1.png": "cat", "3.png": None, "sub/2.png": "dog"}
    }
    err = capsys.readouterr().err
    assert name in err
    assert "1 unlisted images" in err


def test_a_metadata_file_in_each_split(tmp_path):
    names = ["train/i/1.png", "train/i/2.png", "test/i/1.png"]
    spec = write(tmp_path, names)
    for split, label in (("train", "cat"), ("test", "dog")):
        text = f"label,file_name\n{label},i/1.png\n"
        text += "dog,i/2.png\n" if split == "train" else ""
        (tmp_path / split / "metadata.csv").write_text(text)
    assert splits(open_data(spec)) == {
        "train": {"train/i/1.png": "cat", "train/i/2.png": "dog"},
        "test": {"test/i/1.png": "dog"},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "file_name,label\ncat/1.png,dog\n",
            ["cat/1.png", "folder cat", "metadata.csv is dog"],
        ),
        (
            "file_name,label\nCat/1.png,cat\n",
            ["line 2", "Cat/1.png", "; cat/1.png exists"],
        ),
        ("file_name,label\nno.png,cat\n", ["line 2", "no.png"]),
        ("file_name,label\ncat/1.jpg,cat\n", ["line 2", "; cat/1.png exists"]),
        ("file_name,label\ncat\\1,cat\n", ["line 2", "; cat/1.png exists"]),
        ("file_name,label\n../x.png,cat\n", ["line 2", "../x.png"]),
        ("file_name,label\ncat/1.png,cat\n./cat/1.png,dog\n", ["line 3", "twice"]),
        ("file_name,label,split\ncat/1.png,cat,test\n", ["split", "csv:PATH"]),
        ('file_name,label\ncat/1.png,"cat\n', ["metadata.csv", "line 2", "quote"]),
    ],
)
def test_metadata_that_cannot_be_right(tmp_path, text, said):
    spec = write(tmp_path, ["cat/1.png", "dog/2.png"])
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        open_data(spec)
    assert all(word in str(caught.value) for word in said)


@pytest.mark.parametrize(
    "text", ["isic_id,age\n1,50\n", "file_name,text\ncat/1.png,a cat\n"]
)
def test_metadata_without_labels_is_left_aside(tmp_path, text, capsys):
    spec = write(tmp_path, ["cat/1.png", "dog/2.png"])
    (tmp_path / "metadata.csv").write_text(text)
    wanted = {"train": {"cat/1.png": "cat", "dog/2.png": "dog"}}
    assert splits(open_data(spec)) == wanted
    assert "ignored" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_that_is_a_pipe_is_refused(tmp_path, name):
    """It would wait for a writer."""
    spec = write(tmp_path, ["cat/1.png", "dog/2.png"])
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}.*pipe"):
        open_data(spec)


@pytest.mark.parametrize("kind", ["pipe", "device", "nowhere", "huge"])
@pytest.mark.timeout(20)
def test_metadata_that_is_no_regular_file_is_named(tmp_path, kind):
    spec, path = write(tmp_path, ["cat/1.png", "dog/2.png"]), tmp_path / "metadata.csv"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        path.touch()
        os.truncate(path, 2**40)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    with pytest.raises(DataError, match=r"metadata\.csv"):
        open_data(spec)


def test_an_archive_whose_metadata_inflates_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
        write(tmp_path / "d", ["1.png"])
        made.write(tmp_path / "d/1.png", "1.png")
        made.writestr("metadata.csv", b" " * 2**27)
    with pytest.raises(DataError, match=r"metadata.csv.*decompress"):
        open_data(f"zip:{tmp_path}/a.zip")


def test_metadata_may_list_images_that_the_options_ignore(tmp_path):
    spec = write(tmp_path, ["a/1.png", "a/2.png", "b/3.png"])
    text = "file_name,label\na/1.png,cat\na/2.png,dog\nb/3.png,cat\n"
    (tmp_path / "metadata.csv").write_text(text)
    found = open_data(spec, reading=ReadingOptions(train="a"))
    assert splits(found) == {"train": {"a/1.png": "cat", "a/2.png": "dog"}}


def test_json_lines_as_a_table(tmp_path):
    write(tmp_path, ["1.png", "2.png", "3.png"])
    rows = [
        {"image": "1.png", "class": 7, "n": [1]},
        {"image": "2.png", "class": None},
        {"class": True, "image": "3.png"},
    ]
    (tmp_path / "t.jsonl").write_text(lines(*rows))
    assert splits(open_data(f"csv:{tmp_path}/t.jsonl")) == {
        "train": {"1.png": "7", "2.png": None, "3.png": "1"}
    }


@pytest.mark.parametrize(
    "line",
    [
        "5",
        "[]",
        '{"image": "1.png"',
        '{"image": NaN}',
        "[" * 100_000,
        '{"image": "a\\u0000.png"}',
    ],
    ids=lambda line: line[:12],
)
def test_lines_that_are_no_json_objects(tmp_path, line):
    write(tmp_path, ["1.png"])
    (tmp_path / "t.jsonl").write_text('{"image": "1.png"}\n' + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        open_data(f"csv:{tmp_path}/t.jsonl")


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(st.sampled_from('",;\t\n\r\0{}:[]aé'), max_size=40).map(
            lambda parts: "".join(["image,label\n", *parts]).encode()
        ),
    ),
    st.booleans(),
)
def test_any_bytes_are_a_table_or_a_sentence(content, json_lines):
    try:
        table = read_table(content, "t", json_lines=json_lines)
    except DataError:
        return
    assert isinstance(table, Table)
    assert {len(cells) for cells in table.columns.values()} <= {len(table.lines)}


def test_arrays_by_the_names_of_medmnist(tmp_path):
    arrays = {}
    for number, split in enumerate(("train", "val", "test")):
        arrays[f"{split}_images"] = np.full((3, 8, 8), number, np.uint8)
        arrays[f"{split}_labels"] = np.array([[0], [1], [number]], np.uint8)
    np.savez(tmp_path / "m.npz", **arrays)
    found = open_data(f"npz:{tmp_path}/m.npz")
    for number, split in enumerate(("train", "validation", "test")):
        images = getattr(found, split)
        assert images.labels.tolist() == [0, 1, number]
        assert images.gather([0]).max() == number


def test_arrays_that_are_not_read_are_named(tmp_path, capsys):
    pixels = np.zeros((2, 8, 8), np.uint8)
    given = {"x_train": pixels, "y_train": [0, 1], "y_train_colour": [0, 1]}
    np.savez(tmp_path / "a.npz", **given, x_eval=pixels)
    open_data(f"npz:{tmp_path}/a.npz")
    err = capsys.readouterr().err
    assert "x_eval" in err
    assert "colour" not in err


@pytest.mark.parametrize("content", ["npy", "text"])
def test_what_is_no_archive_of_arrays(tmp_path, content):
    path = tmp_path / "a.npz"
    if content == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros((2, 8, 8), np.uint8))
    else:
        path.write_text("x_train")
    with pytest.raises(DataError, match="not a zip archive"):
        open_data(f"npz:{path}")


def test_strings_in_arrays_are_names_as_anywhere(tmp_path, capsys):
    labels = np.array(["caf\u00e9", "cafe\u0301", "NA", "Tea", "tea", "", "a\x1b"])
    images = np.zeros((7, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    found = open_data(f"npz:{tmp_path}/a.npz").train
    assert found.class_names == ("NA", "Tea", "a\\x1b", "caf\u00e9", "tea")
    assert found.labels.tolist() == [3, 3, 0, 1, 4, -1, 2]
    err = capsys.readouterr().err
    assert "--missing NA" in err
    assert "'Tea' and 'tea'" in err
    reading = ReadingOptions(missing="NA")
    found = open_data(f"npz:{tmp_path}/a.npz", reading=reading).train
    assert found.labels.tolist()[2] == -1
    encoded = np.array([b"caf\xe9", b"tea"])
    np.savez(tmp_path / "b.npz", images=images[:2], labels=encoded)
    names = open_data(f"npz:{tmp_path}/b.npz").train.class_names
    assert names == ("caf\\xe9", "tea")


@pytest.mark.slow
def test_a_classifier_of_one_unicode_form_is_scored_on_the_other(tmp_path, tiny):
    from PIL import Image

    make_encoder(tmp_path / "encoder")
    for form in ("NFC", "NFD"):
        images, labels = draw(0, 24)
        for i, (image, label) in enumerate(zip(images, labels)):
            name = unicodedata.normalize(form, f"caf\u00e9 {label}")
            folder = tmp_path / form / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    data = f"folder:{tmp_path}/NFC"
    finetune(config(tmp_path, tmp_path / "run", data=data, hold_out=0.0))
    scores = [
        evaluate(EvaluateConfig(from_=f"{tmp_path}/run", data=f"folder:{tmp_path}/{f}"))
        for f in ("NFC", "NFD")
    ]
    assert scores[0]["accuracy"] == scores[1]["accuracy"]
    upper = tmp_path / "upper/CAF\u00c9 BARS"
    shutil.copytree(tmp_path / "NFC/caf\u00e9 bars", upper)
    with pytest.raises(DataError, match=r"not trained on.*case or spaces"):
        evaluate(
            EvaluateConfig(from_=f"{tmp_path}/run", data=f"folder:{tmp_path}/upper")
        )
