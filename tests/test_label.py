"""`afterimage label`: which images to label next, and which labels look wrong."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import afterimage
from afterimage import find_label_issues, images_to_label
from afterimage.commands import main
from tests import classifier_artefact, encoder_artefact


def clusters(sizes, seed=0, spread=0.15):
    """(features, the cluster of each): directions 40 degrees apart or more."""
    rng = np.random.default_rng(seed)
    centres = np.eye(8)[: len(sizes)] + 0.2
    groups = np.repeat(np.arange(len(sizes)), sizes)
    return centres[groups] + spread * rng.normal(size=(len(groups), 8)), groups


@pytest.mark.parametrize("rule", ["typical", "k-center"])
def test_choices_cover_every_cluster(rule):
    features, groups = clusters((200, 90, 60, 40, 30, 25))
    chosen = images_to_label(features, 6, rule=rule)
    assert sorted(groups[chosen]) == [0, 1, 2, 3, 4, 5]
    known, others = features[np.isin(groups, (0, 4))], ~np.isin(groups, (0, 4))
    chosen = images_to_label(features, 4, known=known[::20], rule=rule)
    assert sorted(groups[chosen]) == sorted(set(groups[others]))


def test_typical_images_are_in_the_middle_of_their_cluster():
    features, groups = clusters((80, 80, 80))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    odd = np.random.default_rng(1).normal(size=(4, 8))
    chosen = images_to_label(np.concatenate([features, odd]), 3)
    assert sorted(groups[chosen]) == [0, 1, 2]
    middle = np.stack([features[groups == g].mean(0) for g in range(3)])
    away = np.linalg.norm(features - middle[groups], axis=1)
    assert (away[chosen] < np.median(away)).all()


def test_more_than_there_are_gives_all_of_them_once():
    features, _ = clusters((7, 5))
    features[3] = features[4]
    shares = np.full((12, 2), 0.5)
    for rule in ("typical", "k-center", "k-means++", "margin", "badge", "random"):
        how = {"rule": rule, "probabilities": shares}
        chosen = images_to_label(features, 50, known=features[:2], **how)
        assert sorted(chosen) == list(range(12)), rule


def test_uncertain_images_first_and_by_badge_apart_as_well():
    features, groups = clusters((50, 50, 50), spread=0.02)
    shares = np.tile([0.98, 0.01, 0.01], (150, 1))
    unsure = np.r_[0:10, 50:60]  # in two of three clusters
    shares[unsure] = [0.5, 0.49, 0.01]
    shares[7] = [0.495, 0.495, 0.01]
    chosen = images_to_label(features, 1, rule="margin", probabilities=shares)
    assert chosen[0] == 7
    chosen = images_to_label(features, 20, rule="margin", probabilities=shares)
    assert sorted(chosen) == sorted(unsure)
    shares = np.tile([0.5, 0.49, 0.01], (150, 1))
    some = groups < 2
    for seed in range(5):
        how = {"probabilities": shares[some], "rule": "badge", "seed": seed}
        chosen = images_to_label(features[some], 2, **how)
        assert sorted(groups[some][chosen]) == [0, 1]


def test_most_wrong_labels_are_found_with_few_false_ones():
    features, truth = clusters((150, 120, 90, 60), spread=0.25)
    rng = np.random.default_rng(0)
    wrong = rng.permutation(len(truth))[:21]
    labels = truth.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, 4, 21)) % 4
    features = np.concatenate([features, features[:2]])  # a class of two
    labels = np.append(labels, [7, 7])
    found = find_label_issues(features, labels)
    right = np.isin(found.rows, wrong)
    assert right.sum() >= 17
    assert (~right).sum() <= 2
    np.testing.assert_array_equal(found.suggested[right], truth[found.rows[right]])
    assert (np.diff(found.score) <= 0).all()
    assert (found.neighbours < 0.3).all()
    assert found.checked.tolist() == [True] * len(truth) + [False] * 2
    assert 0.85 < found.agreement < 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    encoder_artefact.write(folder / "encoder")
    (folder / "config.json").write_text("{}")
    return folder


COLOURS = {"blue": (30, 60, 200), "green": (40, 190, 60), "red": (210, 50, 40)}


def write_images(folder, counts, seed=0):
    """PNG files NAME-NUMBER.png of these colours, with noise."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in counts.items():
        for number in range(count):
            pixels = np.array(COLOURS[name]) + rng.normal(0, 12, (18, 16, 3))
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(folder / f"{name}-{number:02}.png")


@pytest.fixture
def photos(tmp_path):
    """Of three colours; a copy; a broken file."""
    folder = tmp_path / "photos"
    write_images(folder / "a", {"blue": 20, "green": 12})
    write_images(folder / "b", {"red": 9})
    copied = (folder / "b" / "red-00.png").read_bytes()
    (folder / "copy.png").write_bytes(copied)
    (folder / "broken.jpg").write_bytes(b"nothing")
    return folder


def label(*words):
    return main(["label", *map(str, words)])


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def colour(row):
    return row["file"].rsplit("/", 1)[-1].split("-")[0]


@pytest.mark.slow
def test_a_table_filled_in_is_data_for_finetune(run, photos, tmp_path, capsys):
    kinds = ("csv", "jsonl", "parquet", "png", "html")
    outs = [tmp_path / f"first.{kind}" for kind in kinds]
    common = photos, "--from", run
    assert label(*common, "--suggest", 6, "--out", *outs) == 0
    text = capsys.readouterr().out
    assert "6 of 42 images to label" in text
    assert "1 images could not be read, e.g. broken.jpg" in text
    rows = rows_of(outs[0])
    assert rows == [json.loads(line) for line in outs[1].read_text().splitlines()]
    assert rows == pq.read_table(outs[2]).to_pylist()
    assert {row["label"] for row in rows} == {""}
    assert {colour(row) for row in rows} == set(COLOURS)
    assert all((tmp_path / row["file"]).is_file() for row in rows)
    with Image.open(outs[3]) as sheet:
        assert sheet.width > 6 * 100
    assert rows[0]["file"] in outs[4].read_text()

    with outs[0].open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        writer.writerows([row["file"], colour(row)] for row in rows[:-1])
        writer.writerow([rows[-1]["file"], ""])  # not filled in
    assert label(*common, "--suggest", 6, "--out", outs[0]) == 2
    assert "has labels that were filled in" in capsys.readouterr().err
    more = tmp_path / "more.csv"
    again = "--labelled", f"csv:{outs[0]}", "--out", more
    assert label(*common, "--suggest", 100, *again) == 0
    assert "36 of 42 images to label (typical); " in capsys.readouterr().out
    assert not {row["file"] for row in rows[:-1]} & {r["file"] for r in rows_of(more)}

    out = tmp_path / "cls"
    words = f"finetune csv:{outs[0]} --from {run} --out {out} --mode probe --steps 4"
    more = ["--batch-size", "4", "--validation", "0", "--hold-out", "0"]
    assert main([*words.split(), *more]) == 0
    used = json.loads((out / "labels.json").read_text())["train"]
    assert {name for names in used.values() for name in names} == {
        row["file"] for row in rows[:-1]
    }


def test_labels_in_the_table_are_taken_into_account(run, photos, tmp_path):
    table = photos / "some.csv"
    names = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*-*.png"))
    known = {name for name in names if "blue" in name or "green-0" in name}
    lines = [f"{n},{'x' if n in known else ''}" for n in names]
    table.write_text("\n".join(["image,label", *lines]))
    out = tmp_path / "next.csv"
    assert label(table, "--from", run, "--suggest", 2, "--out", out) == 0
    found = [row["file"] for row in rows_of(out)]
    assert found[0].startswith("photos/b/red-")
    assert not {name.removeprefix("photos/") for name in found} & known


def test_a_classifier_says_what_it_thinks(photos, tmp_path, capsys):
    folder = classifier_artefact.write(tmp_path / "classifier")
    out = tmp_path / "unsure.csv"
    how = "--rule", "margin", "--out", out
    assert label(photos, "--from", folder, "--suggest", 5, *how) == 0
    rows = rows_of(out)
    classifier = afterimage.load_classifier(folder)
    files = sorted(photos.rglob("*-*.png"))
    shares = classifier.predict_proba([np.asarray(Image.open(f)) for f in files])
    top = np.sort(shares, axis=1)
    margin = top[:, -1] - top[:, -2]
    order = np.argsort(margin)[:5]
    assert [tmp_path / row["file"] for row in rows] == [files[i] for i in order]
    found = [float(row["margin"]) for row in rows]
    np.testing.assert_allclose(found, margin[order], atol=1e-5)
    names = classifier.classes_[shares.argmax(1)]
    assert [row["prediction"] for row in rows] == names[order].tolist()
    assert label(photos, "--from", folder, "--suggest", 5) == 0
    assert "(typical)" in capsys.readouterr().out


def test_wrong_labels_of_a_folder_of_classes(run, tmp_path, capsys):
    for name in COLOURS:
        write_images(tmp_path / "data" / name, {name: 24})
    wrong = tmp_path / "data" / "red" / "blue-99.png"
    (tmp_path / "data" / "blue" / "blue-03.png").rename(wrong)
    outs = [tmp_path / f"wrong.{kind}" for kind in ("csv", "html")]
    common = tmp_path / "data", "--from", run, "--check", "--out"
    assert label(*common, *outs) == 0
    rows = rows_of(outs[0])
    assert [(r["file"], r["label"], r["suggested"]) for r in rows] == [
        ("data/red/blue-99.png", "red", "blue")
    ]
    assert float(rows[0]["score"]) > 0.5
    assert "1 of 72 labels look wrong" in capsys.readouterr().out
    assert "blue-99.png" in outs[1].read_text()
    wrong.unlink()
    kinds = [tmp_path / f"none.{kind}" for kind in ("csv", "parquet", "png")]
    assert label(*common, *kinds) == 0
    assert kinds[0].read_text().strip() == "file,label,suggested,score,neighbours"
    assert pq.read_table(kinds[1]).num_rows == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give either suggest"),
        (["--suggest", "3", "--check"], "give either suggest"),
        (["--suggest", "0"], "suggest=0: must be at least 1"),
        (["--suggest", "3", "--rule", "badge"], "needs a classifier"),
        (["--suggest", "3", "--rule", "typicl"], "typical"),
        (["--suggest", "3", "--task", "x"], "is an encoder"),
        (["--suggest", "3", "--out", "x.txt"], "must end in .csv"),
        (["--suggest", "3", "--labelled", "{}"], "has no labels"),
        (["--check"], "has no labels"),
        (["--check", "--labelled", "{}"], "only with suggest"),
    ],
)
def test_what_cannot_work_is_named(run, tmp_path, capsys, words, said):
    write_images(tmp_path / "flat", {"red": 2})
    words = [word.format(tmp_path / "flat") for word in words]
    assert label(tmp_path / "flat", "--from", run, *words) == 2
    assert said in capsys.readouterr().err
