"""A run from the command line on files: trained, resumed, used, and refused."""

import json
import re
import shlex
import shutil

import detection_scenes as scenes
import numpy as np
import pytest
from afterimage_detection import DetectConfig, detect, load_detector
from afterimage_detection.data import Letterbox, open_boxes
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

pytestmark = pytest.mark.usefixtures("tiny_module")
KIND = "object-detector"
STEPS = 90
SQUARE = Letterbox((16, 16, 3), (16, 16), None, (1, 2, 3))


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_module):
    """Scenes, and an encoder of random numbers."""
    folder = tmp_path_factory.mktemp("detect")
    scenes.write(folder, 40)
    encoder_artefact.write(folder / "encoder")
    return folder


def settings(place, out, **more):
    given = {
        "data": f"{place}/images",
        "boxes": str(place / "boxes.json"),
        "from_": str(place / "encoder"),
        "out": str(out),
        "steps": STEPS,
        "batch_size": 8,
        "lr": 5e-3,
        "log_every": 30,
        "eval_every": 30,
        "tensorboard": False,
    }
    return DetectConfig(**given | more)


@pytest.fixture(scope="module")
def run(place):
    """A finished run, trained by the command."""
    words = f"--data {place}/images --boxes {place}/boxes.json --from {place}/encoder "
    words += f"--out {place}/run --steps {STEPS} --batch-size 8 --lr 5e-3 "
    words += "--log-every 30 --eval-every 30 --no-tensorboard"
    assert main(["detect", *words.split()]) == 0
    return place / "run"


def weights(run, kind=KIND):
    params, stats, _ = read_folder(run / kind, kind)
    return flatten({"params": params, "stats": stats})


def test_it_learns_and_writes_everything(run):
    results = json.loads((run / "results.json").read_text())
    assert results["test"]["images"] == 8
    assert results["test"]["map50"] > 0.7
    assert set(results["test"]["ap"]) == set(scenes.NAMES)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    best = max(row["eval/map"] for row in rows if "eval/map" in row)
    assert results["validation"]["map"] == pytest.approx(best, abs=1e-6)
    page = (run / "report.html").read_text()
    assert page.count("data:image/png") >= 2 * 8
    assert load_encoder(run).feature_info[0].stride == 2


def test_boxes_are_in_the_pixels_of_the_image(run):
    detector = load_detector(run)
    image, truth = scenes.scene(np.random.default_rng(5), (11, 16))
    large = np.kron(image, np.ones((5, 5, 1), np.uint8))  # 55 x 80, of a square of 16
    square = scenes.scene(np.random.default_rng(6))[0]
    for one in detector.predict([large, square, large], score=0.0)[::2]:
        for box in truth:
            mine = one.boxes[one.classes == box[4]][0]  # the highest score comes first
            assert np.abs(mine - 5 * box[:4]).max() < 5 * 2.5
        assert (one.scores[:-1] >= one.scores[1:]).all()
        assert (one.boxes[:, :2] >= 0).all()
        assert (one.boxes[:, :2] + one.boxes[:, 2:] <= [80.01, 55.01]).all()
    assert detector.class_names == scenes.NAMES
    few = detector.predict(large)[0]
    assert len(few.scores) < len(one.scores)
    assert (few.scores >= 0.3).all()
    (same,) = detector.predict(large.astype(np.float32) / 255)
    np.testing.assert_allclose(same.boxes, few.boxes, atol=1e-3)


def test_predictions_are_a_coco_file(run, place, tmp_path):
    shutil.copytree(place / "images", tmp_path / "in" / "deep")
    Image.fromarray(np.zeros((41, 70), np.uint8)).save(tmp_path / "in" / "odd.jpg")
    words = [str(tmp_path / "in"), "--from", str(run), "--out", str(tmp_path / "out")]
    assert main(["detect-predict", *words]) == 0
    found = json.loads((tmp_path / "out/boxes.json").read_text())
    truth = json.loads((place / "boxes.json").read_text())
    assert found["categories"] == truth["categories"]
    assert {i["file_name"]: i["width"] for i in found["images"]}["odd.jpg"] == 70
    assert len(found["annotations"]) > 60
    with Image.open(tmp_path / "out/pictures/odd.jpg.png") as picture:
        assert picture.size == (70, 41)
    # What it writes can be read as boxes to learn from.
    again = {"data": str(tmp_path / "in"), "boxes": str(tmp_path / "out/boxes.json")}
    data = open_boxes(settings(place, "unused", **again), SQUARE)
    assert data.numbers == (10, 11)
    assert len(data.sets["test"]) == 8
    (tmp_path / "in/odd.jpg").write_bytes(b"broken")
    assert main(["detect-predict", *words]) == 2


def test_a_resumed_run_is_the_same_bit_for_bit(run, place, tmp_path):
    copy = cut_back(run, tmp_path / "copy", 60)
    shutil.rmtree(copy / KIND)
    (copy / "report.html").unlink()
    detect(settings(place, copy))
    before, after = weights(run), weights(copy)
    assert before.keys() == after.keys()
    assert all((before[path] == after[path]).all() for path in before)
    one, two = (json.loads((r / "results.json").read_text()) for r in (run, copy))
    assert one["test"] == two["test"]
    assert detect(settings(place, copy)).complete
    with pytest.raises(UserError, match="seed"):
        detect(settings(place, copy, seed=1))


def test_other_commands_read_its_run(run, capsys):
    assert main(["compare", str(run), str(run)]) == 0
    assert "map50" in capsys.readouterr().out
    assert main(["checkpoints", "verify", str(run)]) == 0


@pytest.mark.parametrize(
    "mode",
    ["frozen", *(pytest.param(m, marks=pytest.mark.slow) for m in ("full", "scratch"))],
)
def test_what_learns_in_each_mode(place, tmp_path, mode):
    encoder_artefact.write(tmp_path / "encoder", norm="batch", bottleneck=4)
    source, out = str(tmp_path / "encoder"), tmp_path / "run"
    more = {"steps": 2, "eval_every": 2, "validation": 0.0, "from_": source}
    labels = {"boxes": str(place / "labels")}
    result = detect(settings(place, out, mode=mode, **more, **labels))
    assert result.results["validation"] is None
    before, old, _ = read_encoder(source)
    after, new, _ = read_encoder(out / "encoder")
    after, old, new = flatten(after), flatten(old), flatten(new)
    before = {k: v for k, v in flatten(before).items() if k in after}
    moved = max(np.abs(leaf - after[path]).max() for path, leaf in before.items())
    assert (moved == 0) == (mode == "frozen")
    assert all((old[k] == new[k]).all() for k in new) == (mode == "frozen")
    # Adam's step is the learning rate, here 5e-3, of an encoder a tenth of it.
    assert (moved < 2.5e-3) == (mode != "scratch")


def damaged(folder):
    file = folder / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def test_damaged_missing_and_other_artefacts(run, place, tmp_path):
    shutil.copytree(place / "encoder", tmp_path / "encoder")
    damaged(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="weights"):
        detect(settings(place, tmp_path / "a", from_=str(tmp_path / "encoder")))
    with pytest.raises(UserError, match="does not exist"):
        detect(settings(place, tmp_path / "a", from_=str(tmp_path / "none")))
    with pytest.raises(UserError, match=r"multiple of 4, .* e\.g\. 20"):
        detect(settings(place, tmp_path / "a", image_size=18))
    with pytest.raises(UserError, match="rotate:5"):
        detect(settings(place, tmp_path / "a", augment="flip,rotate:5"))
    assert not (tmp_path / "a").exists()
    shutil.copytree(run / KIND, tmp_path / KIND)
    assert load_detector(tmp_path / KIND).class_names == scenes.NAMES
    damaged(tmp_path / KIND)
    with pytest.raises(CheckpointError, match="weights"):
        load_detector(tmp_path / KIND)
    with pytest.raises(UsageError, match="no object-detector"):
        load_detector(place)
    with pytest.raises(CheckpointError, match="encoder"):
        load_detector(place / "encoder")


PAGES = [ROOT / "docs/guide/detection.md", ROOT / "modalities/detection/README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("images", "new"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "a.png")
    found = re.findall(r"^afterimage (detect\S*) (.+)$", page.read_text(), re.MULTILINE)
    assert {name for name, _ in found} == {"detect", "detect-predict"}
    for name, words in found:
        parse(load(name).COMMAND, shlex.split(words))


@pytest.mark.parametrize("name", ["detect", "detect-predict"])
def test_the_help_fits(name, capsys):
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 88
    assert sum(line.startswith("  --") for line in lines) <= 40
