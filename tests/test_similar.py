"""`afterimage similar`: the nearest images, an index that follows the album."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import afterimage
from afterimage.commands import main
from afterimage.data import open_data
from afterimage.similar import Index
from tests import encoder_artefact


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    encoder_artefact.write(folder / "encoder")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def album(tmp_path):
    """Twelve different photos; 3 again as a slightly darker copy; a broken file."""
    folder = tmp_path / "album"
    (folder / "val").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(12):
        # Smooth pictures: noise would be another picture once it is moved.
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
        photo = Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC)
        photo.save(folder / "val" / f"{number:02}.png")
        if number == 3:
            darker = (0.95 * np.asarray(photo)).astype(np.uint8)
            Image.fromarray(darker).save(folder / "val" / "copy.png")
    (folder / "broken.jpg").write_bytes(b"nothing")
    return folder


def similar(run, album, *more):
    return main(["similar", str(album), "--from", str(run), *map(str, more)])


def test_the_nearest_by_cosine(run, album, tmp_path, capsys):
    outs = [tmp_path / f"near.{kind}" for kind in ("csv", "jsonl", "png", "html")]
    query = [album / "val" / "03.png", album / "val" / "05.png"]
    assert similar(run, album, "--query", *query, "--top", 4, "--out", *outs) == 0
    encoder = afterimage.load_encoder(run)
    names = sorted(f"val/{path.name}" for path in (album / "val").iterdir())
    images = [np.asarray(Image.open(album / name)) for name in names]
    vectors = encoder.features(images)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with outs[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {key: str(value) for key, value in json.loads(line).items()}
        for line in outs[1].read_text().splitlines()
    ]
    for number, path in enumerate(query):
        mine = rows[4 * number : 4 * number + 4]
        cosines = vectors @ vectors[names.index(f"val/{path.name}")]
        order = np.argsort(-cosines)[:4]
        assert [row["query"] for row in mine] == [str(path)] * 4
        assert [row["file"] for row in mine] == [names[row] for row in order]
        found = [float(row["cosine"]) for row in mine]
        np.testing.assert_allclose(found, cosines[order], atol=1e-5)
    assert rows[1]["file"] == "val/copy.png"
    with Image.open(outs[2]) as sheet:
        assert sheet.width > 5 * 100
    page = outs[3].read_text()
    assert "data:image/png;base64" in page
    assert "val/copy.png" in page
    assert sorted(path.name for path in tmp_path.glob("near*")) == sorted(
        out.name for out in outs
    )
    assert "13 images, 14 of them new or changed\n1 could not be read" in (
        capsys.readouterr().out
    )


def test_duplicates_and_their_threshold(run, album, tmp_path, capsys):
    out = tmp_path / "doubles.csv"
    (album / "val" / "twin.png").write_bytes((album / "val" / "07.png").read_bytes())
    assert similar(run, album, "--duplicates", "--out", out) == 0
    with out.open(newline="") as file:
        rows = [(row["group"], row["file"]) for row in csv.DictReader(file)]
    assert rows == [
        ("val/03.png", "val/03.png"),
        ("val/03.png", "val/copy.png"),
        ("val/07.png", "val/07.png"),
        ("val/07.png", "val/twin.png"),
    ]
    assert "2 groups of duplicates (cosine 0.9" in capsys.readouterr().out
    more = "--duplicates", "--cosine", "1e-9", "--out", out
    assert similar(run, album, *more) == 0
    assert "1 groups of duplicates (cosine 0.000" in capsys.readouterr().out


def test_the_index_follows_the_album(run, album, tmp_path):
    """New and changed images are computed, others are not, gone ones not found."""

    def updated(encoder=None):
        encoder = encoder or afterimage.load_encoder(run)
        index = Index(tmp_path / "index", encoder)
        images = open_data(album, image_size=16, channels=3, once=True).train
        index.update(images, batch_size=5)
        return index

    first = updated()
    assert (first.computed, len(first.names), list(first.bad)) == (
        14,
        13,
        ["broken.jpg"],
    )
    assert updated().computed == 0
    new = album / "val" / "00.png"
    new.write_bytes((album / "val" / "01.png").read_bytes())
    (album / "val" / "02.png").unlink()
    (album / "new.png").write_bytes((album / "val" / "01.png").read_bytes())
    second = updated()
    assert second.computed == 2
    assert second.names[0] == "new.png"
    assert "val/02.png" not in second.names
    place = {name: row for row, name in enumerate(second.names)}
    same = [second.vectors[place[n]] for n in ("new.png", "val/00.png", "val/01.png")]
    np.testing.assert_allclose(same[0], same[2], atol=1e-6)
    np.testing.assert_allclose(same[1], same[2], atol=1e-6)
    # Stopped between vectors and lines, and in the middle of a line.
    whole = [np.array(second.vectors), list(second.names)]
    lines = tmp_path / "index" / "images.jsonl"
    kept = lines.read_bytes().splitlines(keepends=True)
    lines.write_bytes(b"".join(kept[:9]) + b'{"file": "va')
    third = updated()
    assert 0 < third.computed < 14
    assert third.names == whole[1]
    np.testing.assert_allclose(third.vectors, whole[0], atol=1e-6)
    for path in sorted((album / "val").iterdir())[2:]:
        path.unlink()
    fourth = updated()
    assert fourth.computed == 0
    assert len(lines.read_bytes().splitlines()) == 1 + len(fourth.names) + 1
    want = [third.vectors[third.names.index(name)] for name in fourth.names]
    np.testing.assert_array_equal(fourth.vectors, want)
    assert updated(afterimage.load_encoder(run).untrained()).computed == 4


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "give either query"),
        (["--query", "gone.jpg"], "gone.jpg"),
        (["--query", "{}/broken.jpg"], "broken.jpg: not a JPEG"),
        (
            ["--duplicates", "--out", "a.txt"],
            "must end in .csv, .jsonl, .png, .html, not .txt",
        ),
        (["--query", "{}/val/00.png", "--cosine", "0.9"], "only with duplicates"),
    ],
)
def test_what_cannot_work_is_named(run, album, capsys, more, said):
    more = [one.format(album) for one in more]
    assert similar(run, album, *more) == 2
    assert said in capsys.readouterr().err
