"""A run from the command line on files: trained, resumed, used, and refused."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
import scenes
from afterimage_segmentation import SegmentConfig, load_segmenter, segment
from afterimage_segmentation.data import decode_mask
from PIL import Image

from afterimage.checkpoints.errors import CheckpointError, UsageError
from afterimage.checkpoints.trees import flatten
from afterimage.checkpoints.weights import read_encoder, read_folder
from afterimage.commands import load, main
from afterimage.commands.flags import parse
from afterimage.encoder import load_encoder
from afterimage.errors import UserError
from tests import encoder_artefact
from tests.helpers import ROOT, cut_back

STEPS = 60


pytestmark = pytest.mark.usefixtures("tiny_module")


def pixels(path):
    """The values in a file, and its size."""
    with Image.open(path) as image:
        return np.asarray(image), image.size


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_module):
    """Scenes, and an encoder of random numbers."""
    folder = tmp_path_factory.mktemp("segment")
    scenes.write(folder, 30)
    encoder_artefact.write(folder / "encoder")
    return folder


def settings(place, out, **more):
    given = {
        "images": str(place / "images"),
        "masks": str(place / "masks"),
        "from_": str(place / "encoder"),
        "out": str(out),
        "classes": scenes.NAMES,
        "steps": STEPS,
        "batch_size": 8,
        "lr": 5e-3,
        "log_every": 20,
        "eval_every": 20,
        "tensorboard": False,
    }
    return SegmentConfig(**given | more)


@pytest.fixture(scope="module")
def run(place):
    """A finished run, trained by the command."""
    words = f"--masks {place}/masks --from {place}/encoder --out {place}/run --steps "
    words += f"{STEPS} --batch-size 8 --lr 5e-3 --log-every 20 --eval-every 20 "
    words += f"--no-tensorboard --classes {' '.join(scenes.NAMES)}"
    assert main(["segment", str(place / "images"), *words.split()]) == 0
    return place / "run"


def weights(run, kind="segmenter"):
    params, stats, _ = read_folder(run / kind, kind)
    return flatten({"params": params, "stats": stats})


def test_it_learns_and_writes_everything(run):
    results = json.loads((run / "results.json").read_text())
    assert results["test"]["images"] == 6
    assert results["test"]["miou"] > 0.8
    assert set(results["test"]["iou"]) == set(scenes.NAMES)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    best = max(row["eval/miou"] for row in rows if "eval/miou" in row)
    assert results["validation"]["miou"] == pytest.approx(best, abs=1e-6)
    assert any("train/cross_entropy" in row and "train/dice" in row for row in rows)
    page = (run / "report.html").read_text()
    assert page.count("data:image/png") >= 3 * 6
    assert load_encoder(run).feature_info[0].stride == 2


def test_the_scores_are_those_of_its_predictions(run, place):
    segmenter = load_segmenter(run)
    images, masks = (
        np.stack([pixels(file)[0] for file in sorted((place / part).iterdir())])
        for part in ("images", "masks")
    )
    predicted = segmenter.predict(images)
    assert predicted.shape == masks.shape
    assert (predicted == masks).mean() > 0.95
    p = segmenter.predict_proba(images[:3])
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
    assert (p.argmax(-1) == predicted[:3]).all()
    again = segmenter.predict(list(images[:5]), batch_size=2)
    assert all((one == other).all() for one, other in zip(again, predicted))


def test_images_of_other_sizes_keep_theirs(run):
    segmenter = load_segmenter(run)
    image, mask = scenes.scene(np.random.default_rng(5))
    large = np.kron(image, np.ones((3, 3, 1), np.uint8))
    wide = np.concatenate([large, large[:, ::-1]], 1)
    one, two = segmenter.predict([large, wide])
    assert one.shape == (48, 48)
    assert two.shape == (48, 96)
    assert (one == np.kron(mask, np.ones((3, 3), int))).mean() > 0.9


def test_predictions_are_files(run, place, tmp_path):
    shutil.copytree(place / "images", tmp_path / "in" / "deep")
    scenes.save(tmp_path / "in" / "odd.jpg", np.zeros((41, 70, 3), np.uint8))
    words = [str(tmp_path / "in"), "--from", str(run), "--out", str(tmp_path / "out")]
    assert main(["segment-predict", *words]) == 0
    for part in ("masks", "overlays"):
        assert pixels(tmp_path / "out" / part / "odd.png")[1] == (70, 41)
    # What it writes can be read as masks.
    written = (tmp_path / "out/masks/deep/03.png").read_bytes()
    found, coloured, palette = decode_mask(written)
    assert (found == pixels(place / "masks" / "03.png")[0]).mean() > 0.9
    assert not coloured
    assert palette[0] == (0, 0, 0)
    assert palette[1] != palette[2]
    (tmp_path / "in/odd.jpg").write_bytes(b"broken")
    assert main(["segment-predict", *words]) == 2
    assert main(["segment-predict", *words, "--on-bad-image", "skip"]) == 0


def test_a_resumed_run_is_the_same_bit_for_bit(run, place, tmp_path):
    copy = cut_back(run, tmp_path / "copy", 40)
    shutil.rmtree(copy / "segmenter")
    (copy / "report.html").unlink()
    segment(settings(place, copy))
    before, after = weights(run), weights(copy)
    assert before.keys() == after.keys()
    assert all((before[path] == after[path]).all() for path in before)
    one, two = (json.loads((r / "results.json").read_text()) for r in (run, copy))
    assert one["test"] == two["test"]


def test_a_complete_run_is_left_alone_and_repaired(run, place, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert segment(settings(place, copy)).complete
    (copy / "results.json").write_text("{")
    assert not segment(settings(place, copy)).complete
    assert json.loads((copy / "results.json").read_text())["test"]["images"] == 6


def test_other_commands_read_its_run(run, capsys):
    assert main(["compare", str(run), str(run)]) == 0
    assert "miou" in capsys.readouterr().out
    assert main(["checkpoints", "verify", str(run)]) == 0


@pytest.mark.parametrize(
    "mode",
    ["frozen", *(pytest.param(m, marks=pytest.mark.slow) for m in ("full", "scratch"))],
)
def test_what_learns_in_each_mode(place, tmp_path, mode):
    out = tmp_path / "run"
    segment(settings(place, out, mode=mode, steps=2, eval_every=2, validation=0.0))
    before, _, _ = read_encoder(place / "encoder")
    after, _, _ = read_encoder(out / "encoder")
    same = [
        (leaf == flatten(after)[path]).all() for path, leaf in flatten(before).items()
    ]
    moved = max(
        np.abs(leaf - flatten(after)[path]).max()
        for path, leaf in flatten(before).items()
    )
    assert all(same) == (mode == "frozen")
    # Adam's step is the learning rate, here 5e-3, of an encoder a tenth of it.
    assert (moved < 2.5e-3) == (mode != "scratch")


@pytest.mark.slow
def test_batch_norm_of_a_frozen_encoder_stays(place, tmp_path):
    encoder_artefact.write(tmp_path / "encoder", norm="batch", bottleneck=4)
    source = str(tmp_path / "encoder")
    for mode in ("frozen", "full"):
        out = tmp_path / mode
        segment(settings(place, out, from_=source, mode=mode, steps=2, eval_every=2))
        _, before, _ = read_encoder(source)
        _, after, _ = read_encoder(out / "encoder")
        same = [
            (leaf == flatten(after)[path]).all()
            for path, leaf in flatten(before).items()
        ]
        assert all(same) == (mode == "frozen")


def damaged(folder):
    file = folder / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def test_damaged_and_missing_artefacts(run, place, tmp_path):
    shutil.copytree(place / "encoder", tmp_path / "encoder")
    damaged(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="weights"):
        segment(settings(place, tmp_path / "a", from_=str(tmp_path / "encoder")))
    with pytest.raises(UserError, match="does not exist"):
        segment(settings(place, tmp_path / "a", from_=str(tmp_path / "none")))
    assert not (tmp_path / "a").exists()
    shutil.copytree(run / "segmenter", tmp_path / "segmenter")
    assert load_segmenter(tmp_path / "segmenter").class_names == scenes.NAMES
    damaged(tmp_path / "segmenter")
    with pytest.raises(CheckpointError, match="weights"):
        load_segmenter(tmp_path / "segmenter")
    with pytest.raises(UsageError, match="no segmenter"):
        load_segmenter(place)
    with pytest.raises(CheckpointError, match="encoder"):
        load_segmenter(place / "encoder")


PAGES = [
    ROOT / "docs/guide/segmentation.md",
    ROOT / "modalities/segmentation/README.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist(page):
    found = re.findall(
        r"^afterimage (segment\S*) (.+)$", page.read_text(), re.MULTILINE
    )
    assert {name for name, _ in found} == {"segment", "segment-predict"}
    for name, words in found:
        parse(load(name).COMMAND, shlex.split(words))


@pytest.mark.parametrize("name", ["segment", "segment-predict"])
def test_the_help_fits(name, capsys):
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 88
    assert sum(line.startswith("  --") for line in lines) <= 40
