"""The recipe: what is chosen for images of several kinds, and what never changes."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
import tomllib

import cv2
import numpy as np
import pytest
from PIL import Image

from afterimage.commands import main
from afterimage.commands.flags import parse
from afterimage.commands.pretrain import COMMAND
from afterimage.data import array_set
from afterimage.data.views import is_writing
from afterimage.errors import UserError
from afterimage.pretrain import PretrainConfig, pretrain, recipe, recommend
from afterimage.pretrain.recipe import ImageFacts, choose, stored_side

RNG = np.random.default_rng(0)
MINUTE = 60.0


def photo(height, width):
    """Smooth colours with noise."""
    small = RNG.integers(0, 256, (5, 5, 3), np.uint8)
    smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = RNG.integers(-20, 21, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def strokes(side=28, ground=0, ink=255, thickness=2):
    """A few lines on a plain ground, grey."""
    image = np.full((side, side), ground, np.uint8)
    points = RNG.integers(4, side - 4, (4, 2)).tolist()
    for a, b in itertools.pairwise(points):
        cv2.line(image, a, b, ink, thickness)
    return image[..., None]


def blobs(side=28):
    """Solid grey shapes on a plain ground, as clothes are."""
    image = np.zeros((side, side), np.uint8)
    cv2.rectangle(image, (6, 4), (21, 24), 170, -1)
    return np.roll(image, RNG.integers(-3, 4), 0)[..., None]


def looked(images, sizes=None, labels=None):
    images = np.stack(images)
    return ImageFacts.of(array_set(images, labels, None, "images"), sizes or [])


def folder_of(path, images):
    path.mkdir()
    for number, image in enumerate(images):
        shown = image[..., 0] if image.shape[2] == 1 else image
        Image.fromarray(shown).save(path / f"{number}.png")
    return str(path)


@pytest.mark.parametrize(
    ("images", "writing"),
    [
        ([strokes() for _ in range(20)], True),
        ([strokes(64, 255, 0, 3) for _ in range(20)], True),  # ink on paper
        ([np.repeat(strokes(16, thickness=1), 3, 2) for _ in range(20)], True),
        ([blobs() for _ in range(20)], False),
        ([photo(32, 32) for _ in range(20)], False),
        ([photo(32, 32)[..., :1] for _ in range(20)], False),
        ([np.repeat(strokes(), 3, 2) // [1, 2, 4] for _ in range(20)], False),
        ([np.zeros((16, 16, 1))] * 3, False),  # nothing is drawn
    ],
    ids=[
        *("digits", "paper", "three-channels", "clothes"),
        *("photos", "grey photos", "coloured", "empty"),
    ],
)
def test_writing_is_grey_strokes_on_a_plain_ground(images, writing):
    assert is_writing(np.stack(images).astype(np.uint8)) == writing


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(28, 28)] * 5, None),
        ([(40, 30)] * 5, None),
        ([(8, 8)] * 5, None),
        ([(28, 28), (30, 40), (28, 29)], 28),
        ([(100, 80), (300, 200), (60, 90)], 48),
        ([(44, 44)] * 5, 44),
        ([(30, 30)] * 9 + [(3000, 2000)], 30),  # one huge image changes nothing
        ([(5, 9), (6, 7)], 16),
        ([], 40),
    ],
)
def test_the_stored_side_follows_the_median_image(sizes, side):
    assert stored_side(sizes, 10 * MINUTE) == side


def test_long_runs_and_wide_views_store_larger_images(monkeypatch):
    sizes = [(200, 300), (210, 150)]
    assert stored_side(sizes, 10 * MINUTE, at_least=64) == 64
    monkeypatch.setattr(recipe.runtime, "cores", lambda: 8)
    assert stored_side(sizes, 60 * MINUTE) == 96
    monkeypatch.setattr(recipe.jax, "default_backend", lambda: "gpu")
    assert stored_side(sizes, MINUTE) == 128


def test_small_and_few_images_are_kept_and_batches_shrink():
    digits = choose(looked([strokes() for _ in range(50)]), {})
    assert digits["augment"] == "writing"
    assert "image_size" not in digits
    assert "view_size" not in digits
    assert digits["batch_size"] == 16  # at most half of the images
    photos = looked([photo(48, 48) for _ in range(300)], [(90, 120)] * 300)
    assert choose(photos, {}) | {"lr": 0} == digits | {
        "augment": "photos",
        "image_size": 48,
        "view_size": 32,
        "batch_size": 128,
        "lr": 0,
    }
    # Views belong to an augmentation that cuts them.
    assert "view_size" not in choose(photos, {"augment": "shift"})
    # A source of other things than pictures knows what may change in its images.
    sounds = choose(dataclasses.replace(photos, augment="shear"), {})
    assert sounds["augment"] == "shear"
    assert "view_size" not in sounds


@pytest.fixture
def paced(monkeypatch):
    """A machine that takes half a second a step, and ten to compile."""
    monkeypatch.setattr(recipe, "pace", lambda config, splits, origin: (10.0, 0.5))


@pytest.fixture
def photos(tmp_path):
    """Twelve photos of different sizes, without labels."""
    sizes = RNG.integers(60, 120, (12, 2))
    return folder_of(tmp_path / "photos", [photo(*size) for size in sizes])


@pytest.mark.usefixtures("paced")
def test_the_steps_fill_the_time(tmp_path, photos, capsys):
    config = recommend(photos, out=str(tmp_path / "run"), minutes=5)
    assert (config.image_size, config.view_size) == (48, 32)
    assert config.augment == "photos"
    # Nine tenths of what is left are for steps.
    assert config.steps == pytest.approx((0.9 * 300 - 10) / (1.05 * 0.5), rel=0.05)
    said = capsys.readouterr().out
    for part in ("12 colour images", "no labels", "simclr", "48 pixels", "5 minutes"):
        assert part in said
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("paced")
def test_what_is_given_wins_and_is_not_explained(tmp_path, photos, capsys):
    given = {"model": "conv-classic", "image_size": 64, "lr": 0.5, "augment": "flip"}
    config = recommend(photos, out=str(tmp_path / "run"), steps=7, **given)
    assert {name: getattr(config, name) for name in given} == given
    assert (config.steps, config.view_size) == (7, None)
    assert config.normalise == "image"
    said = capsys.readouterr().out
    assert "conv-classic" not in said
    assert "minutes" not in said


@pytest.mark.usefixtures("paced")
def test_few_images_are_not_repeated_for_ever(tmp_path, photos):
    config = recommend(photos, out=str(tmp_path / "run"), minutes=600)
    assert config.steps * config.batch_size <= 1_000 * 12 * 1.01


@pytest.mark.parametrize(
    ("data", "settings", "part"),
    [
        (None, {}, "no data"),
        ("digits", {"minutes": 0.0}, "minutes=0"),
        ("digits", {"minutes": float("nan")}, "minutes=nan"),
        ("digits", {"minutes": 1.0, "steps": 5}, "only one"),
        ("digits", {"lr": -1.0}, "lr=-1.0"),
        ("digits", {"learning_rate": 1.0}, "learning_rate"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_read(
    tmp_path, monkeypatch, data, settings, part
):
    monkeypatch.setattr(recipe, "open_data", None)
    with pytest.raises(UserError, match=part):
        recommend(data, out=str(tmp_path / "run"), **settings)


def test_another_folder_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "open_data", None)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        recommend("digits", out=str(tmp_path))


FAST = ("--width", "0.1", "--pictures", "0", "--probe-images", "0")


@pytest.mark.slow
def test_the_same_command_continues_with_the_run_s_settings(
    tmp_path, photos, monkeypatch, capsys
):
    """Even if the machine is faster now; other settings are refused."""
    run = tmp_path / "run"
    command = ["pretrain", photos, "--out", str(run), *FAST, "--minutes", "1"]
    monkeypatch.setattr(recipe, "_FEWEST", 2)
    monkeypatch.setattr(recipe, "pace", lambda config, splits, origin: (0.0, 1e9))
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "2 of 8 " in said  # at least eight a batch
    assert "longer than 1 minutes" in said
    stored = json.loads((run / "config.json").read_text())["config"]
    assert stored["steps"] == 2
    assert "minutes" not in stored
    monkeypatch.setattr(recipe, "pace", lambda config, splits, origin: (0.0, 1e-3))
    assert main(command) == 0
    assert "is complete: 2 of 2" in capsys.readouterr().out
    assert main([*command, "--lr", "0.5"]) == 2
    assert "lr: 0.002 in the folder" in capsys.readouterr().err
    # The stored settings start the same run again.
    again = ["pretrain", "--config", str(run), "--out", str(tmp_path / "again")]
    config = parse(COMMAND, again[1:])
    assert config == PretrainConfig(**(stored | {"out": str(tmp_path / "again")}))


@pytest.mark.slow
def test_pace_times_the_real_step(tmp_path):
    """An array goes through both calls."""
    images = np.stack([strokes(16) for _ in range(40)])
    few = {"width": 0.1, "batch_size": 8, "objective": "plain", "augment": "shift"}
    config = recommend(images, out=str(tmp_path / "run"), minutes=0.01, **few)
    assert (config.steps, config.data) == (20, None)  # the fewest
    few |= {"steps": 2, "pictures": 0, "probe_images": 0}
    plain = recommend(images, out=str(tmp_path / "run"), **few)
    assert pretrain(plain, data=images).steps == 2


def test_flags_without_an_objective_use_the_recipe(monkeypatch, capsys):
    """A preset, a file or an objective is taken as it is, unless --minutes is given."""
    given = []

    def recommended(**flags):
        print("chosen")
        given.append(flags)
        return PretrainConfig(data="digits", out="x")

    monkeypatch.setattr(recipe, "recommend", recommended)
    digits = ("digits", "--out", "x")
    parse(COMMAND, [*digits, "--lr", "0.1", "--minutes", "2"])
    assert given == [{"data": "digits", "out": "x", "lr": 0.1, "minutes": 2.0}]
    parse(COMMAND, [*digits, "--objective", "masked", "--minutes", "2"])
    assert given[1]["objective"] == {"name": "masked"}
    plain = parse(COMMAND, [*digits, "--objective", "plain"])
    assert plain == PretrainConfig(data="digits", out="x")
    assert type(plain) is PretrainConfig
    assert len(given) == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parse(COMMAND, [*digits, "--print-config"])
    said = capsys.readouterr()
    assert tomllib.loads(said.out)["data"] == "digits"
    assert "chosen" in said.err
    with pytest.raises(UserError, match="--minutes and --preset"):
        parse(COMMAND, [*digits, "--preset", "digits", "--minutes", "2"])


@pytest.mark.slow
def test_the_first_line_never_promises_more_than_the_asked_time(tmp_path):
    command = [sys.executable, "-m", "afterimage", "pretrain", "digits", "--minutes"]
    command += ["1", "--out", str(tmp_path / "run"), "--no-tensorboard"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    left = re.findall(r"(\d+):(\d\d) left", done.stdout + done.stderr)
    minutes, seconds = map(int, left[0])
    assert 60 * minutes + seconds <= 60
