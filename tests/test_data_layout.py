"""Folders and archives: what is a split, a class, neither; and the options that say."""

import os
import shutil
import unicodedata
import zipfile

import pytest

from afterimage.data import check_classes, open_data
from afterimage.errors import DataError, UserError
from afterimage.reading import ReadingOptions
from tests.test_data_sources import picture, write


def opened(root, names, strict=True, **reading):
    return open_data(
        write(root, names), reading=ReadingOptions(**reading), strict=strict
    )


def classes(images):
    """{id: class, or None}, of one split."""
    if images is None:
        return None
    labels = [-1] * len(images) if images.labels is None else images.labels.tolist()
    return {
        name: images.class_names[label] if label >= 0 else None
        for name, label in zip(images.ids, labels)
    }


def splits(found):
    named = ("train", "validation", "test")
    return {n: classes(getattr(found, n)) for n in named if getattr(found, n)}


A, B = "cat/1.png", "dog/2.png"


def tree(*folders):
    return [f"{folder}/{name}" for folder in folders for name in (A, B)]


@pytest.mark.parametrize(
    ("folders", "wanted"),
    [
        (("train", "val", "test"), ("train", "val", "test")),
        (("Training", "Validation", "Testing"), ("Training", "Validation", "Testing")),
        (("train2017", "val2017"), ("train2017", "val2017", None)),
        (("seg_train", "seg_test"), ("seg_train", None, "seg_test")),
        (("train", "eval", "test"), ("train", "eval", "test")),
        (("train", "val", "eval"), ("train", "val", "eval")),
        (("train-images", "dev set"), ("train-images", "dev set", None)),
        (("data/my_train", "data/my_valid"), ("data/my_train", "data/my_valid", None)),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_names_of_splits(tmp_path, folders, wanted, packed):
    spec = write(tmp_path / "d", tree(*folders))
    if packed:
        shutil.make_archive(str(tmp_path / "d"), "zip", tmp_path / "d")
        spec = f"zip:{tmp_path}/d.zip"
    named = zip(("train", "validation", "test"), wanted)
    assert splits(open_data(spec)) == {
        split: {f"{folder}/{A}": "cat", f"{folder}/{B}": "dog"}
        for split, folder in named
        if folder
    }


@pytest.mark.parametrize(
    ("names", "odd"),
    [
        ([*tree("train", "test"), "extra/x.png"], ["extra", "--train train"]),
        ([*tree("train", "test"), "stray.png"], ["stray.png", "--train", "--test"]),
        ([*tree("train"), "bus/x.png"], ["bus", "--train ."]),
        (tree("seg_train", "seg_test", "seg_pred"), ["seg_pred", "--train seg_train"]),
        (tree("seg_train", "seg_pred"), ["seg_pred"]),
        (tree("train2014", "train2017", "val2017"), ["train2014", "train2017"]),
        (tree("train", "val", "valid"), ["val", "valid"]),
        (tree("train", "eval"), ["--test eval", "--validation-folder"]),
        (["trainA/1.png", "testA/1.png"], ["--train trainA", "--test testA"]),
        (["imagesTrain/1.png", "imagesTest/1.png"], ["imagesTrain", "imagesTest"]),
        ([*tree("data/train", "data/test"), "x/1.png"], ["data/train", "data/test"]),
        (
            ["cat/train/1.png", "cat/val/1.png", "dog/train/2.png", "dog/more/3.png"],
            ["--train cat/train", "--validation-folder cat/val"],
        ),
        (["a/b/cat/Test-1/1.png", "a/b/cat/Train-1/1.png", "a/x.png"], ["Test-1"]),
        (tree("Train ", "b\u202eus"), ["b\\u202eus"]),
    ],
)
def test_odd_folders_are_named_with_the_option(tmp_path, names, odd):
    with pytest.raises(DataError) as caught:
        opened(tmp_path, names)
    assert all(word in str(caught.value) for word in odd)


@pytest.mark.parametrize(
    "names",
    [
        ["bullet_train/1.png", "bus/2.png"],
        ["test tube/1.png", "beaker/2.png"],
        ["trains/1.png", "latest/2.png"],
        ["train_station/1.png", "valley/2.png", "testudo/3.png", "Devon/4.png"],
        ["x_train/1.png", "y_train/2.png"],
    ],
)
def test_classes_that_only_sound_like_splits(tmp_path, names):
    found = opened(tmp_path, names)
    assert set(found.train.class_names) == {name.split("/")[0] for name in names}


@pytest.mark.parametrize("folder", ["unlabeled", "Unlabelled", "unlabeled2017"])
def test_images_without_labels_stand_beside_splits_or_classes(tmp_path, folder, capsys):
    free = f"{folder}/x/9.png"
    found = opened(tmp_path / "splits", [*tree("train", "test"), free])
    assert splits(found) == {
        "train": {f"train/{A}": "cat", f"train/{B}": "dog", free: None},
        "test": {f"test/{A}": "cat", f"test/{B}": "dog"},
    }
    assert "1 images in a folder called unlabelled" in capsys.readouterr().err
    found = opened(tmp_path / "classes", [A, B, free])
    assert splits(found) == {"train": {A: "cat", B: "dog", free: None}}


def test_a_split_below_a_folder_of_its_own_name(tmp_path):
    """As archives are unpacked; a class of the split's name is one all the same."""
    names = [*tree("seg_train/seg_train", "seg_test/seg_test"), "pred/pred/1.png"]
    wanted = {
        "train": labelled("seg_train/seg_train"),
        "test": labelled("seg_test/seg_test"),
    }
    assert splits(opened(tmp_path / "a", names[:-1])) == wanted
    reading = {"train": "seg_train", "test": "seg_test"}
    assert splits(opened(tmp_path / "b", names, **reading)) == wanted
    names = ["train/train/1.png", "train/bus/2.png", "test/bus/3.png"]
    found = splits(opened(tmp_path / "c", names))
    assert found["train"] == {"train/train/1.png": "train", "train/bus/2.png": "bus"}


def test_splits_inside_each_class(tmp_path):
    names = ["cat/train/1.png", "cat/test/2.png", "dog/train/3.png"]
    assert splits(opened(tmp_path, names)) == {
        "train": {"cat/train/1.png": "cat", "dog/train/3.png": "dog"},
        "test": {"cat/test/2.png": "cat"},
    }


ODD = [*tree("train", "test", "extra"), "stray.png"]


def labelled(folder):
    return {f"{folder}/{A}": "cat", f"{folder}/{B}": "dog"}


@pytest.mark.parametrize(
    ("names", "reading", "wanted"),
    [
        (
            ODD,
            {"train": "extra", "test": "./test/"},
            {"train": labelled("extra"), "test": labelled("test")},
        ),
        (ODD, {"train": "train"}, {"train": labelled("train")}),
        (
            tree("all/a", "all/b"),
            {"train": "a", "validation_folder": "all/b"},
            {"train": labelled("all/a"), "validation": labelled("all/b")},
        ),
        (
            [A, B, *tree("held")],
            {"test": "held"},
            {"train": {A: "cat", B: "dog"}, "test": labelled("held")},
        ),
        (
            ["train/1.png", "bus/2.png"],
            {"train": "."},
            {"train": {"train/1.png": "train", "bus/2.png": "bus"}},
        ),
        (
            tree("Trai\u0301n", "x"),
            {"train": "Tra\u00edn"},
            {"train": labelled("Trai\u0301n")},
        ),
    ],
)
def test_the_options_say_what_is_meant(tmp_path, names, reading, wanted):
    assert splits(opened(tmp_path, names, **reading)) == wanted


def test_what_is_left_aside_is_not_read(tmp_path):
    write(tmp_path, tree("a"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/broken.png").write_bytes(b"")
    found = open_data(f"folder:{tmp_path}", reading=ReadingOptions(train="a"))
    assert splits(found) == {"train": labelled("a")}


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        ({"train": "trian"}, ["--train trian", "did you mean 'train'", "extra"]),
        ({"train": "train", "test": "train/cat"}, ["--train", "--test", "one split"]),
        ({"test": "extra"}, ["--test", "--train"]),
        ({"train": ""}, ["--train is empty", "`.`"]),
        ({"train": "/a/train"}, ["--train /a/train"]),
    ],
)
def test_options_that_name_nothing(tmp_path, reading, said):
    with pytest.raises(DataError) as caught:
        opened(tmp_path, tree("train", "test", "extra"), **reading)
    assert all(word in str(caught.value) for word in said)


def test_other_data_of_the_same_command_may_lack_the_folders(tmp_path):
    found = opened(tmp_path / "a", [A, B], strict=False, train="extra")
    assert splits(found) == {"train": {A: "cat", B: "dog"}}
    found = opened(tmp_path / "b", ODD, strict=False, train="extra")
    assert splits(found) == {"train": labelled("extra")}
    found = opened(tmp_path / "c", tree("train", "test"), strict=False, train=".")
    assert splits(found) == {"train": labelled("train"), "test": labelled("test")}
    found = opened(tmp_path / "d", [*tree("train"), "x/1.png"], strict=False, train=".")
    assert set(found.train.class_names) == {"train", "x"}


def test_data_without_folders_have_no_such_options():
    with pytest.raises(UserError, match=r"--train.*digits"):
        open_data("digits", reading=ReadingOptions(train="a"))


def test_a_stray_image_beside_classes_is_named(tmp_path, capsys):
    found = opened(tmp_path, [A, B, "stray.png"])
    with pytest.raises(DataError, match="no labels"):
        check_classes(found)
    assert "stray.png" in capsys.readouterr().err


def test_both_unicode_forms_of_a_folder_are_one_class(tmp_path, capsys):
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    found = opened(tmp_path, [f"{nfc}/1.png", f"{nfd}/2.png", "tea/3.png"])
    assert found.train.class_names == (nfc, "tea")
    assert found.train.labels.tolist().count(0) == 2
    other = opened(tmp_path / "other", [f"{nfd}/1.png", "tea/3.png"])
    assert other.train.class_names == (nfc, "tea")
    assert "'Cat'" not in capsys.readouterr().err


def test_classes_that_differ_in_case_or_spaces_are_told_once(tmp_path, capsys):
    names = ["Cat/1.png", "cat/2.png", "cat /3.png", "dog/4.png"]
    opened(tmp_path, names)
    opened(tmp_path, names)
    err = capsys.readouterr().err
    assert err.count("'Cat' and 'cat'") == 1
    assert "'Cat' and 'cat' and 'cat '" in err
    assert "dog" not in err


JUNK = [
    "@eaDir/cat/SYNOPHOTO_THUMB_XL.jpg",
    "cat/@eaDir/1.png/x.jpg",
    "cat/.thumbnails/1.png",
    "cat/._1.png",
    ".Trashes/1.png",
    "#recycle/1.png",
    "@Recycle/1.png",
    "$RECYCLE.BIN/1.png",
    "System Volume Information/1.png",
    "lost+found/1.png",
    ".AppleDouble/1.png",
    "__MACOSX/cat/._1.png",
    ".ipynb_checkpoints/1.png",
    "cat/.picasaoriginals/1.png",
    ".comments/1.png",
    "Thumbs.db",
    "desktop.ini",
    ".DS_Store",
]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_thumbnails_and_waste_are_no_images(tmp_path, packed):
    spec = write(tmp_path / "d", [A, B, *JUNK])
    if packed:
        shutil.make_archive(str(tmp_path / "d"), "zip", tmp_path / "d")
        spec = f"zip:{tmp_path}/d.zip"
    assert splits(open_data(spec)) == {"train": {A: "cat", B: "dog"}}


def archive(path, *names, **attributes):
    with zipfile.ZipFile(path, "w") as made:
        for i, name in enumerate(names):
            info = zipfile.ZipInfo(name)
            for key, value in attributes.items():
                setattr(info, key, value)
            made.writestr(info, picture(i))
    return f"zip:{path}"


def test_members_with_backslashes_keep_their_folders(tmp_path):
    spec = archive(tmp_path / "a.zip", "train\\cat\\1.png", "test\\dog\\2.png")
    assert splits(open_data(spec)) == {
        "train": {"train/cat/1.png": "cat"},
        "test": {"test/dog/2.png": "dog"},
    }


@pytest.mark.parametrize(
    "name",
    ["..\\..\\x.png", "a\\..\\..\\x.png", "C:\\x.png", "\\\\host\\x.png", "\\x.png"],
)
def test_unsafe_members_with_backslashes_are_refused(tmp_path, name):
    spec = archive(tmp_path / "a.zip", "cat/1.png", name)
    with pytest.raises(DataError, match="relative paths"):
        open_data(spec)


def test_one_member_under_two_spellings_is_refused(tmp_path):
    spec = archive(tmp_path / "a.zip", "cat/1.png", "cat\\1.png")
    with pytest.raises(DataError, match="twice"):
        open_data(spec)


def test_a_comma_in_the_name_of_an_archive(tmp_path):
    archive(tmp_path / "a,b.zip", "cat/1.png")
    archive(tmp_path / "c.zip", "dog/2.png")
    one = f"zip:{tmp_path}/a,b.zip"
    assert splits(open_data(one)) == {"train": {"cat/1.png": "cat"}}
    both = open_data(f"{one},{tmp_path}/c.zip")
    assert splits(both) == {"train": {"cat/1.png": "cat", "dog/2.png": "dog"}}
    with pytest.raises(DataError, match=r"b\.zip: it does not exist"):
        open_data(f"zip:{tmp_path}/c.zip,b.zip")


def test_archives_as_people_write_them(tmp_path):
    archive(tmp_path / "a.zip", "cat/1.png")
    archive(tmp_path / "b.zip", "dog/2.png")
    found = open_data(f"zip:{tmp_path}/a.zip, {tmp_path}/b.zip")
    assert splits(found) == {"train": {"cat/1.png": "cat", "dog/2.png": "dog"}}
    with pytest.raises(DataError, match=f"folder:{tmp_path}"):
        open_data(f"zip:{tmp_path}")


def test_names_in_an_archive_without_the_flag_for_utf_8(tmp_path):
    """UTF-8 as Info-ZIP wrote it; cp437 as DOS and Windows do."""
    spec = archive(tmp_path / "a.zip", "B?r/1.png", create_system=0)
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace(b"B?r", b"B\x84r"))
    assert open_data(spec).train.class_names == ("Bär",)
    spec = archive(tmp_path / "b.zip", "B??r/1.png", create_system=3)
    content = (tmp_path / "b.zip").read_bytes()
    (tmp_path / "b.zip").write_bytes(content.replace(b"B??r", "Bär".encode()))
    assert open_data(spec).train.class_names == ("Bär",)


def test_a_name_marked_as_utf_8_that_is_not(tmp_path):
    spec = archive(tmp_path / "a.zip", "ä/1.png")
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace("ä".encode(), b"\xe4\xe4"))
    with pytest.raises(DataError, match="not a readable zip archive"):
        open_data(spec)


LONG = "x" * 300


@pytest.mark.parametrize(
    "spec",
    [
        *(f"{kind}:/tmp/{LONG}" for kind in ("folder", "zip", "csv", "npz")),
        *(f"{kind}:/tmp/a\0b" for kind in ("folder", "zip", "csv", "npz")),
        *(f"{kind}:~nobody-of-this-name/x" for kind in ("folder", "zip", "csv", "npz")),
    ],
    ids=lambda spec: spec[:12],
)
def test_paths_that_no_file_can_have(spec):
    with pytest.raises(DataError, match=r"does not exist"):
        open_data(spec)


def test_loops_of_links_end(tmp_path):
    spec = write(tmp_path, [A, B])
    (tmp_path / "cat/up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "dog/self.png").symlink_to(tmp_path / "dog/self.png")
    found = open_data(spec, on_bad_image="skip")
    assert splits(found) == {"train": {A: "cat", B: "dog"}}
    assert [bad.path for bad in found.skipped] == ["dog/self.png"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    """Deeper than a path can name: its images would be missing in silence."""
    spec, here = write(tmp_path, [A, B]), os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("y" * 240, dir_fd=here)
        inner = os.open("y" * 240, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    with pytest.raises(DataError, match=r"yyy.*cannot be read \(File name too long\)"):
        open_data(spec)
