"""`afterimage predict`: every image once, in order, however the command was stopped."""

import csv
import json
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import afterimage
from afterimage import rows as module
from afterimage.commands import main
from afterimage.errors import Interrupted
from afterimage.evaluation.configs import PredictConfig
from afterimage.predict import predict as predict_images
from tests import classifier_artefact
from tests.encoder_artefact import pictures


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A classifier, 20 photos, one of them broken."""
    home = tmp_path_factory.mktemp("home")
    classifier_artefact.write(home / "cls")
    photos = home / "photos" / "test" / "deep"  # a name that means nothing here
    photos.mkdir(parents=True)
    for number, image in enumerate(pictures(20, (20, 24))):
        Image.fromarray(image).save(photos / f"{number:02}.png")
    (photos / "07.png").write_bytes(b"no picture")
    return home


def predict(home, data, out, *more):
    where = ["--from", str(home / "cls"), "--out", str(out), "--batch-size", "4"]
    data = data if isinstance(data, list) else [data]
    return main(["predict", *map(str, data), *where, *more])


def read(out):
    with open(out, newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_whatever_its_folders_are_called(home, tmp_path, capsys):
    out = tmp_path / "predictions.csv"
    assert predict(home, home / "photos", out, "--threshold", "0.9") == 0
    rows = read(out)
    good = [f"test/deep/{n:02}.png" for n in range(20) if n != 7]
    assert [row["file"] for row in rows] == good
    classifier = afterimage.load_classifier(home / "cls")
    images = [np.asarray(Image.open(home / "photos" / name)) for name in good]
    shares = classifier.predict_proba(images)
    assert [row["class"] for row in rows] == classifier.predict(images).tolist()
    for name, wanted in (
        ("probability", shares.max(1)),
        ("probability_2", np.sort(shares)[:, 1]),
        ("margin", np.diff(np.sort(shares))[:, 1]),
    ):
        found = [float(row[name]) for row in rows]
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    reference = classifier.references["classes"]
    far = reference.distance(classifier.features(images))
    found = [float(row["distance"]) for row in rows]
    np.testing.assert_allclose(found, far, atol=1e-4)
    unsure = [row["unsure"] == "true" for row in rows]
    assert unsure == (shares.max(1) < 0.9).tolist()
    skipped = (tmp_path / "predictions.csv.skipped.txt").read_text()
    assert skipped.startswith("test/deep/07.png\t")
    said = capsys.readouterr().out
    assert "19 predictions" in said
    assert "1 broken image" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "predictions.csv",
        "predictions.csv.skipped.txt",
    ]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_other_kinds_of_data_and_of_files(home, tmp_path, suffix):
    """An archive, a pattern, a table, arrays and single files: the same rows."""
    photos = home / "photos" / "test" / "deep"
    files = sorted(photos.glob("1*.png"))
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    (photos / "list.csv").write_text(
        "image,label\n" + "".join(f"{file.name},cat\n" for file in files)
    )
    pixels = np.stack([np.asarray(Image.open(file))[2:18, 4:20] for file in files])
    np.savez(tmp_path / "some.npz", x_train=pixels[:6], x_test=pixels[6:])
    kinds = {
        "zip": tmp_path / "some.zip",
        "pattern": photos / "1*.png",
        "files": files,
        "table": photos / "list.csv",
        "arrays": tmp_path / "some.npz",
    }
    found = {}
    for kind, data in kinds.items():
        out = tmp_path / f"{kind}.{suffix}"
        assert predict(home, data, out, "--top", "1") == 0
        if suffix == "parquet":
            rows = pq.read_table(out).to_pylist()
        else:
            lines = out.read_text().splitlines()
            rows = read(out) if suffix == "csv" else list(map(json.loads, lines))
        names = [row["file"] for row in rows]
        wanted = [
            str(file if kind in ("pattern", "files") else file.name) for file in files
        ]
        assert names == (wanted if kind != "arrays" else list("0123450123"))
        assert list(rows[0])[:3] == ["file", "class", "probability"]
        found[kind] = [row["class"] for row in rows]
    (photos / "list.csv").unlink()
    assert found["zip"] == found["files"] == found["pattern"] == found["table"]
    assert len(found["arrays"]) == 10


def test_a_stopped_command_continues(home, tmp_path, monkeypatch, capsys):
    """Killed in the middle of a line: no row twice, none lost, none computed again."""
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    assert predict(home, home / "photos", whole) == 0
    config = PredictConfig(
        data=(f"folder:{home / 'photos'}",),
        from_=str(home / "cls"),
        out=str(out),
        batch_size=4,
    )
    real, seen = module.read_or_reason, []

    def stops(images, rows):
        if rows[0] >= 12:
            raise KeyboardInterrupt
        return real(images, rows)

    monkeypatch.setattr(module, "read_or_reason", stops)
    with pytest.raises(Interrupted, match="run the same command again"):
        predict_images(config)
    assert not out.exists()
    rows = tmp_path / ".out.csv.partial" / "rows.jsonl"
    kept = rows.read_bytes().splitlines()
    assert 1 < len(kept) <= 13
    rows.write_bytes(b"\n".join(kept) + b'\n{"file": "to')  # torn by a dead machine

    def counts(images, numbers):
        seen.extend(numbers.tolist())
        return real(images, numbers)

    monkeypatch.setattr(module, "read_or_reason", counts)
    assert predict_images(config).images == 19
    assert out.read_bytes() == whole.read_bytes()
    assert seen == list(range(len(kept) - 1, 20))
    assert "continuing after" in capsys.readouterr().err


def test_rows_of_other_settings_are_not_continued(home, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    real = module.read_or_reason

    def stops(images, rows):
        if rows[0] >= 12:
            raise KeyboardInterrupt
        return real(images, rows)

    with monkeypatch.context() as patched:
        patched.setattr(module, "read_or_reason", stops)
        assert predict(home, home / "photos", out, "--top", "1") == 75
    assert predict(home, home / "photos", out, "--top", "2") == 0
    assert len(read(out)) == 19
    assert all(row["class_2"] for row in read(out))


@pytest.mark.parametrize(
    ("data", "out", "more", "said"),
    [
        ("photos", "out.txt", [], "must end in .csv, .jsonl, .parquet, not .txt"),
        ("photos", "out.csv", ["--task", "ink"], "task='ink': must be one of"),
        ("photos", "out.csv", ["--on-bad-image", "fail"], "07.png: "),
        ("photos/test/deep/07.png", "out.csv", [], "none of 1 files"),
        ("photos/*.gif", "out.csv", [], "no image matches"),
        ("photos", "out.csv", ["--top", "0"], "top=0"),
    ],
)
def test_what_cannot_work_is_named(home, tmp_path, capsys, data, out, more, said):
    assert predict(home, home / data, tmp_path / out, *more) == 2
    assert said in capsys.readouterr().err


def test_two_folders_are_too_many(home, tmp_path, capsys):
    assert predict(home, [home / "photos"] * 2, tmp_path / "out.csv") == 2
    assert "give one folder" in capsys.readouterr().err
