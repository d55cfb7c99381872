"""Images in a bucket are those of a folder: the same set, to the fingerprint."""

import io
import zipfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from afterimage.data import open_data
from afterimage.errors import DataError, UserError
from afterimage.storage import Bucket, RemoteError, faults


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    monkeypatch.setenv("AFTERIMAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(faults, "WAITS", (0.0, 0.0))
    yield memory
    memory.store.clear()


@pytest.fixture
def photos(tmp_path):
    """Images of two classes, a table and archives, on disk and in a bucket."""
    folder, random = tmp_path / "photos", np.random.default_rng(0)
    lines = ["image,label"]
    for number in range(12):
        kind = "cat" if number % 2 else "dog"
        pixels = random.integers(0, 256, (20, 20, 3), np.uint8)
        path = folder / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        lines.append(f"{kind}/{number}.png,{kind}")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    images = random.integers(0, 256, (8, 20, 20, 3), np.uint8)
    np.savez(tmp_path / "arrays.npz", images=images)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            name = path.relative_to(tmp_path).as_posix()
            Bucket("memory://b").put(name, path.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    "name", ["photos", "photos.zip", "photos/table.csv", "arrays.npz"]
)
@pytest.mark.parametrize("cache", [True, False])
def test_the_set_is_that_of_the_disk(photos, name, cache):
    here = open_data(str(photos / name), cache=cache).train
    for url in (f"memory://b/{name}",) * 2:  # the second time from the cache
        there = open_data(url, cache=cache).train
        assert there.fingerprint == here.fingerprint
        assert list(there.ids) == list(here.ids)
        assert there.class_names == here.class_names
        np.testing.assert_array_equal(there.gather([3, 1]), here.gather([3, 1]))


def test_a_changed_object_is_read_again(photos):
    url = "memory://b/photos"
    before = open_data(url).train.fingerprint
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, "PNG")
    Bucket(url).put("dog/0.png", buffer.getvalue())
    assert open_data(url).train.fingerprint != before


def test_faults_pass_and_are_never_taken_for_bad_images(photos, store, monkeypatch):
    cat, calls = type(store).cat_file, []

    def flaky(self, path, start=None, end=None, **more):
        calls.append(path)
        if len(calls) % 2:
            raise TimeoutError("read timed out")
        return cat(self, path, start=start, end=end, **more)

    here = open_data(str(photos / "photos")).train
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "cat_file", flaky)
        monkeypatch.setattr(faults, "WAITS", (0.0,) * 40)
        there = open_data("memory://b/photos", cache=False).train
        assert there.fingerprint == here.fingerprint

    def gone(self, path, start=None, end=None, **more):
        raise TimeoutError("read timed out")

    monkeypatch.setattr(faults, "WAITS", ())
    monkeypatch.setattr(type(store), "cat_file", gone)
    with pytest.raises(RemoteError, match="cannot be read"):
        open_data("memory://b/photos", cache=False, on_bad_image="skip")


def test_what_is_not_there_is_said(photos):
    for url in ("memory://b/never", "memory://b/never.zip", "memory://b/never.csv"):
        with pytest.raises(DataError, match="does not exist"):
            open_data(url)
    Bucket("memory://b").put("texts/a.txt", b"1")
    with pytest.raises(DataError, match="no images"):
        open_data("memory://b/texts")
    with pytest.raises(UserError, match="this machine only"):
        open_data("files:memory://b/photos/*.png")
    Bucket("memory://b/photos").put("more.csv", b"image\ndog/0.png\ndog/99.png\n")
    with pytest.raises(DataError, match=r"dog/99\.png: is missing"):
        open_data("memory://b/photos/more.csv")
