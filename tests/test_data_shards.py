"""Shards (tar, Parquet): the same images as a folder, in less memory, on any hosts."""

import csv
import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from afterimage.commands import main
from afterimage.data import open_data, shards
from afterimage.data.ranged import LocalFile, braces
from afterimage.data.tar import Window, members
from afterimage.errors import DataError, UserError
from afterimage.reading import NumberReading, ReadingOptions
from afterimage.runtime import cache_dir
from afterimage.training.batches import Batches, eval_batches
from tests import classifier_artefact

CLASSES = ("cat", "dog", "owl")


def picture(number, size=(10, 8), kind="PNG"):
    values = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


def pack(path, entries, form=tarfile.PAX_FORMAT, **fields):
    """A tar of {name: bytes}, or of (name, bytes) where one comes twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = entries.items() if isinstance(entries, dict) else entries
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in rows:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return f"tar:{path}"


def samples(numbers):
    """WebDataset members: an image, its class, and fields."""
    found = {}
    for number in numbers:
        key = f"{number:04}"
        found[f"{key}.cls"] = CLASSES[number % 3].encode()
        found[f"{key}.json"] = json.dumps({"age": number / 2}).encode()
        found[f"{key}.png"] = picture(number)
    return found


def as_folder(root, numbers):
    for number in numbers:
        place = root / CLASSES[number % 3] / f"{number:04}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(number))
    return f"folder:{root}"


def as_tar(root, numbers, files=3):
    for at, part in enumerate(np.array_split(list(numbers), files)):
        pack(root / f"shard-{at:03}.tar", samples(part.tolist()))
    return f"tar:{root}/shard-{{000..{files - 1:03}}}.tar"


def parquet_file(path, columns, features=None, **options):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table(columns)
    if features is not None:
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({b"huggingface": info.encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return f"parquet:{path}"


def as_parquet(root, numbers, files=2):
    features = {"image": {"_type": "Image"}}
    features["label"] = {"_type": "ClassLabel", "names": list(CLASSES)}
    for at, part in enumerate(np.array_split(list(numbers), files)):
        rows = [{"bytes": picture(n), "path": f"{n:04}.png"} for n in part.tolist()]
        columns = {"image": rows, "label": part % 3, "age": part / 2}
        name = f"train-{at:05}-of-{files:05}.parquet"
        parquet_file(root / name, columns, features, row_group_size=4)
    return f"parquet:{root}"


KINDS = {"tar": as_tar, "parquet": as_parquet}


def key_of(name):
    return name.rpartition("/")[2]


def in_order(images):
    """(pixels, class names) of a set, by the names of the files."""
    place = sorted(range(len(images)), key=lambda row: key_of(images.ids[row]))
    names = [images.class_names[images.labels[row]] for row in place]
    return images.gather(place), names


@pytest.fixture(params=["decoded", "on demand"])
def size(request, monkeypatch):
    """Both ways to hold images: few decoded at once, or many on demand."""
    if request.param == "on demand":
        monkeypatch.setattr(shards, "MOST_DECODED", 2)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"image_size": 6, "channels": 1}])
def test_shards_are_the_folder_of_the_same_images(tmp_path, size, kind, options):
    wanted = open_data(as_folder(tmp_path / "f", range(20)), **options).train
    found = open_data(KINDS[kind](tmp_path / "s", range(20)), **options).train
    pixels, names = in_order(wanted)
    np.testing.assert_array_equal(in_order(found)[0], pixels)
    assert in_order(found)[1] == names
    assert found.class_names == CLASSES
    part = found.subset([7, 2])
    assert list(part.ids) == [found.ids[7], found.ids[2]]
    np.testing.assert_array_equal(part.gather([1]), found.gather([2]))
    assert list(found.ids)[3:5] == list(found.ids[3:5])


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_and_tasks(tmp_path, size, kind):
    spec = KINDS[kind](tmp_path, range(8))
    reading = NumberReading(kind="regression", columns=("age",))
    numbers = open_data(spec, numbers=reading).train.numbers
    np.testing.assert_array_equal(numbers.values[:, 0], np.arange(8) / 2)
    found = open_data(spec, tasks=("age", "none")).train
    assert list(found.tasks) == ["age"]
    names = [found.tasks["age"].class_names[v] for v in found.tasks["age"].values]
    assert list(map(float, names)) == [n / 2 for n in range(8)]
    assert found.class_names == CLASSES
    with pytest.raises(DataError, match="no column 'weight'"):
        open_data(spec, numbers=NumberReading(kind="regression", columns=("weight",)))


def test_several_labels(tmp_path, size):
    rows = [["a", "b"], ["b"], [], None]
    columns = {"image": [picture(n) for n in range(4)], "label": rows}
    spec = parquet_file(tmp_path / "a.parquet", columns)
    numbers = open_data(spec, numbers=NumberReading(kind="multi-label")).train.numbers
    assert numbers.names == ("a", "b")
    assert numbers.values[:3].tolist() == [[1, 1], [0, 1], [0, 0]]
    assert np.isnan(numbers.values[3]).all()


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_order_is_the_same_on_any_hosts_and_each_reads_its_rows(
    tmp_path, monkeypatch, hosts
):
    monkeypatch.setattr(shards, "MOST_DECODED", 2)
    spec = as_tar(tmp_path, range(24))
    images = open_data(spec, cache=False).train
    read = reads_of(monkeypatch)
    whole = Batches(images, batch_size=8, seed=3, resident=True)
    for step in range(3):
        parts = []
        for host in range(hosts):
            batches = Batches(images, batch_size=8, seed=3, host=host, hosts=hosts)
            read.clear()
            parts.append(batches[step])
            assert sorted(read) == sorted(parts[-1]["index"].tolist())
        joined = {k: np.concatenate([p[k] for p in parts]) for k in ("index", "image")}
        np.testing.assert_array_equal(joined["index"], whole[step]["index"])
        np.testing.assert_array_equal(joined["image"], images.gather(joined["index"]))
    for host in range(hosts):
        share = 8 // hosts
        mine = slice(host * share, (host + 1) * share)
        read.clear()
        for batch in eval_batches(images, 8, mine):
            assert len(batch["image"]) == share
        assert len(read) == 24 // hosts


SPLITS = {
    "prefix": ["train-000.tar", "train-001.tar", "val-000.tar", "test-000.tar"],
    "folder": ["train/0.tar", "train/1.tar", "validation/0.tar", "test/0.tar"],
    "word": [
        "my-train-00000-of-2.tar",
        "my-train-1.tar",
        "my-val-0.tar",
        "my-test.tar",
    ],
}


@pytest.mark.parametrize("case", SPLITS)
def test_splits_by_the_names_of_shards(tmp_path, case):
    for at, name in enumerate(SPLITS[case]):
        pack(tmp_path / name, samples([3 * at, 3 * at + 1, 3 * at + 2]))
    found = open_data(f"tar:{tmp_path}")
    counts = [len(s) for s in (found.train, found.validation, found.test)]
    assert counts == [6, 3, 3]
    every = open_data(f"tar:{tmp_path}", once=True, image_size=8, channels=3)
    assert (len(every.train), every.test) == (12, None)


def test_splits_by_options_and_alone(tmp_path):
    for at, name in enumerate(["a-0.tar", "b-0.tar", "c-0.tar"]):
        pack(tmp_path / name, samples([at]))
    spec = f"tar:{tmp_path}"
    assert len(open_data(spec).train) == 3
    found = open_data(spec, reading=ReadingOptions(train="a", test="c-*.tar"))
    assert [len(found.train), len(found.test)] == [1, 1]
    assert key_of(found.test.ids[0]) == "0002.png"
    with pytest.raises(DataError, match="--test nothing"):
        open_data(spec, reading=ReadingOptions(test="nothing"))
    alone = pack(tmp_path / "test-0.tar", samples([1]))
    assert len(open_data(alone).train) == 1
    with pytest.raises(DataError, match=r"test-0.tar is named.*a-0.tar is not"):
        open_data(spec)


def test_a_column_split(tmp_path):
    columns = {"image": [picture(n) for n in range(3)]}
    columns["split"] = ["train", "test", "train"]
    spec = parquet_file(tmp_path / "a.parquet", columns)
    found = open_data(spec)
    assert [list(found.train.ids), list(found.test.ids)] == [["0", "2"], ["1"]]


def test_folders_inside_a_tar_are_classes_and_splits(tmp_path, size):
    names = ["data/train/cat/a.jpg", "data/train/dog/b.jpg", "data/test/cat/c.jpg"]
    spec = pack(tmp_path / "a.tar", {n: picture(i) for i, n in enumerate(names)})
    found = open_data(spec)
    assert [found.train.labels.tolist(), found.test.labels.tolist()] == [[0, 1], [0]]
    assert found.train.class_names == ("cat", "dog")


def test_the_index_is_kept_and_a_change_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MOST_DECODED", 2)
    spec = as_tar(tmp_path, range(9))
    first = open_data(spec).train
    scans = []
    monkeypatch.setattr(
        "afterimage.data.sources.tar.members",
        lambda window: scans.append(1) or members(window),
    )
    assert open_data(spec).train.fingerprint == first.fingerprint
    assert not scans
    (folder,) = (cache_dir() / "index").iterdir()
    damaged = folder / "size.bin"
    damaged.write_bytes(b"\0" + damaged.read_bytes()[1:])
    assert open_data(spec).train.fingerprint == first.fingerprint
    assert len(scans) == 3
    place = tmp_path / "shard-000.tar"
    before = place.stat()
    pack(place, samples([0, 1, 5]))
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = open_data(spec).train
    assert changed.fingerprint != first.fingerprint
    np.testing.assert_array_equal(changed.gather([2])[0], first.gather([5])[0])


def test_moved_shards_have_the_same_fingerprint(tmp_path, size):
    first = open_data(as_tar(tmp_path / "a", range(9))).train.fingerprint
    assert open_data(as_tar(tmp_path / "b", range(9))).train.fingerprint == first
    assert open_data(as_tar(tmp_path / "c", range(8))).train.fingerprint != first


def reads_of(monkeypatch):
    """The rows that are read from the shards from now on."""
    read, own = [], shards.ShardFiles.open
    monkeypatch.setattr(
        shards.ShardFiles, "open", lambda self, row: read.append(row) or own(self, row)
    )
    return read


def test_images_on_demand_are_decoded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MOST_DECODED", 2)
    spec = as_tar(tmp_path, range(9))
    wanted = open_data(spec, cache=False, image_size=6).train.gather(range(9))
    read = reads_of(monkeypatch)
    for _ in range(2):  # the second time as a new process would
        images = open_data(spec, image_size=6).train
        read.clear()
        np.testing.assert_array_equal(images.gather([4, 2]), wanted[[4, 2]])
        np.testing.assert_array_equal(images.gather([2, 7]), wanted[[2, 7]])
    assert read == []
    (place,) = (cache_dir() / "index").glob("*/decoded-*")
    with (place / "pixels.bin").open("r+b") as file:  # as a crash leaves it
        file.seek(4 * wanted[0].nbytes)
        file.write(bytes(9))
    np.testing.assert_array_equal(images.gather([4, 2]), wanted[[4, 2]])
    assert read == [4]


def test_a_small_disk_keeps_no_decoded_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, "MOST_DECODED", 2)
    monkeypatch.setattr("afterimage.data.decoded._SHARE", 0)
    spec = as_tar(tmp_path, range(4))
    read = reads_of(monkeypatch)
    images = open_data(spec, image_size=6).train
    read.clear()
    for _ in range(2):
        images.gather([1])
    assert read == [1, 1]
    assert "decoded in each pass" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_cache_folder(tmp_path, monkeypatch, kind):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("AFTERIMAGE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(shards, "MOST_DECODED", 2)
    assert open_data(KINDS[kind](tmp_path / "s", range(6))).train.gather([5]).any()


def test_bad_images_are_named_or_skipped(tmp_path, size):
    entries = samples(range(9))
    entries["0004.png"] = b"<html>no</html>"
    whole = entries["0007.png"]
    entries["0007.png"] = whole[: len(whole) - 30]
    spec = pack(tmp_path / "a.tar", entries)
    with pytest.raises(DataError, match=r"0004.png.*\n.*|0004.png"):
        open_data(spec).train.gather(range(9))
    for _ in range(2):  # the second time from what was kept
        found = open_data(spec, on_bad_image="skip").train
        assert [bad.path for bad in found.skipped] == ["0004.png", "0007.png"]
        assert len(found) == 7
        assert found.gather(range(7)).shape == (7, 8, 10, 3)
        assert len(found.labels) == 7


def test_images_of_another_size_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MOST_DECODED", 2)
    monkeypatch.setattr("afterimage.data.ondemand._SAMPLE", 2)
    entries = {f"{n}.png": picture(n, (10, 8 + 2 * (n == 4))) for n in range(6)}
    spec = pack(tmp_path / "a.tar", entries)
    found = open_data(spec).train
    with pytest.raises(DataError, match=r"4.png: 10x10 pixels.*--image-size"):
        found.gather([4])
    assert open_data(spec, image_size=8).train.gather([4]).shape == (1, 8, 8, 3)


LONG = "a" * 90 + "/" + "b" * 150 + ".png"
FORMS = {
    "pax": tarfile.PAX_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "ustar": tarfile.USTAR_FORMAT,
}


@pytest.mark.parametrize("form", FORMS)
def test_members_are_those_of_pythons_tarfile(tmp_path, form):
    names = ["./a.png", "bücher/ä.png", "x/" + "d" * 80 + "/" + "f" * 90 + ".png"]
    if form != "ustar":
        names += [LONG, "raw\udcff.png"]
    spec = pack(tmp_path / "a.tar", {n: picture(0) for n in names}, FORMS[form])
    path = spec.removeprefix("tar:")
    with tarfile.open(path) as archive:
        wanted = [(m.name, m.offset_data, m.size) for m in archive]
    found = members(Window(LocalFile(path)))
    assert [(m.name, m.start, m.size) for m in found] == wanted


def damaged(tmp_path, change):
    spec = pack(tmp_path / "a.tar", samples(range(3)))
    place = tmp_path / "a.tar"
    content = bytearray(place.read_bytes())
    place.write_bytes(change(content))
    return spec


def resized(content, text):
    content[124:136] = text
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    return content


HOSTILE = {
    "cut off": (lambda c: c[:2700], "cut off or damaged"),
    "cut off between members": (lambda c: c[:2048], "has no end"),
    "a size that lies": (lambda c: resized(c, b"77777777777\0"), "cut off or damaged"),
    "a negative size": (lambda c: resized(c, b"\xff" * 12), "cut off or damaged"),
    "a huge size": (lambda c: resized(c, b"\x80" + b"\x7f" * 11), "cut off or damaged"),
    "a checksum": (lambda c: b"x" + c[1:], "header at byte 0"),
    "noise": (lambda _: bytes(range(256)) * 9, "header at byte 0"),
    "empty": (lambda _: b"", "0 bytes"),
    "gzip": (lambda _: b"\x1f\x8b" + bytes(600), "gunzip"),
    "zstd": (lambda _: b"\x28\xb5\x2f\xfd" + bytes(600), "compressed"),
    "zeros": (lambda _: bytes(10240), "no images"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tar_is_explained(tmp_path, case):
    change, message = HOSTILE[case]
    with pytest.raises(DataError, match=message) as error:
        open_data(damaged(tmp_path, change))
    assert "a.tar" in str(error.value)


MEMBERS = {
    "twice": ([("a.png", b"1"), ("a.png", b"2")], {}, "a.png twice"),
    "apart": ([("a.png", b"1"), ("b.png", b"2"), ("a.png", b"3")], {}, "again later"),
    "two images": ([("a.png", b"1"), ("a.jpg", b"2")], {}, "has 2 images: jpg, png"),
    "a link": ([("a.png", b"")], {"type": b"2", "linkname": "b"}, "a symbolic link"),
    "outside": ([("../a.png", b"1")], {}, "points outside"),
    "absolute": ([("/a.png", b"1")], {}, "points outside"),
    "sparse": ([("a.png", b"1")], {"pax_headers": {"GNU.sparse.major": "1"}}, "sparse"),
    "old sparse": ([("a.png", b"")], {"type": b"S"}, "sparse"),
    "a long label": ([("a.cls", b"1" * 5000), ("a.png", b"1")], {}, "5,000 bytes"),
    "json": ([("a.json", b"[" * 9000), ("a.png", b"1")], {}, "a.json"),
    "a json list": ([("a.json", b"[1]"), ("a.png", b"1")], {}, "not a JSON object"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_members_that_are_refused(tmp_path, case):
    entries, fields, message = MEMBERS[case]
    with pytest.raises(DataError, match=message):
        open_data(pack(tmp_path / "a.tar", entries, **fields))


def test_odd_members_are_fine(tmp_path, capsys):
    entries = {
        "._a.png": b"mac",
        "notes.md": b"text",
        "raw\udcff.png": picture(0),
        "raw\udcff.cls": b"l\xff",
        "a.b.c.png": picture(1),
        "m.png": picture(2),
        "m.mask.png": picture(3),
    }
    found = open_data(pack(tmp_path / "a.tar", entries)).train
    assert list(found.ids) == [r"raw\xff.png", "a.b.c.png", "m.png"]
    wanted = np.asarray(Image.open(io.BytesIO(picture(2))))
    np.testing.assert_array_equal(found.gather([2])[0], wanted)
    assert found.class_names == (r"l\xff",)
    assert "1 .md" in capsys.readouterr().err


def test_joined_archives_are_read_to_the_end(tmp_path):
    parts = []
    for number in range(2):
        pack(tmp_path / "part.tar", samples([number]))
        parts.append((tmp_path / "part.tar").read_bytes())
    (tmp_path / "whole.tar").write_bytes(b"".join(parts))
    assert len(open_data(f"tar:{tmp_path}/whole.tar").train) == 2


WRONG_PARQUET = {
    "no image": ({"label": [1, 2]}, "expected one with the bytes"),
    "numbers": ({"image": [1, 2]}, r"image \(int64\)"),
    "two": ({"x": [b"1"], "y": [b"2"]}, "called image if there are several"),
    "a split": ({"image": [b"1"], "split": ["fold-1"]}, "contains fold-1"),
    "bytes": ({"image": [b"no image"]}, "0: "),
    "no bytes": ({"image": [{"bytes": None, "path": "a.png"}]}, "empty file"),
    "nothing": ({"image": [None]}, "empty file"),
}


@pytest.mark.parametrize("case", WRONG_PARQUET)
def test_parquet_of_wrong_types_is_explained(tmp_path, case):
    pa = pytest.importorskip("pyarrow")
    columns, message = WRONG_PARQUET[case]
    if case in ("nothing", "no bytes"):
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {"image": pa.array(columns["image"], kind)}
    with pytest.raises(DataError, match=message):
        open_data(parquet_file(tmp_path / "a.parquet", columns))


def test_parquet_bombs_and_damage(tmp_path):
    columns = {"image": [bytes(2**26 + 1)]}
    spec = parquet_file(tmp_path / "a.parquet", columns, compression="zstd")
    with pytest.raises(DataError, match="decompress to"):
        open_data(spec)
    place = tmp_path / "b.parquet"
    parquet_file(place, {"image": [picture(n) for n in range(40)]})
    content = place.read_bytes()
    for broken in (content[:500], content[:200] + bytes(300) + content[500:], b"PAR1"):
        place.write_bytes(broken)
        with pytest.raises(DataError, match=r"b.parquet"):
            open_data(f"parquet:{place}").train.gather(range(40))


PATTERNS = {
    "a{00..02}.tar": ["a00.tar", "a01.tar", "a02.tar"],
    "a{2..0}": ["a2", "a1", "a0"],
    "{a,b}-{0..1}": ["a-0", "a-1", "b-0", "b-1"],
    "a{x}.tar": ["a{x}.tar"],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_braces(pattern):
    assert braces(pattern) == PATTERNS[pattern]


def test_patterns_and_paths(tmp_path, monkeypatch):
    as_tar(tmp_path, range(6))
    monkeypatch.chdir(tmp_path)
    for spec in (".", "*.tar", "shard-{000..002}.tar", "shard-00[0-2].tar"):
        assert len(open_data(f"tar:{spec}").train) == 6
    assert len(open_data("shard-{000..002}.tar").train) == 6
    assert len(open_data("shard-001.tar").train) == 2
    with pytest.raises(DataError, match=r"shard-003.tar does not exist"):
        open_data("tar:shard-{000..003}.tar")
    with pytest.raises(DataError, match="no file matches"):
        open_data("tar:none-*.tar")
    with pytest.raises(DataError, match="at most 1,048,576"):
        open_data("tar:a{0..9999999}.tar")
    with pytest.raises(DataError, match=r"give tar:"):
        open_data(".")
    with pytest.raises(UserError, match="tar:PATTERN"):
        open_data("tar:")


@pytest.fixture
def bucket():
    from afterimage.storage.bucket import Bucket

    found = Bucket("memory://shards/data")
    yield found
    found.delete(found.entries())


@pytest.mark.parametrize("kind", KINDS)
def test_shards_of_a_bucket(tmp_path, size, kind, bucket):
    wanted = open_data(KINDS[kind](tmp_path, range(12))).train
    for file in sorted(tmp_path.glob(f"*.{kind}")):
        bucket.put(file.name, file.read_bytes())
    patterns = ["", "/*-00*"]
    patterns += ["/shard-{000..002}.tar"] if kind == "tar" else []
    for pattern in patterns:
        found = open_data(f"{kind}:{bucket.url}{pattern}").train
        assert list(found.ids) == list(wanted.ids)
        assert found.fingerprint == wanted.fingerprint
        np.testing.assert_array_equal(found.gather(range(12)), wanted.gather(range(12)))
    name = next(iter(bucket.entries()))
    bucket.put(name, bucket.get(name)[:700])
    with pytest.raises(DataError, match=f"{kind}:"):
        open_data(f"{kind}:{bucket.url}")
    with pytest.raises(DataError, match="does not exist"):
        open_data(f"{kind}:{bucket.url}/none.{kind}")
    with pytest.raises(UserError, match="not supported"):
        open_data(f"{kind}:ftp://a/b.{kind}")


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A classifier on disk; images are decoded on demand."""
    monkeypatch.setattr(shards, "MOST_DECODED", 2)
    monkeypatch.chdir(tmp_path)
    classifier_artefact.write(tmp_path / "cls", heads={"classes": CLASSES})
    return "cls"


@pytest.mark.parametrize("kind", KINDS)
def test_commands_read_shards_as_a_folder(tmp_path, trained, kind):
    spec = KINDS[kind](tmp_path / "s", range(12))
    found = {}
    for data in (spec, as_folder(tmp_path / "f", range(12))):
        assert main(["predict", data, "--from", trained, "--out", "p.csv"]) == 0
        with (tmp_path / "p.csv").open() as file:
            rows = [{**r, "file": key_of(r["file"])} for r in csv.DictReader(file)]
        found[data] = sorted(rows, key=lambda r: r["file"])
    one, other = found.values()
    assert [r["file"].rpartition(".")[2] for r in one] == ["png"] * 12
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_command_reads_shards(tmp_path, trained, kind):
    spec = KINDS[kind](tmp_path / "s", range(48))
    quick = ["--steps", "4", "--batch-size", "8", "--no-tensorboard", "--data", spec]
    own = ["--image-size", "16", "--width", "0.25", "--out", "run"]
    assert main(["pretrain", *quick, *own]) == 0
    assert main(["finetune", *quick, "--from", "run", "--out", "tuned"]) == 0
    assert main(["evaluate", "--from", trained, "--data", spec]) == 0
    assert main(["features", "--from", "run", "--data", spec, "--out", "f.npz"]) == 0
    more = ["--from", "run", "--out"]
    assert main(["label", spec, "--check", *more, "l.csv"]) == 0
    assert main(["anomalies", spec, "--normal", spec, *more, "a.csv"]) == 0
    assert main(["similar", spec, "--duplicates", *more, "s.csv"]) == 0
