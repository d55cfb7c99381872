"""Objects of a real S3 server on loopback, with faults injected on the way.

Needs pip install s3fs 'moto[s3]' flask flask-cors.
"""

import time
import zipfile

import pytest

from afterimage.storage import Bucket, RemoteError, open_bytes
from tests import buckets

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def port():
    with buckets.moto_server() as port:
        yield port


@pytest.fixture
def server(port, monkeypatch):
    """An S3 server with the bucket `b`, empty."""
    with buckets.served(port, monkeypatch) as server:
        yield server


def test_ranges_over_s3(server, tmp_path):
    bucket = Bucket(f"s3://{server.bucket}/data")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(20):
            archive.writestr(f"{number}.bin", bytes([number]) * 100_000)
    bucket.upload(tmp_path / "a.zip", "a.zip")
    server.seen.clear()
    with open_bytes(bucket.path("a.zip"), block=2**16) as file:
        with zipfile.ZipFile(file) as archive:
            assert archive.read("13.bin") == bytes([13]) * 100_000
    assert 2 <= len([1 for method, _ in server.seen if method == "GET"]) < 8


@pytest.mark.parametrize("fault", ["503", "reset", "hang"])
def test_what_may_pass_is_tried_again(server, fault, monkeypatch):
    if fault == "hang":
        buckets.use(server, monkeypatch, seconds=0.5)
    bucket, times = Bucket(f"s3://{server.bucket}/x"), []

    def twice(method, path, body):
        times.append(path)
        return fault if len(times) <= 2 else None

    server.fault = twice
    bucket.put("a", b"12345678")
    assert bucket.get("a") == b"12345678"
    times.clear()
    assert bucket.get("a", 2, 4) == b"34"
    times.clear()
    assert list(bucket.entries()) == ["a"]


def test_a_store_that_stays_away_is_named(server):
    server.fault = lambda method, path, body: "503"
    with pytest.raises(RemoteError, match=r"s3://.*/x/a cannot be read.*4 tries") as e:
        Bucket(f"s3://{server.bucket}/x").get("a")
    assert e.value.kind == "later"


def test_an_expired_token_is_not_tried_again(server):
    server.fault = lambda method, path, body: "expired"
    with pytest.raises(RemoteError, match="token has expired; renew it") as caught:
        Bucket(f"s3://{server.bucket}/x").put("a", b"1")
    assert caught.value.kind == "expired"
    assert len(server.seen) == 1


def test_refusals_and_names_of_buckets(server):
    with pytest.raises(RemoteError, match="no such bucket"):
        Bucket("s3://never-made/x").put("a", b"1")
    server.fault = lambda method, path, body: "denied"
    with pytest.raises(RemoteError, match="credentials"):
        Bucket(f"s3://{server.bucket}/x").get("a")


def test_half_an_object_is_written_again(server, tmp_path):
    bucket, times = Bucket(f"s3://{server.bucket}/x"), []
    (tmp_path / "a").write_bytes(b"0123456789" * 1000)

    def once(method, path, body):
        if method == "PUT":
            times.append(path)
            return "half" if len(times) == 1 else None
        return None

    server.fault = once
    bucket.upload(tmp_path / "a", "a")
    assert len(times) == 2
    assert bucket.get("a") == (tmp_path / "a").read_bytes()


def test_only_one_of_two_creates_an_object(server):
    bucket = Bucket(f"s3://{server.bucket}/x")
    bucket.put("lock", b"1", create=True)
    with pytest.raises(FileExistsError):
        bucket.put("lock", b"2", create=True)
    assert bucket.get("lock") == b"1"
    assert abs(bucket.modified("lock").timestamp() - time.time()) < 60
