"""Every kind of source: what a newcomer's folder becomes, and what errors say."""

import io
import json
import os
import pathlib
import shutil
import socket
import zipfile

import numpy as np
import pytest
from PIL import Image

from afterimage.data import open_data
from afterimage.errors import DataError, UserError
from afterimage.plugins import SOURCES
from afterimage.runtime import cache_dir
from benchmarks import characters as draw


def picture(level=100, size=(10, 8), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, level if mode == "L" else (level, 50, 60)).save(file, "PNG")
    return file.getvalue()


def write(root, names, **options):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number, **options))
    return f"folder:{root}"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_digits_without_network(no_network):
    first, second = open_data("digits"), open_data("digits")
    assert (len(first.train), len(first.test), first.validation) == (1438, 359, None)
    assert first.train.shape == (8, 8, 1)
    assert first.train.class_names == tuple("0123456789")
    assert not set(first.train.ids) & set(first.test.ids)
    counts = np.bincount(first.test.labels)
    assert counts.min() >= 35
    assert counts.max() <= 37
    levels = np.unique(first.train.images)
    assert levels.tolist() == [(255 * v + 8) // 16 for v in range(17)]
    assert first.train.fingerprint == second.train.fingerprint


def test_digits_are_sklearns():
    from sklearn.datasets import load_digits

    data = load_digits()
    found = open_data("digits").test
    rows = [int(name.removeprefix("digits/")) for name in found.ids]
    np.testing.assert_array_equal(found.labels, data.target[rows])
    np.testing.assert_array_equal(
        np.rint(found.images[..., 0] * 16.0 / 255), data.images[rows]
    )


def test_characters_come_with_the_package(no_network):
    found = open_data("characters")
    assert found.train.shape == found.test.shape == (28, 28, 1)
    assert found.train.class_names == found.test.class_names
    fonts = []
    for part, count in ((found.train, 57), (found.test, 38)):
        assert np.bincount(part.labels).tolist() == [count] * 47
        fonts.append({one.split("/")[-1] for one in part.ids})
        assert len(fonts[-1]) == count
        images = part.gather(range(len(part)))
        # White strokes on black, in the middle.
        assert images.max((1, 2, 3)).min() > 250
        assert 0.05 < np.mean(images > 100) < 0.3
        assert images[:, :2].max() == images[:, :, -2:].max() == 0
    assert not fonts[0] & fonts[1]


def test_fonts_of_another_licence_are_refused(tmp_path):
    package = tmp_path / "caveat"
    package.mkdir()
    (package / "LICENSE").write_text("SIL OPEN FONT LICENSE Version 1.1")
    (package / "package.json").write_text('{"license": "MIT", "version": "1"}')
    with pytest.raises(DataError, match="caveat: licence MIT"):
        draw.read(package)


def test_damaged_digits_are_written_again():
    wanted = open_data("digits").train.fingerprint
    for file in (cache_dir() / "tfds").rglob("*.array_record*"):
        file.write_bytes(file.read_bytes()[:1000])
    assert open_data("digits").train.fingerprint == wanted


def test_digits_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("AFTERIMAGE_CACHE", str(tmp_path / "file" / "cache"))
    assert len(open_data("digits", image_size=16, channels=3).train) == 1438


LAYOUTS = {
    "flat": (["x.png", "y.png"], {"train": None}, None),
    "classes": (["b/x.png", "a/y.png"], {"train": [0, 1]}, ("a", "b")),
    "one class": (["a/x.png", "a/y.png"], {"train": [0, 0]}, ("a",)),
    "splits, flat": (
        ["train/x.png", "test/y.png"],
        {"train": None, "test": None},
        None,
    ),
    "splits, classes": (
        ["train/a/x.png", "val/b/y.png", "test/c/z.png"],
        {"train": [0], "validation": [1], "test": [2]},
        ("a", "b", "c"),
    ),
    "wrapped": (["all/a/x.png", "all/b/y.png"], {"train": [0, 1]}, ("a", "b")),
    "test alone": (["test/a/x.png", "test/b/y.png"], {"train": [0, 1]}, ("a", "b")),
    "mixed": (["x.png", "a/y.png"], {"train": None}, None),
    "hidden": (["x.png", ".y.png", "__MACOSX/x.png", "n.txt"], {"train": None}, None),
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts(tmp_path, case, packed):
    names, wanted, classes = LAYOUTS[case]
    spec = write(tmp_path / "data", names)
    if packed:
        shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path / "data")
        spec = f"zip:{tmp_path / 'data.zip'}"
    found = open_data(spec)
    sets = {s: getattr(found, s) for s in ("train", "validation", "test")}
    labels = {
        split: None if x.labels is None else sorted(x.labels.tolist())
        for split, x in sets.items()
        if x is not None
    }
    assert labels == wanted
    assert found.train.class_names == classes
    if case == "hidden":
        assert found.train.ids == ["x.png"]


def test_archives_together_are_one_set(tmp_path):
    for name, member in (("one", "train/a/1.png"), ("two", "test/a/2.png")):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr(member, picture())
    found = open_data(f"zip:{tmp_path}/one.zip,{tmp_path}/two.zip")
    assert (found.train.ids, found.test.ids) == (["train/a/1.png"], ["test/a/2.png"])


def test_channels_are_what_the_data_has(tmp_path):
    grey = write(tmp_path / "g", ["a.png"], mode="L")
    assert open_data(grey).train.shape == (8, 10, 1)
    assert open_data(grey, channels=3).train.shape == (8, 10, 3)
    write(tmp_path / "g", ["b.png"])
    os.rename(tmp_path / "g/b.png", tmp_path / "g/c.png")
    write(tmp_path / "g", ["a.png"], mode="L")
    assert open_data(grey).train.shape == (8, 10, 3)
    assert open_data(grey, channels=1, image_size=4).train.shape == (4, 4, 1)


def test_different_sizes_ask_for_one(tmp_path):
    spec = write(tmp_path, ["a.png"])
    (tmp_path / "b.png").write_bytes(picture(size=(20, 30)))
    with pytest.raises(
        DataError, match=r"8x10 \(a.png\) to 30x20 \(b.png\).*image-size"
    ):
        open_data(spec)
    assert open_data(spec, image_size=8).train.shape == (8, 8, 3)


ENTRY = "images/*/"


def test_the_cache_is_used_and_a_change_is_seen(tmp_path):
    spec = write(tmp_path, ["a.png", "b.png"])
    first = open_data(spec).train
    (entry,) = cache_dir().glob(ENTRY)
    date = (entry / "images.npy").stat().st_mtime_ns
    assert open_data(spec).train.fingerprint == first.fingerprint
    assert (entry / "images.npy").stat().st_mtime_ns == date
    # The same content elsewhere has the same fingerprint; a lazy set too.
    assert open_data(spec, cache=False).train.fingerprint == first.fingerprint
    before = (tmp_path / "a.png").stat()
    (tmp_path / "a.png").write_bytes(picture(200))
    os.utime(tmp_path / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = open_data(spec).train
    assert changed.fingerprint != first.fingerprint
    assert changed.gather([0])[0, 0, 0, 0] == 200


@pytest.mark.parametrize("damage", ["flip", "cut", "index", "nested", "empty"])
def test_a_damaged_cache_is_rebuilt(tmp_path, damage):
    spec = write(tmp_path, ["a.png", "b.png"])
    wanted = open_data(spec).train.gather([0, 1])
    (entry,) = cache_dir().glob(ENTRY)
    pixels = entry / "images.npy"
    content = bytearray(pixels.read_bytes())
    content[-5] ^= 1
    if damage == "flip":
        pixels.write_bytes(content)
    elif damage == "cut":
        pixels.write_bytes(content[:-20])
    elif damage == "index":
        (entry / "index.json").write_text("{")
    elif damage == "nested":
        (entry / "index.json").write_text("[" * 100_000)
    else:
        (entry / "index.json").unlink()
    np.testing.assert_array_equal(open_data(spec).train.gather([0, 1]), wanted)
    assert json.loads((entry / "index.json").read_text())["format"] == 1
    assert [p.name for p in (cache_dir() / "images").iterdir()] == [entry.name]


def test_no_room_for_a_cache_is_said_and_survived(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("AFTERIMAGE_CACHE", str(tmp_path / "file" / "cache"))
    found = open_data(write(tmp_path / "d", ["a.png", "b.png"])).train
    assert found.gather([1])[0, 0, 0, 0] == 1
    assert "AFTERIMAGE_CACHE" in capsys.readouterr().err


def test_links_that_go_round_end(tmp_path):
    spec = write(tmp_path, ["a/x.png"])
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert len(open_data(spec).train) == 1


def test_npz_and_its_splits(tmp_path):
    x, y = np.zeros((6, 8, 8), np.uint8), np.arange(6) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    found = open_data(f"npz:{tmp_path}/a.npz", image_size=4, channels=3)
    assert (found.train.shape, len(found.test)) == ((4, 4, 3), 2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((2, 8, 8), 255.0), r"range from 255 to 255.*\[0, 1\]"),
        (np.full((2, 8, 8), np.nan), "NaN"),
        (np.full((2, 8, 8), -1), "range from -1"),
        (np.zeros((2, 8)), "shape"),
        (np.zeros((0, 8, 8)), "0, 8, 8"),
        (np.array([{}]), "cannot be read"),
    ],
)
def test_npz_images_that_make_no_sense(tmp_path, images, message):
    np.savez(tmp_path / "a.npz", images=images)
    with pytest.raises(DataError, match=message):
        open_data(f"npz:{tmp_path}/a.npz")


def test_npz_labels_of_several_tasks(tmp_path):
    """Read by name; -1 and NaN are no label; a split may have none."""
    x = np.zeros((4, 8, 8), np.uint8)
    more = {"y_train_hue": [2.0, np.nan, 5, 2], "y_train_form": [-1, 0, 1, 1]}
    np.savez(tmp_path / "a.npz", x_train=x, x_test=x, y_test_hue=[5, 5, 2, -1], **more)
    spec = f"npz:{tmp_path}/a.npz"
    found = open_data(spec, tasks=("hue", "form", "size"))
    assert set(found.train.tasks) == {"hue", "form"}
    assert set(found.test.tasks) == {"hue"}
    hue = found.train.of_task("hue")
    assert hue.labels.tolist() == [0, -1, 1, 0]
    assert hue.class_names == ("2", "5")
    assert found.test.of_task("hue").labels.tolist() == [1, 1, 0, -1]
    assert found.train.subset([2, 0]).of_task("form").labels.tolist() == [1, -1]
    assert found.train.of_task("size").labels is None
    plain = open_data(spec)
    assert not plain.train.tasks
    assert plain.train.fingerprint != found.train.fingerprint
    with pytest.raises(UserError, match="digits has only one label"):
        open_data("digits", tasks=("hue",))


def test_npz_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.uint8))
    assert len(open_data("npz:~/a.npz").train) == 2


def test_float_npz_is_scaled(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.full((2, 8, 8, 3), 0.5))
    assert open_data(f"npz:{tmp_path}/a.npz").train.gather([0]).max() == 128


def test_synthetic_is_the_same_every_time():
    one, two = open_data("synthetic:8x12x3"), open_data("synthetic:8x12x3")
    assert one.train.shape == (8, 12, 3)
    assert one.train.fingerprint == two.train.fingerprint != one.test.fingerprint


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("foldr:x", "did you mean 'folder'"),
        ("folder", "form folder:PATH"),
        ("digits:x", "form digits;"),
        ("synthetic:32", "synthetic:HxWxC"),
        ("synthetic:0x8x1", "synthetic:HxWxC"),
        ("synthetic:8x8x1" + "0" * 5000, "memory"),
        ("synthetic:\u0663x8x1", "synthetic:HxWxC"),
        ("folder:/nowhere", "does not exist"),
        ("zip:/nowhere.zip", "does not exist"),
        ("npz:/nowhere.npz", "does not exist"),
        ("tfds:mnistt", "did you mean.*mnist"),
        ("tfds:a:b:c", "expected tfds:NAME"),
    ],
)
def test_names_that_mean_nothing(spec, message):
    with pytest.raises(UserError, match=message):
        open_data(spec)


def test_a_folder_without_images_says_what_was_looked_for(tmp_path):
    (tmp_path / "x.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"only 1 \.heic.*\.jpg.*subfolder"):
        open_data(f"folder:{tmp_path}")


def test_tfds_without_network_says_so(no_network, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match="network"):
        open_data("tfds:mnist")


def test_tfds_prepared_data_are_read(no_network, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["dog", "cat"]),
        }
    )

    class OurPets(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(6):
                image = picture(10 * i, size=(8, 9 + i))
                yield i, {"image": image, "label": i % 2}

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    OurPets(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    found = open_data("tfds:our_pets", image_size=8).train
    assert found.class_names == ("cat", "dog")
    levels = found.gather(range(6))[:, 0, 0, 0] // 10
    np.testing.assert_array_equal(found.labels, 1 - levels % 2)
    assert pathlib.Path(tmp_path, "our_pets").is_dir()


def test_names_of_our_own_sources_are_found_in_their_files():
    assert {"csv", "digits", "folder", "npz", "synthetic", "tfds", "zip"} <= set(
        SOURCES.names()
    )
    for name in SOURCES.names():
        source = SOURCES.get(name)
        assert source.name == name
        assert source.__doc__
        assert source.spec_form().partition(":")[0] == name
    with pytest.raises(UserError):
        SOURCES.get("folders")
