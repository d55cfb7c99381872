"""A run from the command line on files: trained, resumed, used, and refused."""

import csv
import json
import re
import shlex
import shutil
import types

import numpy as np
import pytest
from afterimage_captions import AlignConfig, align, load_aligner
from afterimage_captions import data as caption_data
from PIL import Image

from afterimage.checkpoints.errors import CheckpointError, UsageError
from afterimage.checkpoints.trees import flatten
from afterimage.checkpoints.weights import read_encoder, read_folder
from afterimage.commands import load, main
from afterimage.commands.flags import parse
from afterimage.errors import UserError
from tests import encoder_artefact
from tests.helpers import ROOT, cut_back

pytestmark = pytest.mark.usefixtures("tiny_module")
STEPS = 60
BLUE = "a blue sky over {} land"
COLOURS = {"red": 0, "green": 1, "blue": 2}
LIGHT = {"dark": 20, "bright": 200}
NAMES = [f"a {colour} sky over {light} land" for light in LIGHT for colour in COLOURS]
UNSEEN = "a blue sky over bright land"


def vectors_of(texts):
    """A vector for each text, the sum of those of its words."""
    words = ["a", "sky", "over", "land", *COLOURS, *LIGHT]
    each = dict(zip(words, np.random.default_rng(0).normal(size=(len(words), 16))))
    return np.array([sum(each[word] for word in text.split()) for text in texts])


def kind(name):
    """The colour and the light in a name."""
    return name.split()[1], name.split()[4]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_module):
    """Views of six kinds, of which one is only in the test; vectors; an encoder."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    (folder / "images").mkdir()
    rows = []
    for name in NAMES:
        colour, light = kind(name)
        for n in range(12):
            view = rng.integers(0, 40, (16, 16, 3))
            view[:8, :, COLOURS[colour]] += 200
            view[8:] += LIGHT[light]
            file = f"images/{light}-{colour}-{n:02}.png"
            Image.fromarray(view.astype(np.uint8)).save(folder / file)
            split = "train" if n < 8 else "validation" if n < 10 else "test"
            rows.append((file, name, "test" if name == UNSEEN else split))
    write(folder / "pairs.csv", [("image", "text", "split"), *rows])
    labelled = [(image, text) for image, text, split in rows if split == "test"]
    write(folder / "test.csv", [("image", "class"), *labelled])
    np.savez(folder / "words.npz", text=NAMES, vector=vectors_of(NAMES))
    encoder_artefact.write(folder / "encoder")
    return folder


def write(file, rows):
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)


def settings(place, out, **more):
    given = {
        "pairs": str(place / "pairs.csv"),
        "from_": str(place / "encoder"),
        "text": str(place / "words.npz"),
        "out": str(out),
        "steps": STEPS,
        "batch_size": 16,
        "lr": 3e-3,
        "log_every": 20,
        "eval_every": 20,
        "tensorboard": False,
    }
    return AlignConfig(**given | more)


@pytest.fixture(scope="module")
def run(place):
    """A finished run, trained by the command."""
    words = f"{place}/pairs.csv --from {place}/encoder --out {place}/run --steps "
    words += f"{STEPS} --batch-size 16 --lr 3e-3 --log-every 20 --eval-every 20 "
    words += f"--no-tensorboard --text {place}/words.npz"
    assert main(["align", *words.split()]) == 0
    return place / "run"


def weights(run):
    params, stats, _ = read_folder(run / "aligner", "aligner")
    return flatten({"params": params, "stats": stats})


def views(place, names):
    files = [f"images/{light}-{colour}-11.png" for colour, light in map(kind, names)]
    return np.stack([np.asarray(Image.open(place / file)) for file in files])


def test_it_learns_and_writes_everything(run):
    results = json.loads((run / "results.json").read_text())
    test = results["test"]
    assert (test["images"], test["texts"]) == (22, 6)
    assert test["image_to_text"]["recall@1"] > 0.8
    assert test["text_to_image"]["recall@1"] > 0.8
    assert test["chance"]["image_to_text"]["recall@1"] == pytest.approx(1 / 6)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    best = max(row["eval/mrr"] for row in rows if "eval/mrr" in row)
    assert results["validation"]["mrr"] == pytest.approx(best, abs=1e-6)
    losses = [row["train/contrastive"] for row in rows if "train/contrastive" in row]
    assert losses[-1] < losses[0] - 0.2
    page = (run / "report.html").read_text()
    assert page.count("data:image/png") >= 12
    assert NAMES[0] in page


def test_images_and_words_in_python(run, place):
    aligner = load_aligner(run)
    assert UNSEEN not in aligner.seen
    assert len(aligner.seen) == 5
    images = views(place, NAMES)
    p = aligner.classify(images, ["bright", "dark"], prompt=BLUE)
    np.testing.assert_allclose(p.sum(1), 1)
    assert p[NAMES.index(UNSEEN), 0] > 0.9  # no image of it was in the training
    vectors = aligner.embed_images(list(images))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    texts = aligner.embed_texts(NAMES)
    rows, cosines = aligner.search(texts, vectors, top=2)
    assert (rows[:, 0] == np.arange(6)).mean() > 0.8
    assert (cosines[:, 0] >= cosines[:, 1]).all()
    with pytest.raises(UserError, match="no vector for 1 of 1 texts"):
        aligner.embed_texts(["a sky of another colour"])


def test_zero_shot_scores_classes_seen_and_unseen(run, place, tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("\n".join(NAMES) + "\n")
    words = [f"{place}/test.csv", "--classes", str(tmp_path / "classes.txt")]
    words += ["--from", str(run), "--out", str(tmp_path / "found.csv")]
    assert main(["zero-shot", *words]) == 0
    said = capsys.readouterr().out
    assert "22 predictions" in said
    found = re.search(r"seen ([\d.]+) %, unseen ([\d.]+) %, harmonic ([\d.]+) %", said)
    seen, unseen, both = map(float, found.groups())
    assert min(seen, unseen) > 60
    assert both == pytest.approx(2 * seen * unseen / (seen + unseen), abs=0.1)
    with (tmp_path / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    new = [row for row in rows if row["label"] == UNSEEN]
    assert len(new) == 12
    right = np.mean([row["class"] == row["label"] for row in new])
    assert 100 * right == pytest.approx(unseen, abs=0.1)
    assert all(float(row["probability"]) >= float(row["probability_2"]) for row in rows)


def test_a_resumed_run_is_the_same_bit_for_bit(run, place, tmp_path):
    copy = cut_back(run, tmp_path / "copy", 40)
    shutil.rmtree(copy / "aligner")
    align(settings(place, copy))
    before, after = weights(run), weights(copy)
    assert before.keys() == after.keys()
    assert all((before[path] == after[path]).all() for path in before)
    one, two = (json.loads((r / "results.json").read_text()) for r in (run, copy))
    assert one["test"] == two["test"]


def test_a_complete_run_is_left_alone_and_other_data_refused(run, place, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert align(settings(place, copy)).complete
    other = tmp_path / "words.npz"
    np.savez(other, text=NAMES, vector=vectors_of(NAMES)[::-1])
    with pytest.raises(UserError, match="text"):
        align(settings(place, copy, text=str(other)))
    assert main(["checkpoints", "verify", str(run)]) == 0


@pytest.mark.slow
def test_a_frozen_encoder_stays_and_others_move(place, tmp_path):
    before = flatten(read_encoder(place / "encoder")[0])
    for mode in ("frozen", "full"):
        align(settings(place, tmp_path / mode, mode=mode, steps=2, eval_every=2))
        after = flatten(read_encoder(tmp_path / mode / "encoder")[0])
        same = [(leaf == after[path]).all() for path, leaf in before.items()]
        assert all(same) == (mode == "frozen")


def changed(place, file, rows):
    write(place / file, rows)
    return str(place / file)


def test_tables_and_vectors_that_do_not_fit(place, tmp_path):
    with (place / "pairs.csv").open() as file:
        head, *rows = csv.reader(file)

    def refused(match, **more):
        with pytest.raises(UserError, match=match):
            align(settings(place, tmp_path / "run", **more))
        assert not (tmp_path / "run").exists()

    refused("column 'caption'", text_column="caption")
    refused("not an existing path", pairs=str(place / "none.csv"))
    refused("give a table", pairs=str(place / "images"))
    refused("No such file", text=str(place / "none.npz"))
    blank = [[r[0], "" if n == 3 else r[1], r[2]] for n, r in enumerate(rows)]
    refused("without a text", pairs=changed(place, "blank.csv", [head, *blank]))
    one = [[r[0], NAMES[0], r[2]] for r in rows]
    refused("one text", pairs=changed(place, "one.csv", [head, *one]))
    few = [r[:2] for r in rows[::12]][:3]
    refused("too few", pairs=changed(place, "few.csv", [head[:2], *few]))
    vectors = vectors_of(NAMES)
    wrong = {
        "no vector for 1 of 6": (NAMES[1:], vectors[1:]),
        "6 texts and vectors": (NAMES, vectors[1:]),
        "zero or not finite": (NAMES, vectors * [[np.nan]]),
    }
    for match, (texts, values) in wrong.items():
        np.savez(tmp_path / "wrong.npz", text=texts, vector=values)
        refused(match, text=str(tmp_path / "wrong.npz"))
    (tmp_path / "wrong.npz").write_bytes(b"PK\x03\x04 no")
    refused("cannot be read", text=str(tmp_path / "wrong.npz"))
    with pytest.raises(UserError, match="at least 2 pairs"):
        settings(place, tmp_path / "run", batch_size=4, accumulate=4)


def test_damaged_and_other_artefacts(run, place, tmp_path):
    with pytest.raises(UsageError, match="no aligner"):
        load_aligner(place)
    with pytest.raises(CheckpointError, match="encoder"):
        load_aligner(run / "encoder")
    shutil.copytree(run / "aligner", tmp_path / "aligner")
    file = tmp_path / "aligner" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="weights"):
        load_aligner(tmp_path / "aligner")


def test_a_file_of_vectors_may_be_parquet(run, place, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = vectors_of(["a red sky"]).tolist()
    table = pa.table({"text": ["a red sky"], "vector": values})
    pq.write_table(table, tmp_path / "more.parquet")
    aligner = load_aligner(run)
    found = aligner.embed_texts(["a red sky"], text=str(tmp_path / "more.parquet"))
    assert np.linalg.norm(found) == pytest.approx(1)
    np.savez(tmp_path / "narrow.npz", text=["a red sky"], vector=np.ones((1, 3)))
    with pytest.raises(UserError, match="vectors of 3 numbers"):
        aligner.embed_texts(["a red sky"], text=str(tmp_path / "narrow.npz"))


def test_a_text_encoder_must_be_that_of_the_training(place, tmp_path, monkeypatch):
    def become(function):
        encoder = types.SimpleNamespace(features=function)
        monkeypatch.setattr(caption_data, "_encoder", lambda _: encoder)

    become(vectors_of)
    out = tmp_path / "run"
    align(settings(place, out, text="bert", mode="frozen", steps=2, eval_every=2))
    aligner = load_aligner(out)
    found = aligner.embed_texts(["a red sky"])
    wanted = vectors_of(["a red sky"])
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted), rtol=1e-5)
    become(lambda texts: vectors_of(texts)[:, ::-1])
    with pytest.raises(UserError, match="other vectors"):
        aligner.embed_texts(["a red sky"])


@pytest.mark.parametrize("given", [("red",), ("red", "red"), ("none.txt",)])
def test_classes_that_cannot_be_told_apart(run, place, tmp_path, given):
    words = [f"{place}/test.csv", "--from", str(run), "--classes", *given]
    assert main(["zero-shot", *words, "--out", str(tmp_path / "found.csv")]) == 2


PAGES = [ROOT / "docs/guide/captions.md", ROOT / "modalities/captions/README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist(page):
    found = re.findall(
        r"^afterimage (align|zero-shot) (.+)$", page.read_text(), re.MULTILINE
    )
    assert {name for name, _ in found} == {"align", "zero-shot"}
    for name, words in found:
        parse(load(name).COMMAND, shlex.split(words))


@pytest.mark.parametrize("name", ["align", "zero-shot"])
def test_the_help_fits_two_screens(name, capsys):
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 88
