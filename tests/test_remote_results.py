"""Files of results in a bucket: the same as in a folder, whole or not at all."""

import json

import fsspec
import numpy as np
import pytest
from PIL import Image

from afterimage.commands import main
from afterimage.storage import Bucket, faults
from tests import classifier_artefact, encoder_artefact

URL = "memory://results/photos"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    encoder_artefact.write(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    classifier_artefact.write(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Eight photos in two classes, and a broken file."""
    rng = np.random.default_rng(0)
    for number in range(8):
        place = tmp_path / "photos" / ("a" if number % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"nothing")
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def store(monkeypatch):
    monkeypatch.setattr(faults, "WAITS", (0.0, 0.0))
    yield
    fsspec.filesystem("memory").store.clear()


def stored(name):
    return Bucket(URL).get(name)


def test_predictions_are_those_of_a_local_file(classifier, photos, tmp_path, capsys):
    words = ["predict", str(photos), "--from", str(classifier), "--out"]
    assert main([*words, str(tmp_path / "p.csv")]) == 0
    local = capsys.readouterr().out
    assert main([*words, f"{URL}/p.csv"]) == 0
    assert capsys.readouterr().out == local.replace(str(tmp_path), URL)
    for name in ("p.csv", "p.csv.skipped.txt"):
        assert stored(name) == (tmp_path / name).read_bytes()
    assert list(Bucket(URL).entries()) == ["p.csv", "p.csv.skipped.txt"]
    # The list of broken images goes when there are none any more.
    (photos / "broken.png").unlink()
    assert main([*words, f"{URL}/p.csv"]) == 0
    assert list(Bucket(URL).entries()) == ["p.csv"]


def test_an_upload_that_fails_keeps_the_file(
    classifier, photos, capsys, monkeypatch, tmp_path
):
    words = ["predict", str(photos), "--from", str(classifier)]
    with monkeypatch.context() as patch:

        def refuse(*_, **__):
            raise PermissionError("Access Denied")

        patch.setattr(type(fsspec.filesystem("memory")), "put_file", refuse)
        assert main([*words, "--out", f"{URL}/p.csv"]) == 2
    said = capsys.readouterr().err
    assert "Access Denied" in said
    assert "Complete, but not uploaded: " in said
    kept = said.split("Complete, but not uploaded: ")[1].split("\n")[0]
    with open(kept, "rb") as file:
        rows = file.read()
    assert list(Bucket(URL).entries()) == []
    assert main([*words, "--out", f"{URL}/p.csv"]) == 0
    assert stored("p.csv") == rows


@pytest.mark.parametrize("name", ["f.parquet", "f.npy"])
def test_features(encoder, photos, tmp_path, name):
    words = ["features", str(photos), "--from", str(encoder), "--on-bad-image", "skip"]
    assert main([*words, "--out", str(tmp_path / name)]) == 0
    assert main([*words, "--out", f"{URL}/{name}"]) == 0
    assert stored(name) == (tmp_path / name).read_bytes()


def test_neighbours_and_their_sheet(encoder, photos, capsys):
    query = str(photos / "a" / "1.png")
    outs = [f"{URL}/near.csv", f"{URL}/near.html"]
    words = ["similar", str(photos), "--from", str(encoder), "--query", query]
    assert main([*words, "--out", *outs]) == 0
    assert all(out in capsys.readouterr().out.split("\n") for out in outs[:1])
    assert stored("near.csv").decode().splitlines()[1].endswith("1.png,1.0")
    assert b"<html" in stored("near.html")


def test_anomalies_with_maps_and_a_sheet(encoder, photos):
    words = ["anomalies", str(photos), "--from", str(encoder), "--normal"]
    words += [str(photos / "a"), "--false-alarms", "0.5"]
    words += ["--out", f"{URL}/s.jsonl", "--maps", f"{URL}/maps"]
    assert main([*words, "--sheet", f"{URL}/s.png"]) == 0
    rows = [json.loads(line) for line in stored("s.jsonl").decode().splitlines()]
    assert len(rows) == 8
    maps = Bucket(f"{URL}/maps").entries()
    assert len(maps) == sum(row["anomalous"] for row in rows) > 0
    assert stored("s.png").startswith(b"\x89PNG")


@pytest.mark.slow
def test_an_exported_folder_and_an_evaluation(encoder, classifier, photos, tmp_path):
    words = ["export", str(encoder), "--to", "safetensors", "--out"]
    assert main([*words, str(tmp_path / "hf")]) == 0
    assert main([*words, f"{URL}/hf"]) == 0
    local = {file.name: file.read_bytes() for file in (tmp_path / "hf").iterdir()}
    assert set(Bucket(f"{URL}/hf").entries()) == set(local)
    assert stored("hf/model.safetensors") == local["model.safetensors"]
    (photos / "broken.png").unlink()
    words = ["evaluate", str(photos), "--from", str(classifier)]
    words += ["--out", f"{URL}/figures.json"]
    assert main(words) == 0
    assert json.loads(stored("figures.json"))["examples"] == 8


def test_what_only_this_machine_takes_is_said(encoder, photos, capsys):
    words = ["label", str(photos), "--from", str(encoder), "--suggest", "2"]
    assert main([*words, "--out", f"{URL}/label.csv"]) == 2
    assert "written here only" in capsys.readouterr().err
    words = ["features", str(photos), "--from", str(encoder), "--out", "memory://a.npy"]
    assert main(words) == 2
    assert "this is a bucket; give the name of a file" in capsys.readouterr().err
