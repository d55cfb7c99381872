"""`afterimage anomalies`: what is unlike the normal images, where, and how often."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from afterimage import AnomalyDetector
from afterimage import rows as rows_module
from afterimage.anomalies.detector import threshold_of
from afterimage.anomalies.scorers.patches import coreset
from afterimage.checkpoints import inspect
from afterimage.checkpoints.errors import CheckpointError
from afterimage.commands import main
from afterimage.data import Preprocessing
from afterimage.errors import DataError, UserError
from afterimage.evaluation.classification import auroc
from afterimage.models import ModelConfig, Network
from afterimage.plugins import OBJECTIVES
from afterimage.pretrain import PretrainConfig, pretrain
from benchmarks.anomalies import KINDS, damage
from tests import encoder_artefact

SCORERS = ("patches", "features", "reconstruction")
SIDE = 16


def stripes(count, seed):
    """Waves at a random place, slightly noisy: what is normal here."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    wave = np.sin(np.arange(SIDE)[None, None] * 2 * np.pi / 8 + phase)
    noise = rng.normal(size=(count, SIDE, SIDE))
    return np.clip(127 + 60 * wave + 8 * noise, 0, 255).astype(np.uint8)[..., None]


def damaged(images, seed=0):
    """Copies with a black and white square of 5 x 5 pixels, and its corners."""
    images, corners = images.copy(), []
    for image in images:
        y, x = np.random.default_rng(seed + len(corners)).integers(2, SIDE - 7, 2)
        image[y : y + 5, x : x + 5] = 255 * (np.indices((5, 5, 1)).sum(0) % 2)
        corners.append((y, x))
    return images, np.array(corners)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("anomalies") / "run"
    settings = {"width": 0.25, "bottleneck": 16, "steps": 150, "batch_size": 32}
    quiet = {"pictures": 0, "probe_images": 0, "eval_every": 150, "save_every": 150}
    config = PretrainConfig(out=str(out), lr=4e-3, **settings, **quiet)
    pretrain(config, data=stripes(400, 1))
    return out


@pytest.fixture(scope="module")
def detectors(run):
    """Each scorer, fitted to 300 images and with a threshold from 100 more."""
    how = {"false_alarms": 0.1, "held_out": 0.25, "seed": 3}
    return {
        by: AnomalyDetector.fit(run, stripes(400, 2), by=by, **how) for by in SCORERS
    }


@pytest.mark.parametrize("by", SCORERS)
def test_a_planted_defect(detectors, by):
    """Its image scores higher, and the heat is highest where it is."""
    good, (bad, corners) = stripes(100, 4), damaged(stripes(100, 5))
    scores = detectors[by].score(np.concatenate([good, bad]))
    assert auroc(scores, np.arange(200) >= 100) > 0.95
    maps = detectors[by].maps(bad)
    assert maps.shape == (100, SIDE, SIDE)
    assert maps.min() >= 0
    highest = maps.reshape(100, -1).argmax(1)
    peaks = np.stack([highest // SIDE, highest % SIDE], 1)
    away = np.abs(peaks - (corners + 2)).max(1)
    assert (away <= 4).mean() > 0.9  # half of the square, and half of a place


@pytest.mark.parametrize("by", SCORERS)
def test_the_false_alarm_rate_holds_on_new_images(detectors, by):
    detector = detectors[by]
    assert (detector.fitted, detector.held_out) == (300, 100)
    rate = detector.anomalous(stripes(500, 6)).mean()
    # The threshold itself comes from 100 images.
    error = np.sqrt(0.1 * 0.9 * (1 / 500 + 1 / 100))
    assert abs(rate - 0.1) < 3.5 * error


def test_a_threshold_counts_itself_among_the_scores():
    """With 99 scores, one of a hundred new ones is above the highest."""
    scores = np.random.default_rng(0).permutation(99).astype(float)
    assert threshold_of(scores, 0.01) == 98
    assert threshold_of(scores, 0.05) == 94
    assert threshold_of(scores[:5], 0.01) == scores[:5].max()
    trials = np.random.default_rng(1).normal(size=(4000, 20))
    above = [one[-1] > threshold_of(one[:-1], 0.1) for one in trials]
    assert abs(np.mean(above) - 0.1) < 4 * np.sqrt(0.09 / 4000)


def test_a_coreset_covers_every_cluster():
    rng = np.random.default_rng(0)
    centres = 100 * rng.normal(size=(12, 50))
    sizes = np.array([200] * 2 + [1] * 10)
    points = np.repeat(centres, sizes, 0) + rng.normal(size=(sizes.sum(), 50))
    kept = coreset(points.astype(np.float32), 12, rng)
    assert sorted(np.repeat(np.arange(12), sizes)[kept]) == list(range(12))
    assert coreset(points, 1000, rng).tolist() == list(range(sizes.sum()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_defects_of_the_benchmark_are_where_their_masks_are(kind):
    rng = np.random.default_rng(0)
    images = encoder_artefact.pictures(20, (32, 32))
    for image in images:
        changed, mask = damage(image, kind, images, rng)
        where = (changed != image).any(-1)
        assert not (where & ~mask).any()
        assert where[mask].mean() > 0.9
        assert 0.005 < mask.mean() < 0.2


@pytest.mark.parametrize("by", SCORERS)
def test_a_loaded_detector_gives_equal_scores(run, detectors, by, tmp_path):
    some = stripes(40, 7)
    detectors[by].save(tmp_path / by)
    loaded = AnomalyDetector.load(run, folder=tmp_path / by)
    assert loaded.scorer == detectors[by].scorer
    assert loaded.threshold == detectors[by].threshold
    rarer = loaded.with_false_alarms(0.02)
    assert rarer.threshold > loaded.threshold
    assert rarer.held_out == 100
    np.testing.assert_array_equal(loaded.score(some), detectors[by].score(some))
    # Batches, sizes and the other images of a batch change nothing.
    one = loaded.score(some[7:8], batch_size=1)
    np.testing.assert_allclose(one, loaded.score(some)[7:8], rtol=1e-4)


@pytest.mark.parametrize("name", ["masked", "variational"])
def test_the_errors_of_an_image_do_not_depend_on_others(name):
    objective = OBJECTIVES.get(name)()
    model = ModelConfig(
        image_size=(SIDE, SIDE),
        channels=1,
        width=0.25,
        decoder=objective.default_decoder,
    )
    module = nnx.eval_shape(lambda: objective.build(model, nnx.Rngs(0)))
    _, params, stats = Network.create(module)
    rng = np.random.default_rng(0)
    params, stats = (encoder_artefact.filled(tree, rng) for tree in (params, stats))
    preprocessing = Preprocessing((SIDE, SIDE), (0.5,), (0.25,), 1)
    errors = jax.jit(objective.pixel_errors(model, preprocessing))
    pixels = stripes(4, 8) / np.float32(255)
    whole = np.asarray(errors(params, stats, pixels))
    assert whole.shape == (4, SIDE, SIDE)
    assert (whole >= 0).all()
    assert whole.std() > 0
    turned = np.asarray(errors(params, stats, pixels[::-1]))
    np.testing.assert_allclose(turned[::-1], whole, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Photos: normal ones; new ones, of which some are damaged and one is broken."""
    home = tmp_path_factory.mktemp("photos")
    bad, _ = damaged(stripes(6, 11))
    folders = {
        "good": stripes(60, 9),
        "new/good": stripes(10, 10),
        "new/scratched": bad,
    }
    for folder, images in folders.items():
        (home / folder).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(home / folder / f"{number:02}.png")
    (home / "new" / "good" / "99.png").write_bytes(b"no picture")
    return home


def anomalies(run, home, out, *more):
    where = ["--from", str(run), "--out", str(out), "--batch-size", "4"]
    return main(["anomalies", str(home / "new"), *where, *map(str, more)])


def read(out):
    with open(out, newline="") as file:
        return list(csv.DictReader(file))


def test_the_command(run, home, tmp_path, capsys, monkeypatch):
    """Fitted once; the next command knows what is normal, and a stopped one goes on."""
    out, kept = tmp_path / "scores.csv", ("--detector", tmp_path / "detector")
    drawn = ("--maps", tmp_path / "maps", "--sheet", tmp_path / "sheet.html")
    normal = ("--normal", home / "good", "--false-alarms", "0.1")
    assert anomalies(run, home, out, *kept, *drawn, *normal) == 0
    rows, said = read(out), capsys.readouterr().out
    assert [row["file"] for row in rows] == [
        *(f"good/{n:02}.png" for n in range(10)),
        *(f"scratched/{n:02}.png" for n in range(6)),
    ]
    flagged = [row for row in rows if row["anomalous"] == "true"]
    assert {f"scratched/{n:02}.png" for n in range(6)} <= {r["file"] for r in flagged}
    for row in rows:
        above = float(row["score"]) > float(row["threshold"])
        assert (row["anomalous"] == "true") == above == bool(row["map"])
    maps = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert maps == sorted(row["map"] for row in flagged)
    with Image.open(tmp_path / "maps" / maps[0]) as picture:
        assert picture.size == (33 * 16, 16 * 16)
    assert "data:image/png;base64" in (tmp_path / "sheet.html").read_text()
    assert "16 scores" in said
    assert "AUROC 1.0000" in said
    assert "1 broken images were skipped" in said

    def stops(images, numbers):
        if numbers[0] >= 12:
            raise KeyboardInterrupt
        return real(images, numbers)

    real, again = rows_module.read_or_reason, tmp_path / "again.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(rows_module, "read_or_reason", stops)
        assert anomalies(run, home, again, *kept) == 75
    assert anomalies(run, home, again, *kept) == 0
    assert "continuing after" in capsys.readouterr().err
    found = [json.loads(line) for line in again.read_text().splitlines()]
    assert [str(row["score"]) for row in found] == [row["score"] for row in rows]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "holds no detector: fit one first"),
        (["--normal", "{}/good", "--false-alarms", "1"], "false_alarms=1.0: must be"),
        (["--normal", "{}/good", "--most", "3"], "most=3: must be at least 4"),
        (["--normal", "{}/new/good/99.png"], "0 usable images"),
        (["--by", "magic"], "'magic' is unknown"),
        (["--sheet", "sheet.gif"], "must end in .png, .html, not .gif"),
        (["--by", "patches", "--patches.top", "2"], "top=2.0: must be a share"),
    ],
)
def test_what_cannot_work_is_named(run, home, tmp_path, capsys, more, said):
    more = [one.format(home) for one in more]
    assert anomalies(run, home, tmp_path / "out.csv", *more) == 2
    assert said in capsys.readouterr().err


def test_an_encoder_without_its_decoder(tmp_path):
    encoder_artefact.write(tmp_path / "encoder", image_size=(SIDE, SIDE))
    with pytest.raises(UserError, match="reconstructs pixels"):
        AnomalyDetector.fit(tmp_path, np.zeros((8, 16, 16, 3), np.uint8), by=SCORERS[2])
    with pytest.raises(DataError, match="2 usable images"):
        AnomalyDetector.fit(tmp_path, np.zeros((2, 16, 16, 3), np.uint8))


def test_a_detector_that_does_not_fit(run, detectors, tmp_path):
    place = detectors["features"].save(tmp_path / "detector")
    encoder_artefact.write(tmp_path / "encoder", image_size=(SIDE, SIDE))
    with pytest.raises(CheckpointError, match="another encoder"):
        AnomalyDetector.load(tmp_path, folder=place)
    assert inspect.verify(place) == []
    weights = place / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        AnomalyDetector.load(run, folder=place)
    (finding,) = inspect.verify(place)
    assert finding.fatal
    assert "weights.safetensors" in finding.path


def test_verify_reads_the_detectors_of_a_run(run, detectors, tmp_path):
    shutil.copytree(run / "encoder", tmp_path / "encoder")
    detectors["features"].save(tmp_path / "anomalies" / "features")
    assert inspect.verify(tmp_path) == []
    (tmp_path / "anomalies/features/weights.safetensors").unlink()
    (finding,) = inspect.verify(tmp_path)
    assert (finding.kind, finding.fatal) == ("missing", True)
