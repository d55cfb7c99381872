import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

import afterimage
from afterimage.data import array_set
from afterimage.errors import UserError
from afterimage.export import export_features
from tests import encoder_artefact
from tests.encoder_artefact import pictures
from tests.helpers import environment


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    encoder_artefact.write(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def encoder(run):
    return afterimage.load_encoder(run)


def _sets():
    labels = np.array([0, 1, -1, 1, 0, 1, 0], np.int32)
    train = array_set(pictures(7), labels, ("ant", "bee"), "t", list("abcdefg"))
    test = array_set(pictures(2, (20, 12), seed=1), None, None, "u")
    return {"train": train, "test": test}


def _want(encoder):
    sets = _sets()
    return np.concatenate([encoder.features(s.images) for s in sets.values()])


def test_parquet_holds_id_label_and_vector(encoder, tmp_path):
    out = tmp_path / "new" / "features.parquet"
    assert export_features(encoder, _sets(), out, batch_size=4) == 9
    table = pq.read_table(out).to_pydict()
    assert table["split"] == ["train"] * 7 + ["test"] * 2
    assert table["id"] == [*"abcdefg", "0", "1"]
    assert table["label"] == [0, 1, None, 1, 0, 1, 0, None, None]
    assert table["class"][:4] == ["ant", "bee", None, "bee"]
    np.testing.assert_allclose(np.array(table["vector"]), _want(encoder), atol=1e-5)
    kind = pq.read_schema(out).field("vector").type
    assert str(kind.value_type) == "float"
    assert kind.list_size == encoder.num_features
    assert os.listdir(out.parent) == ["features.parquet"]


def test_parquet_in_several_row_groups_is_the_same(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("afterimage.export._ROWS_TOGETHER", 3)
    export_features(encoder, _sets(), tmp_path / "f.parquet", batch_size=2)
    file = pq.ParquetFile(tmp_path / "f.parquet")
    assert file.num_row_groups > 1
    vectors = np.array(file.read()["vector"].to_pylist())
    np.testing.assert_allclose(vectors, _want(encoder), atol=1e-5)


def test_npz_and_npy(encoder, tmp_path):
    export_features(encoder, _sets(), tmp_path / "f.npz", batch_size=4)
    export_features(encoder, _sets(), tmp_path / "f.npy", batch_size=4)
    with np.load(tmp_path / "f.npz") as arrays:  # allow_pickle is off
        assert arrays["id"].tolist() == [*"abcdefg", "0", "1"]
        assert arrays["split"].tolist() == ["train"] * 7 + ["test"] * 2
        assert arrays["label"].tolist() == [0, 1, -1, 1, 0, 1, 0, -1, -1]
        np.testing.assert_allclose(arrays["vector"], _want(encoder), atol=1e-5)
        assert arrays["vector"].dtype == np.float32
    mapped = np.load(tmp_path / "f.npy", mmap_mode="r")
    np.testing.assert_allclose(mapped, _want(encoder), atol=1e-5)


def test_csv(encoder, tmp_path):
    export_features(encoder, _sets(), tmp_path / "f.csv", batch_size=4)
    with (tmp_path / "f.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    named = [[row[name] for name in ("split", "id", "label", "class")] for row in rows]
    assert named[1] == ["train", "b", "1", "bee"]
    assert named[8] == ["test", "1", "", ""]
    width = encoder.num_features
    found = [[np.float32(row[f"v{n}"]) for n in range(width)] for row in rows]
    export_features(encoder, _sets(), tmp_path / "f.npy", batch_size=4)
    np.testing.assert_array_equal(found, np.load(tmp_path / "f.npy"))


@pytest.mark.parametrize("reader", ["polars", "duckdb", "faiss"])
def test_who_reads_parquet(encoder, tmp_path, reader):
    """The nearest of the images to the fourth, without copying lists of numbers."""
    library = pytest.importorskip(reader)
    out, d = tmp_path / "f.parquet", encoder.num_features
    export_features(encoder, _sets(), out)
    vectors = _want(encoder)
    want = np.argsort(np.square(vectors - vectors[3]).sum(1))[:3].tolist()
    ids = pq.read_table(out)["id"].to_pylist()
    if reader == "polars":
        frame = library.read_parquet(out)
        assert frame.schema["vector"] == library.Array(library.Float32, d)
        found = frame["vector"].to_numpy()
        near = np.argsort(np.square(found - found[3]).sum(1))[:3].tolist()
    elif reader == "duckdb":
        query = f"""
            with v as (select *, vector::float[{d}] as x from '{out}')
            select id from v, (select x as q from v where id = 'd')
            order by array_distance(x, q) limit 3"""
        near = [ids.index(row[0]) for row in library.sql(query).fetchall()]
    else:
        column = pq.read_table(out)["vector"].combine_chunks()
        found = column.flatten().to_numpy().reshape(-1, d)
        index = library.IndexFlatL2(d)
        index.add(found)
        near = index.search(found[3:4], 3)[1][0].tolist()
    assert near == want


def test_without_labels_there_is_no_label_column(encoder, tmp_path):
    sets = {"train": _sets()["test"]}
    export_features(encoder, sets, tmp_path / "f.parquet")
    assert pq.read_schema(tmp_path / "f.parquet").names == ["split", "id", "vector"]
    export_features(encoder, sets, tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz") as arrays:
        assert sorted(arrays) == ["id", "split", "vector"]


@pytest.mark.parametrize("name", ["f.txt", "f", "f.parquet.gz"])
def test_an_unknown_suffix_is_refused_at_once(encoder, tmp_path, name):
    with pytest.raises(UserError, match=r"\.parquet, \.npz, \.npy"):
        export_features(encoder, _sets(), tmp_path / name)


def test_folders_no_images_and_bad_places_are_refused(encoder, tmp_path):
    (tmp_path / "f.npy").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        export_features(encoder, _sets(), tmp_path / "f.npy")
    with pytest.raises(UserError, match="no images"):
        export_features(encoder, {}, tmp_path / "g.npy")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out=.*file is not a folder"):
        export_features(encoder, _sets(), tmp_path / "file" / "g.npy")


def test_a_failure_leaves_the_old_file_and_nothing_else(encoder, tmp_path):
    out = tmp_path / "f.npy"
    np.save(out, np.ones(3))
    broken = array_set(pictures(8, channels=2), None, None, "two channels")
    with pytest.raises(UserError, match="2 channels"):
        export_features(encoder, {"train": broken}, out)
    assert np.load(out).tolist() == [1, 1, 1]
    assert os.listdir(tmp_path) == ["f.npy"]


_SLOW_EXPORT = """
import sys, time
import numpy as np
import afterimage
from afterimage.data import array_set
from afterimage.export import export_features
from tests.encoder_artefact import pictures

class Slow:
    shape = (40, 16, 16, 3)
    def __len__(self): return 40
    def __getitem__(self, rows):
        print(rows[0], flush=True)
        time.sleep(float(sys.argv[3]))
        return pictures(40)[rows]

import dataclasses
images = dataclasses.replace(
    array_set(pictures(40), None, None, "slow"), images=Slow()
)
encoder = afterimage.load_encoder(sys.argv[1])
export_features(encoder, {"train": images}, sys.argv[2], batch_size=4)
"""


@pytest.mark.parametrize(
    "suffix", ["parquet", pytest.param("npy", marks=pytest.mark.slow)]
)
def test_killed_and_repeated_there_is_one_row_an_image(run, encoder, tmp_path, suffix):
    out = tmp_path / f"f.{suffix}"
    command = [sys.executable, "-c", _SLOW_EXPORT, str(run), str(out)]
    child = subprocess.Popen(
        [*command, "0.3"], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert child.stdout is not None
    while child.stdout.readline().strip() != "20":
        assert child.poll() is None
    time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not out.exists()
    assert len(os.listdir(tmp_path)) == 1  # the partial file
    subprocess.run([*command, "0"], check=True, env=environment(), capture_output=True)
    assert os.listdir(tmp_path) == [out.name]
    if suffix == "npy":
        rows = np.load(out)
    else:
        table = pq.read_table(out)
        assert table["id"].to_pylist() == [str(i) for i in range(40)]
        rows = np.array(table["vector"].to_pylist())
    np.testing.assert_allclose(rows, encoder.features(pictures(40)), atol=1e-5)
