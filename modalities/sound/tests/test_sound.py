"""Recordings as data: spectrograms, clips, classes, and what a user gets wrong."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from afterimage.data import open_data
from afterimage.errors import DataError, UserError
from afterimage_sound import Rendering, log_mel, mel_filters, picture
from afterimage_sound.recordings import Clip, read_clip

RATE = 16_000


def tone(hertz, seconds=1.0, rate=RATE, loud=0.5):
    """A sine."""
    return loud * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write(path, samples, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)


def noise(count, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, count)


def by_numpy(samples, rendering):
    """The decibels from the definition, in float64, one frame after another."""
    half = rendering.window // 2
    padded = np.pad(samples, half)
    hann = np.sin(np.pi * np.arange(rendering.window) / rendering.window) ** 2
    frames = []
    for number in range(rendering.frames):
        start = number * rendering.hop
        spectrum = np.fft.rfft(hann * padded[start : start + rendering.window])
        frames.append(mel_filters(rendering) @ np.abs(spectrum) ** 2)
    return 10 * np.log10(np.maximum(np.stack(frames, 1), 1e-10))


RENDERINGS = {
    "default": Rendering(),
    "wide": Rendering(rate=22_050, mels=40, hop=300, window=1024, low=50, high=8000),
    "odd": Rendering(rate=8000, window=401, hop=80, mels=32, seconds=0.5),
}
cases = pytest.mark.parametrize("rendering", RENDERINGS.values(), ids=RENDERINGS)


@cases
def test_a_spectrogram_follows_its_definition(rendering):
    samples = noise(rendering.samples)
    found = log_mel(samples.astype(np.float32), rendering)
    assert found.shape == (rendering.mels, rendering.frames)
    np.testing.assert_allclose(found, by_numpy(samples, rendering), atol=1e-4)


@cases
def test_a_spectrogram_is_that_of_librosa(rendering):
    librosa = pytest.importorskip("librosa")
    samples = noise(rendering.samples)
    power = librosa.feature.melspectrogram(
        y=samples,
        sr=rendering.rate,
        n_fft=rendering.window,
        hop_length=rendering.hop,
        n_mels=rendering.mels,
        fmin=rendering.low,
        fmax=rendering.highest,
        pad_mode="constant",
    )
    wanted = librosa.power_to_db(power, top_db=None)[:, : rendering.frames]
    found = log_mel(samples.astype(np.float32), rendering)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_decibels_become_grey_levels():
    rendering = Rendering(range=60.0)
    samples = noise(rendering.samples) + tone(3000)
    decibels = by_numpy(samples, rendering)[::-1]
    for top, settings in ((decibels.max(), {}), (40.0, {"top": 40.0})):
        share = np.clip((decibels - top) / 60 + 1, 0, 1)
        found = picture(samples, Rendering(range=60.0, **settings))
        assert np.abs(found.astype(int) - np.round(255 * share)).max() <= 1


@pytest.mark.parametrize("hertz", [200, 1000, 6000])
def test_high_tones_are_above(hertz):
    rendering = Rendering()
    found = picture(tone(hertz), rendering)
    row = rendering.mels - 1 - int(found[:, 20].argmax())
    response = mel_filters(rendering)[row] * (rendering.rate / rendering.window)
    bin_of = round(hertz * rendering.window / rendering.rate)
    assert response[bin_of] > 0


def test_silence_is_black_and_so_is_hiss():
    rendering = Rendering()
    assert picture(np.zeros(100), rendering).max() == 0
    assert picture(1e-5 * noise(RATE), rendering).max() == 0
    half = picture(noise(RATE // 2), rendering)
    assert half[:, 33:].max() == 0
    assert half[:, :31].min() > 0


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_recordings_are_read_resampled_and_mixed(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    left, right = tone(440, 1.5, 44_100), tone(880, 1.5, 44_100)
    write(path, np.stack([left, right], 1), 44_100)
    found = read_clip(str(tmp_path), Clip(path.name, 0.25, 0.5), RATE)
    start = slice(4000, 12_000)
    wanted = (tone(440, 1.5)[start] + tone(880, 1.5)[start]) / 2
    middle = slice(500, -500)  # a resampler knows nothing beyond the ends
    tolerance = 0.05 if suffix == ".ogg" else 2e-3
    np.testing.assert_allclose(found[middle], wanted[middle], atol=tolerance)


def test_the_loudest_clip_is_found(tmp_path):
    quiet = 0.001 * noise(5 * RATE)
    quiet[round(2.5 * RATE) : round(3.5 * RATE)] += tone(500)
    write(tmp_path / "a.flac", quiet)
    found = read_clip(str(tmp_path), Clip("a.flac", None, 1.0), RATE)
    assert np.square(found).mean() > 0.9 * np.square(tone(500)).mean()
    data = open_data(f"sound:{tmp_path},clips=loudest")
    assert data.train.ids == ["a.flac"]


@pytest.fixture
def pitches(tmp_path):
    """Sub-folders `high` and `low` below train and test: ten and four short sounds."""
    for split, count in (("train", 10), ("test", 4)):
        for name, hertz in (("low", 300), ("high", 3000)):
            for number in range(count):
                samples = tone(hertz * (1 + number / 50), 0.3) + noise(4800, number)
                path = tmp_path / "pitches" / split / name / f"{number}.wav"
                write(path, samples)
    return tmp_path / "pitches"


SMALL = "seconds=0.25,mels=16,rate=8000,window=256,hop=125"


def test_folders_are_classes_and_splits(pitches):
    data = open_data(f"sound:{pitches},{SMALL}")
    assert data.train.shape == (16, 16, 1)
    assert (len(data.train), len(data.test)) == (20, 8)
    assert data.train.class_names == ("high", "low")
    above = data.train.gather(np.arange(20))[:, :8].mean((1, 2, 3))
    below = data.train.gather(np.arange(20))[:, 8:].mean((1, 2, 3))
    assert ((above > below) == (data.train.labels == 0)).all()
    named = open_data(f"sound:{pitches},{SMALL},clips=loudest")
    other = open_data(f"sound:{pitches},{SMALL},range=60")
    prints = {d.train.fingerprint for d in (data, named, other)}
    assert len(prints) == 3


def test_a_long_recording_becomes_clips(tmp_path):
    samples = np.concatenate(
        [tone(hertz) for hertz in (300, 1000, 3000)] + [noise(900)]
    )
    write(tmp_path / "one" / "long.wav", samples)
    write(tmp_path / "two" / "short.wav", tone(500, 0.1))
    data = open_data(f"sound:{tmp_path}")
    assert data.train.ids == [
        *(f"one/long.wav#t={t},{t + 1}" for t in range(3)),
        "two/short.wav",
    ]
    assert data.train.labels.tolist() == [0, 0, 0, 1]
    for row, hertz in enumerate((300, 1000, 3000)):
        wanted = picture(np.round(tone(hertz) * 2**15) / 2**15, Rendering())
        found = data.train.gather([row])[0, ..., 0]
        assert np.abs(found[:, 2:-2].astype(int) - wanted[:, 2:-2]).max() <= 2


def test_a_table_gives_labels_splits_and_clips(tmp_path):
    write(tmp_path / "a.wav", tone(300, 2.0))
    write(tmp_path / "b.wav", tone(900, 3.0))
    rows = [
        ["file", "label", "split", "speaker"],
        ["a.wav", "deep", "train", "ann"],
        ["b.wav#t=1,2", "high", "test", "bo"],
        ["b.wav#t=0,0.4", "deep", "test", "bo"],
    ]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    data = open_data(f"sound:{tmp_path / 't.csv'}", tasks=("speaker",))
    assert data.train.ids == ["a.wav#t=0,1", "a.wav#t=1,2"]
    assert data.test.ids == ["b.wav#t=1,2", "b.wav#t=0,0.4"]
    assert data.test.labels.tolist() == [1, 0]
    loud = data.test.gather([0, 1])[:, :, :, 0].max(1) > 128
    assert loud[0, :60].all()
    assert loud[1, :25].all()
    assert not loud[1, 28:].any()
    assert data.test.class_names == ("deep", "high")
    speakers = data.test.tasks["speaker"]
    assert speakers.class_names[int(speakers.values[0])] == "bo"


def test_a_part_that_is_listed_twice_is_refused(tmp_path):
    write(tmp_path / "a.wav", tone(300, 2.0))
    (tmp_path / "t.csv").write_text('file,label\na.wav,x\n"a.wav#t=1,2",y\n')
    with pytest.raises(DataError, match=r"a\.wav#t=1,2 is listed twice"):
        open_data(f"sound:{tmp_path / 't.csv'}")


def damaged(folder):
    """A folder of one good recording and five that are not."""
    write(folder / "good.wav", tone(300))
    write(folder / "cut.flac", noise(RATE))
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:9000])
    (folder / "text.wav").write_text("not a sound")
    (folder / "empty.ogg").touch()
    write(folder / "nothing.wav", np.zeros(0))
    soundfile.write(folder / "nan.wav", np.full(100, np.nan), RATE, "FLOAT")
    os.mkfifo(folder / "pipe.wav")
    return {"cut.flac", "text.wav", "empty.ogg", "nothing.wav", "nan.wav", "pipe.wav"}


def test_damaged_files_are_named(tmp_path):
    bad = damaged(tmp_path)
    with pytest.raises(DataError) as caught:
        open_data(f"sound:{tmp_path}")
    assert all(f"{name}: " in str(caught.value) for name in bad)
    data = open_data(f"sound:{tmp_path}", on_bad_image="skip")
    assert data.train.ids == ["good.wav"]
    assert {one.path for one in data.train.skipped} == bad


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{}/missing", "not a folder, a table or a recording"),
        ("{},mel=3", "did you mean 'mels'"),
        ("{},mels=many", "not a whole number"),
        ("{},seconds=0", "from 0.05 to 600"),
        ("{},hop=4000", "a width of 4"),
        ("{},high=9000", "up to half the rate"),
        ("{},mels=256", "would be empty"),
        ("{},clips=first", "all or loudest"),
        ("{}/pictures", "only 1 .png"),
    ],
)
def test_mistakes_are_explained(tmp_path, spec, said):
    write(tmp_path / "a.wav", tone(300))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    with pytest.raises((UserError, DataError), match=said):
        open_data("sound:" + spec.format(tmp_path))


def test_a_size_that_would_cut_clips_is_refused(tmp_path):
    write(tmp_path / "a.wav", tone(300))
    with pytest.raises(UserError, match="spectrograms are 32x64"):
        open_data(f"sound:{tmp_path},mels=32", image_size=32)
    assert open_data(f"sound:{tmp_path}", image_size=32).train.shape == (32, 32, 1)


def test_settings_travel_with_an_encoder(tmp_path):
    write(tmp_path / "a.wav", tone(300))
    own = Rendering(mels=32, high=4000.0)
    assert Rendering.parse(str(own)) == own
    data = open_data(f"sound:{tmp_path}", rendering=str(own))
    assert data.train.shape == (32, 64, 1)
    assert data.train.rendering == str(own)
    open_data(f"sound:{tmp_path},mels=32", rendering=str(own))
    with pytest.raises(UserError, match="mels=64: the encoder was trained on"):
        open_data(f"sound:{tmp_path},mels=64", rendering=str(own))
    with pytest.raises(UserError, match="not from sound"):
        open_data(f"sound:{tmp_path}", rendering="film,rate=3")


def afterimage(*words, code=0):
    """What a command printed."""
    command = [sys.executable, "-m", "afterimage", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_from_recordings_to_predictions(pitches, tmp_path):
    """Not square, so that height and width cannot be confused."""
    short = ("--batch-size", 8, "--no-tensorboard")
    data = f"sound:{pitches},{SMALL},hop=60"
    run, cls, out = tmp_path / "run", tmp_path / "cls", tmp_path / "p.csv"
    masked = ("--objective", "masked", "--augment", "sounds", "--steps", 4)
    afterimage("pretrain", data, "--out", run, *masked, *short, "--pictures", 2)
    stored = json.loads((run / "encoder" / "manifest.json").read_text())
    assert stored["preprocessing"]["rendering"] == str(
        Rendering(seconds=0.25, mels=16, rate=8000, window=256, hop=60)
    )
    afterimage(
        *("finetune", f"sound:{pitches}", "--from", run, "--out", cls, *short),
        *("--steps", 60, "--augment", "none", "--validation", 0),
    )
    new = tmp_path / "new"
    write(new / "a.flac", np.concatenate([tone(300, 0.25), tone(3000, 0.25)]))
    (new / "b.wav").write_text("not a sound")
    afterimage("predict", f"sound:{new}", "--from", cls, "--out", out)
    rows = csv.DictReader(out.read_text().splitlines())
    found = {row["file"]: row["class"] for row in rows}
    assert found == {"a.flac#t=0,0.25": "low", "a.flac#t=0.25,0.5": "high"}
    assert "b.wav\t" in (tmp_path / "p.csv.skipped.txt").read_text()
    other = (f"sound:{new},mels=32", "--from", cls, "--out", tmp_path / "f.npz")
    assert "mels=32: the encoder was" in afterimage("features", *other, code=2)


@pytest.mark.slow
def test_the_recipe_suits_sound(pitches, tmp_path):
    said = afterimage(
        *("pretrain", f"sound:{pitches},{SMALL}", "--out", tmp_path / "run"),
        *("--steps", 2, "--batch-size", 8, "--no-tensorboard", "--pictures", 0),
    )
    assert "what this kind of data is made for" in said
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["augment"] == "sounds"
    assert config["objective"]["name"] == "simclr"
    assert config["view_size"] is None
