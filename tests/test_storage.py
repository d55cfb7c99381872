"""Objects of a bucket, in fsspec's memory."""

import io

import fsspec
import pytest

from afterimage.errors import UserError
from afterimage.storage import Bucket, is_remote, open_bytes, urls
from afterimage.storage import bucket as buckets_module


@pytest.fixture
def memory():
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()


def test_what_is_a_url():
    assert is_remote("s3://b/x")
    assert is_remote("gs://b")
    assert not is_remote("photos")
    assert not is_remote("https://x.org/a")
    assert urls.problem("runs/a") is None
    assert urls.problem("s3://bucket/runs/a") is None
    for text in ("hdfs://h/x", "s3:/b/x", "s3://", "s3://b/../x", "s3://b//x"):
        assert urls.problem(text), text
    assert urls.joined("s3://b/x/", "a", "b") == "s3://b/x/a/b"


def test_objects_by_name(memory):
    bucket = Bucket("memory://b/run")
    bucket.put("a/one.txt", b"0123456789")
    bucket.put("two", b"2")
    memory.pipe("/b/runner/three", b"not below")
    assert {n: e.size for n, e in bucket.entries().items()} == {
        "a/one.txt": 10,
        "two": 1,
    }
    assert bucket.get("a/one.txt") == b"0123456789"
    assert bucket.get("a/one.txt", 3, 5) == b"34"
    with pytest.raises(FileExistsError):
        bucket.put("two", b"3", create=True)
    before = bucket.entries()["two"].stamp
    bucket.put("two", b"4")
    assert bucket.entries()["two"].stamp != before
    bucket.delete(["two", "two", "never"])
    assert list(bucket.entries()) == ["a/one.txt"]
    with pytest.raises(FileNotFoundError):
        bucket.entry("a")


def test_a_file_and_an_object_open_alike(memory, tmp_path):
    data = bytes(range(256)) * 40
    (tmp_path / "x.bin").write_bytes(data)
    memory.pipe("/b/x.bin", data)
    for place in (tmp_path / "x.bin", "memory://b/x.bin"):
        with open_bytes(place, block=1000) as file:
            assert file.read(10) == data[:10]
            assert file.seek(-7, io.SEEK_END) == len(data) - 7
            assert file.read() == data[-7:]
            file.seek(5000)
            assert file.read(3000) == data[5000:8000]
            assert file.read1(1)
    with pytest.raises(FileNotFoundError):
        open_bytes("memory://b/y.bin")
    with pytest.raises(FileNotFoundError):
        open_bytes(tmp_path / "y.bin")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(buckets_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"afterimage\[s3\]"):
        open_bytes("s3://b/x")
