"""The main line as a user types it: photos to encoder, classifier, features."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from afterimage.commands import main
from tests.helpers import environment

CLASSES = ("circle", "square", "stripes")


def draw(kind, rng):
    """A 24 x 20 photo of one of three shapes, of any colour, anywhere."""
    image = Image.new("RGB", (24, 20), tuple(rng.integers(0, 90, 3).tolist()))
    pen, colour = ImageDraw.Draw(image), tuple(rng.integers(140, 256, 3).tolist())
    x, y = (int(v) for v in rng.integers(1, 9, 2))
    if kind == "circle":
        pen.ellipse((x, y, x + 9, y + 9), fill=colour)
    elif kind == "square":
        pen.rectangle((x, y, x + 9, y + 9), fill=colour)
    else:
        for i in range(0, 24, 6):
            pen.line((i, 0, i, 20), fill=colour, width=2)
    return image


def write_images(folder, rng, count, classes):
    for kind in CLASSES:
        place = folder / kind if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            draw(kind, rng).save(place / f"{kind}{i}.png")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Photos without labels, labelled ones, a test set, and one broken file."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    write_images(home / "photos", rng, 40, classes=False)
    (home / "photos" / "broken.jpg").write_bytes(b"<html>not found</html>")
    write_images(home / "labelled" / "train", rng, 15, classes=True)
    write_images(home / "labelled" / "test", rng, 20, classes=True)
    write_images(home / "test", rng, 10, classes=True)
    return home


@pytest.fixture(scope="module")
def afterimage(world):
    """Runs `afterimage …` in that folder, in this process; returns its output.

    One process for all: a start of Python and JAX for each would take minutes.
    """

    def run(*arguments, expected=0):
        output = io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.chdir(world))
            stack.enter_context(contextlib.redirect_stdout(output))
            stack.enter_context(contextlib.redirect_stderr(output))
            try:
                code = main([str(argument) for argument in arguments])
            except SystemExit as exit:  # after --help
                code = exit.code or 0
        assert code == expected, output.getvalue()[-4000:]
        return output.getvalue()

    return run


PRETRAIN = (
    *("pretrain", "--data", "folder:photos", "--out", "runs/photos"),
    *("--model", "conv", "--width", "0.5", "--image-size", "16", "--steps", "40"),
    *("--batch-size", "32", "--on-bad-image", "skip"),
)
FINETUNE = (
    *("finetune", "--from", "runs/photos", "--data", "folder:labelled"),
    *("--out", "runs/cls", "--mode", "two-phase", "--labels-per-class", "10"),
    *("--steps", "40"),
)


@pytest.fixture(scope="module")
def pretrained(afterimage):
    return afterimage(*PRETRAIN)


@pytest.fixture(scope="module")
def finetuned(afterimage, pretrained):
    return afterimage(*FINETUNE)


def test_pretraining_leaves_a_whole_run_folder(world, pretrained):
    run = world / "runs/photos"
    for name in ("config.json", "metrics.jsonl", "encoder", "report.html"):
        assert (run / name).exists(), name
    assert list((run / "pictures").glob("*.png"))
    assert list((run / "tensorboard").iterdir())
    assert "broken.jpg" in (run / "skipped.txt").read_text()
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0]
    assert "runs/photos" in pretrained


def test_it_runs_as_a_module_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "afterimage", "pretrian"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "did you mean 'pretrain'?" in done.stderr


def test_output_that_nobody_reads_ends_without_a_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "afterimage", "pretrain", "--help"],
        env=environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 141


def test_the_same_command_again_says_it_is_complete(afterimage, pretrained):
    assert "complete" in afterimage(*PRETRAIN)


def test_another_setting_on_the_same_folder_is_refused(afterimage, pretrained):
    output = afterimage(*PRETRAIN, "--lr", "0.5", expected=2)
    assert "lr: 0.002 in the folder, 0.5 now" in output


def test_fine_tuning_reports_its_test(world, afterimage, finetuned):
    run = world / "runs/cls"
    results = json.loads((run / "results.json").read_text())
    assert "accuracy" in json.dumps(results)
    assert re.search(r"accuracy", finetuned)
    transfer = json.loads((run / "transfer.json").read_text())
    assert transfer["params"]["totals"]["loaded"]["leaves"] > 0
    chosen = json.loads((run / "labels.json").read_text())["train"]
    assert {kind: len(ids) for kind, ids in chosen.items()} == dict.fromkeys(
        CLASSES, 10
    )
    assert "complete" in afterimage(*FINETUNE)


def test_the_classifier_is_evaluated_on_a_new_folder(afterimage, finetuned):
    output = afterimage("evaluate", "--from", "runs/cls", "--data", "folder:test")
    accuracy = float(re.search(r"accuracy\D*(\d+\.?\d*)", output)[1])
    assert accuracy > (40 if accuracy > 1 else 0.4), output
    for kind in CLASSES:
        assert kind in output


@pytest.mark.slow
def test_the_encoder_is_evaluated_beside_pixels_and_the_untrained(
    afterimage, pretrained
):
    output = afterimage(
        "evaluate", "--from", "runs/photos", "--data", "folder:labelled"
    )
    for row in ("pixels", "untrained", "kNN", "ridge"):
        assert row.lower() in output.lower()


@pytest.mark.parametrize("suffix", ["parquet", "npz", "npy"])
def test_features_are_written(world, afterimage, pretrained, suffix):
    out = world / f"features.{suffix}"
    afterimage(
        *("features", "--from", "runs/photos", "--data", "folder:labelled"),
        *("--out", out, "--split", "train"),
    )
    if suffix == "parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(out)
        assert table.num_rows == 45
        assert {"id", "label"} <= set(table.column_names)
    else:
        loaded = np.load(out)
        vectors = loaded if suffix == "npy" else loaded["vector"]
        assert vectors.shape[0] == 45
        assert vectors.dtype == np.float32


def test_checkpoints_are_listed_shown_verified_pruned(world, afterimage, pretrained):
    assert "40" in afterimage("checkpoints", "list", "runs/photos")
    assert "encoder/" in afterimage("checkpoints", "show", "runs/photos")
    assert "No problems" in afterimage("checkpoints", "verify", "runs/photos")
    output = afterimage("checkpoints", "prune", "runs/photos", "--keep-best", "0")
    assert "kept: 40" in output
    weights = world / "runs/photos/encoder/weights.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 4]))
    output = afterimage("checkpoints", "verify", "runs/photos", expected=3)
    assert "weights.safetensors" in output
    weights.write_bytes(good)


def test_the_encoder_loads_in_python(world, pretrained):
    import afterimage as library

    encoder = library.load_encoder(world / "runs/photos")
    rng = np.random.default_rng(0)
    images = np.stack([np.asarray(draw("circle", rng)) for _ in range(5)])
    vectors = encoder.features(images)
    assert vectors.shape[0] == 5
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(encoder.features(images[0])[0], vectors[0], atol=1e-5)
    maps = encoder.feature_maps(images)
    assert len(maps) == len(encoder.feature_info)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pretrain", "--data", "foldr:x", "--out", "o"), "did you mean 'folder'"),
        (("pretrain", "--data", "folder:nowhere", "--out", "o"), "nowhere"),
        (("pretrain", "--data", "digits", "--out", "o", "--model", "rezn"), "resnet18"),
        (("features", "--from", "test", "--data", "digits", "--out", "f.npy"), "test"),
        (("finetune", "--from", "nope", "--data", "digits", "--out", "o"), "nope"),
    ],
)
def test_mistakes_are_one_clear_message(world, afterimage, arguments, said):
    output = afterimage(*arguments, expected=2)
    assert said in output
    assert "Traceback" not in output
    assert not os.path.exists(world / "o" / "checkpoints")


@pytest.mark.parametrize(
    "command", ["pretrain", "finetune", "features", "evaluate", "checkpoints"]
)
def test_help_reads_like_documentation(afterimage, command):
    output = afterimage(command, "--help")
    assert "usage: afterimage " + command in output
    assert len(output.splitlines()) > 5


def test_without_a_command_it_says_what_there_is(afterimage):
    output = afterimage()
    for command in ("pretrain", "finetune", "features", "evaluate", "checkpoints"):
        assert command in output
